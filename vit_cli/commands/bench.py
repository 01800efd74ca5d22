"""`vit bench`: one command for each measurement."""

import os
from collections.abc import Sequence
from itertools import product
from statistics import median
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from vit_cli import console
from vit_cli.benchmarks.contestants import NAMES, Contestant, Dtype, Setting, contestants
from vit_cli.benchmarks.options import checkouts
from vit_cli.commands.bench_program import program as program  # a command of this group in its own file
from vit_cli.option_types import OptionalTarget, Target, at_least
from vit_cli.reports.formats import print_costs
from vit_cli.requirements import TRAINING, require
from vit_cli.training import require_training
from vit_cli.twins import TITLES, Framework
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
        threads: CPU threads of each contestant. Default: one for each core.
        rounds: Number of turns of each contestant.
        only: Measure this contestant. May be repeated. Default: all.
        peer: Checkout of a project that no package index has, such as big_vision=../big_vision.
        json: File for all figures. Results in it from the same machine and versions are not measured again.
        png: File for a chart.
    """
    from vit_cli.benchmarks import model_speed
    from vit_cli.benchmarks.machine import available_cores, this_machine
    from vit_cli.reports import speed

    wanted = [c for c in contestants(checkouts(peer)) if not only or c.name in only]
    for name in only:
        if name not in NAMES:
            raise InputError(f"--only: {unknown_name('contestant', name, NAMES)}")
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
    _warn_if_busy()
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


def _measured(setting: Setting, wanted: Sequence[Contestant], rounds: int, together: bool) -> "Part":
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
    """
    from vit_cli.benchmarks import conversion

    at_least(1, repeats=repeats)
    config = conversion.model_of(variant)
    check_writable(folder, "--folder")
    with console.working(f"making {variant} in several formats, and converting"):
        costs = list(conversion.measure(config, require_local(folder, "--folder"), repeats))
    print_costs(f"convert {variant} in float32, {costs[0].bytes / 1e6:,.0f} MB", costs)
    return 0


def train(
    *,
    framework: tuple[Framework, ...] = ("jax", "torch"),
    variant: Annotated[str, Parameter(metavar="NAME")] = "S/16",
    batch_size: int = 8,
    dtype: Dtype = "float32",
    steps: int = 10,
    rounds: int = 3,
    threads: int = 2,
    workers: int = 0,
) -> int:
    """Measure the training loop with its input and log, compared with the bare step.

    The run trains on generated JPEG files of 500 x 375 pixels. It is timed from its first log line to its last, so
    without its start and without the saved step at its end.

    Examples:
        vit bench train
        vit bench train --framework torch --variant B/16 --batch-size 256 --dtype bfloat16 --steps 100 --workers 14

    Args:
        framework: Framework that trains. May be repeated.
        variant: Published architecture.
        batch_size: Images of a step.
        dtype: Type of the forward and backward pass.
        steps: Number of steps in each round; at least four for each worker process.
        rounds: Number of turns of the bare step and of the loop.
        threads: Threads that make batches.
        workers: Processes that make batches, each with `threads` threads; on a GPU or TPU, use about the number of
            cores. 0: no processes.
    """
    for name in framework:
        require_training(name)
    from vit_cli.benchmarks import loop_speed

    at_least(1, batch_size=batch_size, rounds=rounds, threads=threads)
    at_least(0, workers=workers)
    at_least(loop_speed.FEWEST_STEPS * max(1, workers), steps=steps)  # each begins with batches in store
    _warn_if_busy()
    config = loop_speed.config_of(variant, batch_size, dtype, steps, rounds, threads, workers)
    rows = []
    for name in framework:
        with console.working(name) as status:
            found = loop_speed.measure(name, config, rounds, status.update)
        bare, loop = (f"{median(speeds):,.2f}" for speeds in (found.bare, found.loop))
        shares = f"{found.ratio:.0%}", f"{found.data_wait:.1%}", f"{found.mfu:.0%}"
        rows.append((TITLES[name], found.hardware, bare, loop, *shares))
    columns = ("", "on", "bare step", "loop", "loop / bare", "waits for data", "MFU")
    console.table(f"{variant}, batch {batch_size}, {dtype}; images/s", columns, rows)
    return 0


def predict(
    *,
    framework: Framework = "torch",
    variant: Annotated[str, Parameter(metavar="NAME")] = "S/16",
    repeats: int = 5,
) -> int:
    """Measure `vit predict` on generated images, compared with the model and decoding alone.

    Examples:
        vit bench predict
        vit bench predict --framework jax --variant B/16

    Args:
        framework: Framework that computes.
        variant: Published architecture, with new weights in float32.
        repeats: How often each has its turn; medians are shown.
    """
    require_training(framework)
    from vit_cli.benchmarks import prediction
    from vit_cli.reports.prediction import print_rates

    at_least(1, repeats=repeats)
    _warn_if_busy()
    config = prediction.model_of(variant)
    with console.working(f"predicting with {variant}"):
        found = prediction.measure(config, framework, repeats)
    print_rates(f"predict with {variant} in float32, {found.hardware}", found)
    return 0


