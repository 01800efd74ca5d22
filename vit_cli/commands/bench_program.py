"""`vit bench program`"""

import os
from typing import Annotated

from cyclopts import Parameter

from vit_cli import console
from vit_cli.benchmarks.contestants import Dtype, Setting
from vit_cli.benchmarks.options import checkouts
from vit_cli.option_types import OptionalTarget, at_least
from vit_cli.requirements import require
from vit_core.errors import InputError, unknown_name
from vit_core.storage import check_new_file
from vit_train.planning import topologies


def program(
    *,
    topology: Annotated[str, Parameter(metavar="SLICE")] = "v5e:16x16",
    variant: Annotated[str, Parameter(metavar="NAME")] = "B/16",
    batch_size: int = 4096,
    dtype: Dtype = "bfloat16",
    fsdp: int = 1,
    only: Annotated[tuple[str, ...], Parameter(metavar="NAME")] = (),
    peer: Annotated[tuple[str, ...], Parameter(metavar="NAME=PATH")] = (),
    json: Annotated[OptionalTarget, Parameter(metavar="FILE")] = None,
) -> int:
    """Show what a TPU executes in a train step, compared with plain data-parallel steps.

    The steps are compiled for a slice that need not be present. The compiled programs show the FLOPs of matrix
    products, the bytes that are moved and received, and the collectives that run at the same time as products.
    Compilations are kept in ~/.cache/vit-parity.

    Examples:
        vit bench program
        vit bench program --topology v5e:4x4 --variant S/16 --batch-size 512 --peer big_vision=../big_vision

    Args:
        topology: A slice of v4, v5e, v5p, v6e or tpu7x and the chips along each side (see `vit plan --help`).
        variant: Published architecture; for an image size other than 224, write B/16@384.
        batch_size: Number of images in a step, over all chips.
        dtype: Type of the computation.
        fsdp: Chips that share the parameters in the trainer's step.
        only: Compile this step. May be repeated. Default: all.
        peer: Checkout of a project that no package index has, such as big_vision=../big_vision.
        json: File for all results.
    """
    slice_of = topologies.parse(topology)
    require("tpu", "jax", "flax", "optax", "libtpu")
    at_least(1, batch_size=batch_size, fsdp=fsdp)
    if batch_size % slice_of.devices:
        raise InputError(
            f"--batch-size {batch_size}: expected a multiple of the {slice_of.devices} chips of {topology}"
        )
    setting = Setting(variant=variant, batch_size=batch_size, dtype=dtype, compiled=False, threads=1)
    setting.model  # noqa: B018 (raises InputError for a wrong one)
    folders = checkouts(peer)
    os.environ |= topologies.WITHOUT_HARDWARE
    from vit_cli.benchmarks import programs  # imports jax, which reads the environment

    if json is not None:
        check_new_file(json, "--json", programs.WRITTEN)
    from vit_cli.reports.programs import print_programs
    from vit_train.planning.plan import target

    devices = target(slice_of)
    lowered_by, absent = programs.steps(setting, fsdp, devices, folders)
    for name in only:
        if name not in lowered_by:
            raise InputError(f"--only: {unknown_name('step', name, lowered_by)}")
    lowered_by = {name: lower for name, lower in lowered_by.items() if not only or name in only}
    with console.working("compiling") as status:
        found = programs.compile_steps(setting, fsdp, devices, lowered_by, absent, status.update)
    print_programs(found, devices.chip)
    if json is not None:
        programs.write_programs(json, found)
    return 0
