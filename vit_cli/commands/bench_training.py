"""`vit bench train`, `input` and `scaling`: what a training run costs."""

from typing import Annotated, Literal

from cyclopts import Parameter

from vit_cli import console
from vit_cli.benchmarks.implementations import Dtype
from vit_cli.benchmarks.results import JsonFile, check_results_file, write_results
from vit_cli.option_types import OptionalSize, at_least
from vit_cli.requirements import TRAINING, require
from vit_cli.training import require_training
from vit_cli.twins import TITLES, Framework


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
    json: JsonFile = None,
) -> int:
    """Measure the training loop with its input, log and saved steps, compared with the bare step.

    The run trains on generated JPEG files of 500 x 375 pixels. It is timed from its first log line to its last, so
    without its start and without the saved step at its end; another step is saved in between. The share of the time in
    which training waits for it is shown.

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
        json: File for all figures.
    """
    for name in framework:
        require_training(name)
    from vit_cli.benchmarks import loop_speed
    from vit_cli.reports import speed

    at_least(1, batch_size=batch_size, rounds=rounds, threads=threads)
    at_least(0, workers=workers)
    check_results_file(json)
    at_least(loop_speed.FEWEST_STEPS * max(1, workers), steps=steps)  # each begins with batches in store
    speed.warn_if_busy()
    config = loop_speed.config_of(variant, batch_size, dtype, steps, rounds, threads, workers)
    found = {}
    for name in framework:
        with console.working(name) as status:
            found[TITLES[name]] = loop_speed.measure(name, config, rounds, status.update)
    speed.print_loops(f"{variant}, batch {batch_size}, {dtype}; images/s", found)
    settings = {"variant": variant, "batch_size": batch_size, "dtype": dtype, "steps": steps, "rounds": rounds}
    write_results(json, "train", {**settings, "threads": threads, "workers": workers}, found)
    return 0


def input(
    *,
    interpolation: Literal["bilinear", "bicubic"] = "bilinear",
    file_size: OptionalSize = None,
    images: int = 64,
    rounds: int = 5,
    json: JsonFile = None,
) -> int:
    """Measure how fast training images are made, compared with torchvision.

    Measured on one core: generated JPEG files of 375 x 500 pixels (height x width) become random crops of 224 x 224,
    half of them flipped, with `--augmentation.reduced-decode` too; and batches are made of a set like CIFAR-10, whose
    decoded images are in memory, with random crops, flips and mixup, and with the augmentations of the recipe cifar10
    (mirrored crops, flips, RandAugment, erasing, Mixup or CutMix).

    Examples:
        vit bench input
        vit bench input --interpolation bicubic
        vit bench input --file-size 3024x4032 --images 4

    Args:
        interpolation: Filter that resizes the JPEG files, also in torchvision.
        file_size: Size of the JPEG files in pixels, height x width (default: 375x500).
        images: Number of files in a round.
        rounds: How often each has its turn; medians are shown.
        json: File for all figures.
    """
    require("train", *TRAINING)
    from vit_cli.benchmarks import generated_jpegs, input_speed
    from vit_cli.reports import speed

    at_least(1, images=images, rounds=rounds)
    check_results_file(json)
    speed.warn_if_busy()
    with console.working("decoding"):
        height, width = (
            (file_size, file_size) if isinstance(file_size, int) else file_size or generated_jpegs.SIZE[::-1]
        )
        large = input_speed.measure(interpolation, images, rounds, (width, height))
    speed.print_input(f"JPEG of {height} x {width} to a crop of 224, {interpolation}", large)
    with console.working("a small set"):
        small = input_speed.measure_small(rounds)
        recipe = input_speed.measure_recipe(rounds)
    speed.print_input("32 x 32 in memory: crop, flip, mixup", small)
    speed.print_input("32 x 32 in memory: as the recipe cifar10", recipe)
    settings = {"interpolation": interpolation, "size": [height, width], "images": images, "rounds": rounds}
    write_results(json, "input", settings, {"jpeg": large, "small_set": small, "cifar10": recipe})
    return 0


def scaling(
    *,
    framework: tuple[Framework, ...] = ("jax", "torch"),
    rounds: int = 5,
    json: JsonFile = None,
) -> int:
    """Measure how the cost of a train step grows with batch, depth, width and tokens, and the host's share of a step.

    With an exponent of 1, doubling the size doubles the cost. The exponents of the FLOPs are shown too.

    Examples:
        vit bench scaling
        vit bench scaling --framework torch

    Args:
        framework: Framework that trains. May be repeated.
        rounds: How often each size has its turn; medians are shown.
        json: File for all figures.
    """
    for name in framework:
        require_training(name)
    from vit_cli.benchmarks import scaling
    from vit_cli.reports import speed

    at_least(1, rounds=rounds)
    check_results_file(json)
    speed.warn_if_busy()
    rows = {"FLOPs": scaling.exponents_of_flops()}
    with console.working("scaling") as status:
        for name in framework:
            rows[TITLES[name]] = scaling.exponents(name, rounds, status.update)
    speed.print_exponents(rows)
    with console.working("24 layers") as status:
        host = scaling.host_seconds(framework, rounds, status.update)
    speed.print_host_seconds(host)
    write_results(json, "scaling", {"rounds": rounds}, {"exponents": rows, "host_seconds": host})
    return 0