def input(
    *,
    interpolation: Literal["bilinear", "bicubic"] = "bilinear",
    images: int = 64,
    rounds: int = 5,
) -> int:
    """Measure how fast training images are made, compared with torchvision.

    Measured on one core: generated JPEG files of 500 x 375 pixels become random crops of 224 x 224, half of them
    flipped; and batches are made of a set like CIFAR-10, whose decoded images are in memory, with random crops, flips
    and mixup, and with the augmentations of the recipe cifar10 (mirrored crops, flips, RandAugment, erasing, Mixup or
    CutMix).

    Examples:
        vit bench input
        vit bench input --interpolation bicubic

    Args:
        interpolation: Filter that resizes the JPEG files, also in torchvision.
        images: Number of files in a round.
        rounds: How often each has its turn; medians are shown.
    """
    require("train", *TRAINING)
    from vit_cli.benchmarks import input_speed
    from vit_cli.reports import speed

    at_least(1, images=images, rounds=rounds)
    _warn_if_busy()
    with console.working("decoding"):
        large = input_speed.measure(interpolation, images, rounds)
    speed.print_input(f"JPEG to a crop of 224, {interpolation}", large)
    with console.working("a small set"):
        small = input_speed.measure_small(rounds)
        recipe = input_speed.measure_recipe(rounds)
    speed.print_input("32 x 32 in memory: crop, flip, mixup", small)
    speed.print_input("32 x 32 in memory: as the recipe cifar10", recipe)
    return 0


def sources(*, images: int = 2000, rounds: int = 7) -> int:
    """Measure how fast each kind of source is read, on one thread, in random order.

    Examples:
        vit bench sources

    Args:
        images: Number of examples; about 100 kB each.
        rounds: How often each has its turn; medians are shown.
    """
    require("train", "tensorflow_datasets", "array_record", "pyarrow")
    from vit_cli.benchmarks import source_speed
    from vit_cli.reports import speed

    at_least(2, images=images)  # one for each of two classes
    at_least(1, rounds=rounds)
    _warn_if_busy()
    with console.working("writing and reading"):
        speeds = source_speed.measure(images, rounds)
    speed.print_sources(images, speeds, {name: source_speed.times_prepared(speeds, name) for name in speeds})
    return 0


def scaling(*, framework: tuple[Framework, ...] = ("jax", "torch"), rounds: int = 5) -> int:
    """Measure how the cost of a train step grows with batch, depth, width and tokens, and the host's share of a step.

    With an exponent of 1, doubling the size doubles the cost. The exponents of the FLOPs are shown too.

    Examples:
        vit bench scaling
        vit bench scaling --framework torch

    Args:
        framework: Framework that trains. May be repeated.
        rounds: How often each size has its turn; medians are shown.
    """
    for name in framework:
        require_training(name)
    from vit_cli.benchmarks import scaling
    from vit_cli.reports import speed

    at_least(1, rounds=rounds)
    _warn_if_busy()
    rows = {"FLOPs": scaling.exponents_of_flops()}
    with console.working("scaling") as status:
        for name in framework:
            rows[TITLES[name]] = scaling.exponents(name, rounds, status.update)
    speed.print_exponents(rows)
    with console.working("24 layers") as status:
        host = scaling.host_seconds(framework, rounds, status.update)
    speed.print_host_seconds(host)
    return 0


def all(
    *,
    folder: Target = HERE / "speed",
    minutes: float = 25,
    quick: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Measure everything, in parts of a few minutes; repeat it after an interruption.

    Each part is one of the other `vit bench` commands, with sizes for the machine's devices, and writes its output to a
    file in the folder. The same command continues after an interruption. Training reads generated JPEG files of 500 x
    375 pixels. The exit status is 1 if a part is still missing.

    Examples:
        vit bench all --quick
        vit bench all --folder speed-h100 --minutes 25

    Args:
        folder: Folder of the results; parts that are in it are not measured again.
        minutes: Time for the whole command. A part that could take longer than the remaining time is not started; each
            part gets at most 8 minutes.
        quick: Use small sizes, to check that everything works on this machine.
    """
    require("train", *TRAINING)
    from vit_cli.benchmarks import everything
    from vit_cli.benchmarks.machine import this_machine
    from vit_cli.reports import speed

    if minutes <= 0:
        raise InputError(f"--minutes {minutes:g}: expected more than 0")
    local = require_local(folder, "--folder")
    local.mkdir(parents=True, exist_ok=True)
    check_writable(local, "--folder")
    with console.working("looking at the machine"):
        machine = this_machine()
    speed.print_machine(machine)
    everything.keep_machine(machine, local)
    parts = everything.parts(local, machine.has_accelerator, quick)
    missing = everything.measure_missing(parts, local, minutes, console.say)
    if missing:
        console.say(f"missing: {', '.join(missing)}; the same command continues")
    return int(bool(missing))


def startup(*, repeats: int = 5) -> int:
    """Measure how long `vit --help` takes, and the import of each twin.

    Each is measured in a new process. The exit status is 1 if one takes longer than its limit.

    Examples:
        vit bench startup

    Args:
        repeats: How often each is measured; the best is shown.
    """
    from vit_cli.benchmarks.startup import help_startup, import_startups

    at_least(1, repeats=repeats)
    found = help_startup(repeats)
    imported = ", ".join(found.imported) or "none of the large packages"
    console.say(f"vit --help: {found.seconds:.2f} s (limit {found.limit} s), imports {imported}")
    twins = import_startups(repeats)
    for twin in twins:
        console.say(
            f"import {twin.package}: {twin.seconds:.2f} s beyond {twin.beyond} (limit {twin.limit} s), which takes "
            f"{twin.beyond_seconds:.2f} s"
        )
    return int(False in (found.ok, *(twin.ok for twin in twins)))


def _warn_if_busy() -> None:
    """Warns if other programs use a quarter of the cores or more: then only ratios are meaningful, not images/s."""
    cores = os.cpu_count() or 1
    if hasattr(os, "getloadavg") and (load := os.getloadavg()[0]) > cores / 4:
        console.say(f"warning: the machine is busy (load {load:.1f} on {cores} cores): compare ratios, not images/s")
