"""`vit bench`: one command for each measurement."""

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from vit_cli import console
from vit_cli.benchmarks.implementations import NAMES, Dtype, Implementation, Setting, implementations
from vit_cli.benchmarks.options import checkouts
from vit_cli.benchmarks.results import JsonFile, check_results_file, write_results
from vit_cli.commands.bench_program import program as program  # commands of this group in their own files
from vit_cli.commands.bench_training import input as input
from vit_cli.commands.bench_training import scaling as scaling
from vit_cli.commands.bench_training import train as train
from vit_cli.option_types import OptionalTarget, Target, at_least
from vit_cli.reports.formats import print_costs
from vit_cli.requirements import TRAINING, require
from vit_cli.training import require_training
from vit_cli.twins import Framework
from vit_core.errors import InputError, unknown_name
from vit_core.storage import check_new_file, check_writable, location, require_local

if TYPE_CHECKING:
    from vit_cli.benchmarks.model_speed import Part

HERE = location(".")


def model(
    *,
    variant: Annotated[tuple[str, ...], Parameter(metavar="NAME")] = ("S/16",),
    batch_size: int = 8,
    dtype: tuple[Dtype, ...] = ("float32",),
    compiled: Annotated[bool, Parameter(negative=())] = False,
    threads: int | None = None,
    rounds: int = 5,
    only: Annotated[tuple[str, ...], Parameter(metavar="NAME")] = (),
    peer: Annotated[tuple[str, ...], Parameter(metavar="NAME=PATH")] = (),
    json: Annotated[OptionalTarget, Parameter(metavar="FILE")] = None,
    png: Annotated[OptionalTarget, Parameter(metavar="FILE")] = None,
) -> int:
    """Measure the models' forward pass and train step, compared with other libraries.

    Each library runs in its own process, and they take turns; figures are medians over the rounds. A library that is
    not installed is named and skipped. Runs on the devices that JAX and PyTorch find: CPU, GPU or TPU.

    Examples:
        vit bench model
        vit bench model --variant S/16 --variant B/16@384 --dtype float32 --dtype bfloat16
        vit bench model --peer big_vision=../big_vision --json speed.json --png speed.png

    Args:
        variant: Published architecture; for an image size other than 224, write B/16@384. May be repeated.
        batch_size: Number of images in a batch.
        dtype: Type of the computation. May be repeated.
        compiled: Compile PyTorch's models with torch.compile.
        threads: CPU threads of each implementation. Default: one for each core.
        rounds: Number of turns of each implementation.
        only: Measure this implementation. May be repeated. Default: all.
        peer: Checkout of a project that no package index has: big_vision=PATH or vision_transformer=PATH.
        json: File for all figures. Results in it from the same machine and versions are not measured again.
        png: File for a chart.
    """
    from vit_cli.benchmarks import model_speed
    from vit_cli.benchmarks.machine import available_cores, this_machine
    from vit_cli.reports import speed

    wanted = [c for c in implementations(checkouts(peer)) if not only or c.name in only]
    for name in only:
        if name not in NAMES:
            raise InputError(f"--only: {unknown_name('implementation', name, NAMES)}")
    threads = threads or available_cores()
    at_least(1, batch_size=batch_size, threads=threads, rounds=rounds)
    settings = [
        Setting(variant=name, batch_size=batch_size, dtype=each, compiled=compiled, threads=threads)
        for name, each in product(variant, dtype)
    ]
    for setting in settings:
        setting.model  # noqa: B018 (raises InputError for a wrong one, before anything is measured)
    if json is not None:
        check_new_file(json, "--json", model_speed.WRITTEN)
    if png is not None:
        from vit_train.figures import check_new_figure

        check_new_figure(png, "--png")
    with console.working("looking at the machine"):
        machine = this_machine()
    report = model_speed.open_report(json, machine)
    speed.print_machine(machine)
    speed.warn_if_busy()
    for setting in settings:
        part = model_speed.finished(report, setting, wanted, rounds)
        if part is None:
            part = _measured(setting, wanted, rounds, together=not machine.has_tpu)
            report = report.replace(parts=(*(p for p in report.parts if p.setting != setting), part))
            if json is not None:
                model_speed.write_report(json, report)
        else:
            console.say(f"{setting}: measured before, in {json}")
        speed.print_part(part)
    if png is not None:
        from vit_cli.reports.speed_chart import draw

        draw([part for part in report.parts if part.setting in settings], png)
        console.say_wrote(png)
    return 0


def _measured(setting: Setting, wanted: Sequence[Implementation], rounds: int, together: bool) -> "Part":
    """Measures a setting under a progress bar."""
    from vit_cli.benchmarks.model_speed import measure, number_of_calls

    with console.progress() as bar:
        task = bar.add_task(str(setting), total=number_of_calls(setting, wanted, rounds), note="")
        return measure(setting, wanted, rounds, together, lambda note: bar.update(task, advance=1, note=note))


def convert(
    *,
    variant: Annotated[str, Parameter(metavar="NAME")] = "L/16",
    folder: Target = HERE,
    repeats: int = 5,
    json: JsonFile = None,
) -> int:
    """Measure the time and memory of converting a checkpoint, compared with a copy of the file.

    Conversions of a large random checkpoint in float32, in time and memory.

    Examples:
        vit bench convert
        vit bench convert --variant H/14

    Args:
        variant: Published architecture: L/16, H/14, ...
        folder: Where the files are made, about five times the checkpoint's size, and removed again.
        repeats: How often each is measured; the best is shown.
        json: File for all figures.
    """
    from vit_cli.benchmarks import conversion

    at_least(1, repeats=repeats)
    check_results_file(json)
    config = conversion.model_of(variant)
    check_writable(folder, "--folder")
    with console.working(f"making {variant} in several formats, and converting"):
        costs = list(conversion.measure(config, require_local(folder, "--folder"), repeats))
    print_costs(f"convert {variant} in float32, {costs[0].bytes / 1e6:,.0f} MB", costs)
    write_results(json, "convert", {"variant": variant, "repeats": repeats}, {"costs": costs})
    return 0


