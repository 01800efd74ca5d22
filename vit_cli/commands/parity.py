"""`vit parity`"""

from typing import Annotated, Literal

from cyclopts import Parameter

from vit_cli import console
from vit_cli.option_types import AS_RECORDED, OptionalPlace, Place, Reading, ReadingOptions, at_least
from vit_cli.reports.parity import print_oracle_report, print_parity
from vit_cli.twins import TITLES, Framework, twin
from vit_core import parity as measures
from vit_core.checkpoints import Checkpoint
from vit_core.checkpoints.comparison import randomize_constants, trace_each, trace_twins
from vit_core.errors import InputError, abbreviate

Dtype = Literal["float64", "float32", "bfloat16"]


def parity(
    checkpoint: Place,
    other: OptionalPlace = None,
    /,
    *,
    dtype: Dtype = "float64",
    twins: tuple[Framework, Framework] = ("jax", "torch"),
    seed: int = 0,
    every_parameter: Annotated[bool, Parameter(negative=())] = False,
    reading: ReadingOptions = AS_RECORDED,
) -> int:
    """Compare the JAX and the PyTorch model on one checkpoint, layer by layer.

    Both run on the same random images. Every stage, the loss and the gradient of every parameter are compared. With two
    checkpoints, each runs in one of the twins, and each stage is compared.

    The exit status is 1 if a difference exceeds its bound: 1e-12 everywhere in float64; 1e-5 of the outputs in float32;
    in bfloat16, the larger error of the outputs against float64 is at most three times the smaller one.

    Examples:
        vit parity runs/demo/pretrain
        vit parity ViT-B_16.npz hub_folder
        vit parity runs/cifar10 --dtype bfloat16

    Args:
        checkpoint: Checkpoint of any format.
        other: A second checkpoint, of any format, to compare it with in float64. --set is for both, --from, --part and
            --base are for the first.
        dtype: Type of the parameters and of the computation.
        twins: The twin that runs the first model, and the twin that runs the second.
        seed: Seed of the random images.
        every_parameter: Print the gradient of each parameter (float64), instead of the worst one of each block.
        reading: How the checkpoint is opened.
    """
    at_least(0, seed=seed)
    if other is not None and dtype != "float64":
        raise InputError(f"--dtype {dtype}: two checkpoints are compared in float64; leave out --dtype")
    opened = [reading.open_and_report(checkpoint)]
    opened += [Reading(fields=reading.fields).open_and_report(other)] if other is not None else []
    packages = [twin(name) for name in twins]
    if len(opened) == 2:
        with console.working("running both"):
            first, second = trace_each(opened, packages, seed)
        report = measures.compare(first, second)
        print_parity(f"{checkpoint} and {other}, float64", report, every_parameter)
        return int(not report.ok)
    return _compare_twins(str(checkpoint), opened[0], twins, dtype, seed, every_parameter)


def _compare_twins(
    name: str, checkpoint: Checkpoint, twins: tuple[Framework, Framework], dtype: Dtype, seed: int, every: bool
) -> int:
    """Runs one checkpoint in two twins, and returns the exit status."""
    packages = [twin(each) for each in twins]
    random, constant = randomize_constants(checkpoint, seed)
    if constant:
        names = abbreviate(constant, most=4)
        console.say(f"constant parameters, given random values so that they affect the outputs: {names}")
    title = f"{name}: {' and '.join(TITLES[each] for each in twins)}"
    with console.working("running both twins"):
        first, second = trace_twins(random, packages, dtype, seed)
    if dtype == "float64":
        report = measures.compare(first, second)
        print_parity(f"{title}, float64", report, every)
        return int(not report.ok)
    with console.working("running the float64 oracle"):
        (oracle,) = trace_twins(random, packages[1:], "float64", seed)
    rows = measures.against_oracle(first, second, oracle, dtype)
    print_oracle_report(f"{title} in {dtype}, against float64", rows, [TITLES[each] for each in twins])
    return int(not all(row.ok for row in rows))
