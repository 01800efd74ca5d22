"""How processes share a network: each holds it whole (DDP), or a slice of every parameter (FSDP2)."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import vit_torch
from vit_core.errors import InputError

from .config import Mesh, TrainConfig
from .processes_torch import Processes

WHOLE = ("adafactor", "lamb")
"""Optimizers that look at whole matrices."""


def mesh_of(config: TrainConfig, processes: Processes) -> Mesh:
    """The config's mesh over so many processes. InputError for what PyTorch cannot do."""
    mesh, optimizer = config.mesh, config.optimizer.name
    if mesh.tensor <= 1:
        mesh = mesh.over(processes.count, config.model)
    if mesh.tensor > 1:
        raise InputError(
            f"mesh.tensor: {mesh.tensor}, but PyTorch shares by data and fsdp; set mesh.tensor 1, or train in JAX"
        )
    if mesh.fsdp > 1 and optimizer in WHOLE:
        raise InputError(
            f"optimizer.name: {optimizer} needs whole matrices, which mesh.fsdp {mesh.fsdp} cuts; use adamw, lion or "
            "sgd, or mesh.fsdp 1, or train in JAX"
        )
    return mesh


def shard(model: vit_torch.ViT, mesh: Mesh, device: torch.device, compute: torch.dtype) -> None:
    """Leaves each process its slice of every parameter: FSDP2 of each block and of what is around them.

    The slices are gathered in the compute dtype; their gradients are averaged in the parameters'.
    """
    if mesh.data > 1:  # slices are the same along the first axis
        over = init_device_mesh(device.type, (mesh.data, mesh.fsdp), mesh_dim_names=("data", "fsdp"))
    else:
        over = init_device_mesh(device.type, (mesh.fsdp,), mesh_dim_names=("fsdp",))
    dtype = next(model.parameters()).dtype
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=dtype, cast_forward_inputs=False)
    for module in (*model.blocks, model):
        fully_shard(module, mesh=over, mp_policy=policy)


def waiting(shared: nn.Module, model: nn.Module) -> AbstractContextManager[None]:
    """Within it gradients add up here, before a later backward pass averages them over the processes.

    FSDP averages over the processes that make up a whole each time: it has no room for a whole gradient.
    """
    if isinstance(shared, DistributedDataParallel):
        return cast(AbstractContextManager[None], shared.no_sync())
    return _among_slices_only(model) if isinstance(model, FSDPModule) else nullcontext()


@contextmanager
def _among_slices_only(model: FSDPModule) -> Iterator[None]:
    model.set_requires_all_reduce(False)
    yield
    model.set_requires_all_reduce(True)


def part(p: Tensor) -> Tensor:
    """This process's slice of a parameter or gradient, in its memory; all of it where it is whole."""
    return p.to_local().detach() if isinstance(p, DTensor) else p.detach()


def part_of(whole: Tensor, p: Tensor) -> Tensor:
    """The slice of a tensor that goes with the slice of the parameter p."""
    if not isinstance(p, DTensor):
        return whole
    # Every process has the whole: none needs to be sent it.
    return distribute_tensor(whole, p.device_mesh, p.placements, src_data_rank=None).to_local()


def whole(part: Tensor, p: Tensor) -> Tensor:
    """Undoes part_of; every process must ask."""
    if not isinstance(p, DTensor):
        return part
    found = DTensor.from_local(part, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride())
    return found.full_tensor()


def summed(x: Tensor, p: Tensor) -> Tensor:
    """The sum of what was found in each slice of the parameter p."""
    if isinstance(p, DTensor):
        dist.all_reduce(x, group=p.device_mesh.get_group("fsdp"))
    return x
