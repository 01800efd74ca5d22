"""`vit bench`"""

from typing import Annotated, Literal

from cyclopts import Parameter

from vit_cli import console
from vit_cli.option_types import Target
from vit_cli.reports.formats import print_costs
from vit_core.errors import InputError
from vit_core.storage import check_writable, location, require_local

HERE = location(".")


def bench(
    what: Literal["convert", "help"],
    /,
    *,
    variant: Annotated[str, Parameter(metavar="NAME")] = "L/16",
    folder: Target = HERE,
    repeats: int = 5,
) -> int:
    """Measure what a conversion costs, or how long `vit --help` takes.

    `convert` compares conversions of a large random checkpoint with a plain copy of the file, in time and memory.
    `help` measures a new process, and exits with status 1 if it takes more than 0.3 s.

    Examples:
        vit bench convert --variant H/14
        vit bench help

    Args:
        what: What to measure.
        variant: Published architecture, with random weights in float32: L/16, H/14, ... (convert).
        folder: Where the files are made, about five times the checkpoint's size, and removed again (convert).
        repeats: How often each is measured; the best is shown.
    """
    if repeats < 1:
        raise InputError(f"--repeats {repeats}: expected 1 or more")
    return _bench_help(repeats) if what == "help" else _bench_convert(variant, folder, repeats)


def _bench_help(repeats: int) -> int:
    from vit_cli.benchmarks.startup import LIMIT_SECONDS, help_startup

    found = help_startup(repeats)
    imported = ", ".join(found.imported) or "none of the large packages"
    console.say(f"vit --help: {found.seconds:.2f} s (limit {LIMIT_SECONDS} s), imports {imported}")
    return int(not found.ok)


def _bench_convert(variant: str, folder: Target, repeats: int) -> int:
    from vit_cli.benchmarks import conversion

    config = conversion.model_of(variant)
    check_writable(folder, "--folder")
    with console.working(f"making {variant} in several formats, and converting"):
        costs = list(conversion.measure(config, require_local(folder, "--folder"), repeats))
    print_costs(f"convert {variant} in float32, {costs[0].bytes / 1e6:,.0f} MB", costs)
    return 0