def predict(
    *,
    framework: Framework = "torch",
    variant: Annotated[str, Parameter(metavar="NAME")] = "S/16",
    repeats: int = 5,
    json: JsonFile = None,
) -> int:
    """Measure `vit predict` on generated images, compared with the model and decoding alone.

    Examples:
        vit bench predict
        vit bench predict --framework jax --variant B/16

    Args:
        framework: Framework that computes.
        variant: Published architecture, with new weights in float32.
        repeats: How often each has its turn; medians are shown.
        json: File for all figures.
    """
    require_training(framework)
    from vit_cli.benchmarks import prediction
    from vit_cli.reports import speed
    from vit_cli.reports.prediction import print_rates

    at_least(1, repeats=repeats)
    check_results_file(json)
    speed.warn_if_busy()
    config = prediction.model_of(variant)
    with console.working(f"predicting with {variant}"):
        found = prediction.measure(config, framework, repeats)
    print_rates(f"predict with {variant} in float32, {found.hardware}", found)
    settings = {"framework": framework, "variant": variant, "repeats": repeats}
    write_results(json, "predict", settings, {"rates": found})
    return 0


def sources(*, images: int = 2000, rounds: int = 7, json: JsonFile = None) -> int:
    """Measure how fast each kind of source is read, on one thread, in random order.

    Examples:
        vit bench sources

    Args:
        images: Number of examples; about 100 kB each.
        rounds: How often each has its turn; medians are shown.
        json: File for all figures.
    """
    require("train", "tensorflow_datasets", "array_record", "pyarrow")
    from vit_cli.benchmarks import source_speed
    from vit_cli.reports import speed

    at_least(2, images=images)  # one for each of two classes
    at_least(1, rounds=rounds)
    check_results_file(json)
    speed.warn_if_busy()
    with console.working("writing and reading"):
        speeds = source_speed.measure(images, rounds)
    speed.print_sources(images, speeds, {name: source_speed.times_prepared(speeds, name) for name in speeds})
    write_results(json, "sources", {"images": images, "rounds": rounds}, {"examples_per_second": speeds})
    return 0


def all(
    *,
    folder: Target = HERE / "speed",
    minutes: float = 25,
    quick: Annotated[bool, Parameter(negative=())] = False,
    peer: Annotated[tuple[str, ...], Parameter(metavar="NAME=PATH")] = (),
) -> int:
    """Measure everything, in parts of a few minutes; repeat it after an interruption.

    Each part is one of the other `vit bench` commands or `vit parity`, with sizes for the machine's devices. It writes
    its output, its figures (JSON) and the charts of models to files in the folder. The same command continues after an
    interruption. Training reads generated JPEG files of 500 x 375 pixels. The exit status is 1 if a part is still
    missing.

    Examples:
        vit bench all --quick
        vit bench all --folder speed-h100 --minutes 25

    Args:
        folder: Folder of the results; parts that are in it are not measured again.
        minutes: Time for the whole command. A part that could take longer than the remaining time is not started; each
            part gets at most 8 minutes.
        quick: Use small sizes, to check that everything works on this machine.
        peer: Checkout of a project that no package index has: big_vision=PATH or vision_transformer=PATH.
    """
    require("train", *TRAINING)
    from vit_cli.benchmarks import everything
    from vit_cli.benchmarks.machine import this_machine
    from vit_cli.reports import speed

    checkouts(peer)
    if minutes <= 0:
        raise InputError(f"--minutes {minutes:g}: expected more than 0")
    local = require_local(folder, "--folder")
    local.mkdir(parents=True, exist_ok=True)
    check_writable(local, "--folder")
    with console.working("looking at the machine"):
        machine = this_machine()
    speed.print_machine(machine)
    everything.keep_machine(machine, local)
    everything.keep_checkpoint(local, quick)
    parts = everything.parts(local, machine.has_accelerator, quick, peer)
    missing = everything.measure_missing(parts, local, minutes, console.say)
    if missing:
        console.say(f"missing: {', '.join(missing)}; the same command continues")
    return int(bool(missing))


def startup(*, repeats: int = 5, json: JsonFile = None) -> int:
    """Measure how long `vit --help` takes, and the import of each twin.

    Each is measured in a new process. The exit status is 1 if one takes longer than its limit.

    Examples:
        vit bench startup

    Args:
        repeats: How often each is measured; the best is shown.
        json: File for all figures.
    """
    from vit_cli.benchmarks.startup import help_startup, import_startups

    at_least(1, repeats=repeats)
    check_results_file(json)
    found = help_startup(repeats)
    imported = ", ".join(found.imported) or "none of the large packages"
    console.say(f"vit --help: {found.seconds:.2f} s (limit {found.limit} s), imports {imported}")
    twins = import_startups(repeats)
    for twin in twins:
        console.say(
            f"import {twin.package}: {twin.seconds:.2f} s beyond {twin.beyond} (limit {twin.limit} s), which takes "
            f"{twin.beyond_seconds:.2f} s"
        )
    write_results(json, "startup", {"repeats": repeats}, {"help": found, "imports": twins})
    return int(False in (found.ok, *(twin.ok for twin in twins)))
