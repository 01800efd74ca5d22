"""`vit bench`"""

from typing import Annotated, Literal

from cyclopts import Parameter

from vit_cli import console
from vit_cli.option_types import Place
from vit_cli.reports.formats import print_costs
from vit_cli.twins import Framework
from vit_core.errors import InputError
from vit_core.storage import check_writable, location, require_local

HERE = location(".")


def bench(
    what: Literal["convert", "help", "predict"],
    /,
    *,
    variant: Annotated[str, Parameter(metavar="NAME")] | None = None,
    framework: Framework = "torch",
    folder: Place = HERE,
    repeats: int = 5,
) -> int:
    """Measure what a conversion costs, how fast `vit predict` or `vit --help` is.

    `convert` compares conversions of a large random checkpoint with a plain copy of the file, in time and memory.
    `predict` compares `vit predict` on made pictures with its model alone and with decoding alone. `help` measures a
    new process, and exits with status 1 if it takes more than 0.3 s.

    Examples:
        vit bench convert --variant H/14
        vit bench predict --variant S/16 --framework jax
        vit bench help

    Args:
        what: What to measure.
        variant: Published architecture, with new weights in float32. Default: L/16 (convert), S/16 (predict).
        framework: Framework that computes (predict).
        folder: Where the files are made, about five times the checkpoint's size, and removed again (convert).
        repeats: How often each is measured; the best is shown (predict: the median).
    """
    if repeats < 1:
        raise InputError(f"--repeats {repeats}: expected 1 or more")
    if what == "help":
        return _bench_help(repeats)
    if what == "predict":
        return _bench_predict(variant or "S/16", framework, repeats)
    return _bench_convert(variant or "L/16", folder, repeats)


def _bench_help(repeats: int) -> int:
    from vit_cli.benchmarks.startup import LIMIT_SECONDS, help_startup

    found = help_startup(repeats)
    imported = ", ".join(found.imported) or "none of the large packages"
    console.say(f"vit --help: {found.seconds:.2f} s (limit {LIMIT_SECONDS} s), imports {imported}")
    return int(not found.ok)


def _bench_predict(variant: str, framework: Framework, repeats: int) -> int:
    from vit_cli.benchmarks import prediction
    from vit_cli.reports.prediction import print_rates

    config = prediction.model_of(variant)
    with console.working(f"predicting with {variant}"):
        found = prediction.measure(config, framework, repeats)
    print_rates(f"predict with {variant} in float32, {found.hardware}", found)
    return 0


def _bench_convert(variant: str, folder: Place, repeats: int) -> int:
    from vit_cli.benchmarks import conversion

    config = conversion.model_of(variant)
    check_writable(folder, "--folder")
    with console.working(f"making {variant} in several formats, and converting"):
        costs = list(conversion.measure(config, require_local(folder, "--folder"), repeats))
    print_costs(f"convert {variant} in float32, {costs[0].bytes / 1e6:,.0f} MB", costs)
    return 0
