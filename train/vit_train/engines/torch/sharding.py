"""How processes share a network: each has all of it (DDP), or a slice of every parameter (FSDP2)."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import vit_torch
from vit_core.errors import InputError
from vit_torch.masked_autoencoder import MaskedAutoencoder
from vit_train.config import Mesh, TrainConfig
from vit_train.config.mesh import check_divides
from vit_train.engines.torch.processes import Processes
from vit_train.engines.torch.slicing import WHOLE, Slicing

if TYPE_CHECKING:  # their import takes more than a second, so the functions that need them import them
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor


def resolve_mesh(config: TrainConfig, processes: Processes) -> Mesh:
    """The config's mesh over a number of processes. Raises InputError for a mesh that the PyTorch engine does not
    support."""
    mesh = config.mesh
    if mesh.tensor <= 1:
        mesh = mesh.over(processes.count, config.model)
    if mesh.tensor > 1:
        raise InputError(
            f"mesh.tensor: {mesh.tensor}, but PyTorch shares by data and fsdp; set mesh.tensor 1, or train in JAX"
        )
    if config.masked is not None:
        check_divides(mesh.axes, config.masked.decoder(config.model), "mae.decoder_")
    return mesh


def shard(
    model: vit_torch.ViT, mesh: Mesh, device: torch.device, compute: torch.dtype, reduce: torch.dtype | None = None
) -> None:
    """Leaves each process its slice of every parameter: FSDP2 of each block, and of the layers around the blocks.

    The slices are gathered in the compute dtype; their gradients are averaged in another, by default the parameters'.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    if mesh.data > 1:  # slices are equal along the first axis
        over = init_device_mesh(device.type, (mesh.data, mesh.fsdp), mesh_dim_names=("data", "fsdp"))
    else:
        over = init_device_mesh(device.type, (mesh.fsdp,), mesh_dim_names=("fsdp",))
    dtype = next(model.parameters()).dtype
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=reduce or dtype, cast_forward_inputs=False)
    for module in (*blocks_of(model), model):
        fully_shard(module, mesh=over, mp_policy=policy)
    prefetch(cast("list[FSDPModule]", blocks_of(model)), mesh.prefetch)


def prefetch(blocks: "list[FSDPModule]", count: int) -> None:
    """Lets each block ask for the weights of the next `count` blocks before it computes, in both directions."""
    for i, block in enumerate(blocks if count else ()):
        block.set_modules_to_forward_prefetch(blocks[i + 1 : i + 1 + count])
        block.set_modules_to_backward_prefetch(blocks[max(i - count, 0) : i][::-1])


def share(network: nn.Module, reduce: torch.dtype | None) -> DistributedDataParallel:
    """Averages the gradients of processes that each have the whole network; reduce: in which type, None for theirs."""
    parallel = DistributedDataParallel(network, broadcast_buffers=False)  # its buffers are constants
    if reduce is torch.bfloat16:
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

        parallel.register_comm_hook(None, bf16_compress_hook)
    return parallel


def blocks_of(model: vit_torch.ViT) -> list[nn.Module]:
    """The blocks of a model, those of a masked autoencoder's decoder too."""
    return [*model.blocks, *(model.decoder.blocks if isinstance(model, MaskedAutoencoder) else ())]


def is_sharded(module: nn.Module) -> "TypeGuard[FSDPModule]":
    """Whether `shard` has cut the parameters of a module into slices."""
    return hasattr(module, "unshard")


def _is_slice(p: Tensor) -> "TypeGuard[DTensor]":
    """Whether a parameter or gradient is one of those slices."""
    return hasattr(p, "device_mesh")


def accumulating(parallel: nn.Module, model: nn.Module) -> AbstractContextManager[None]:
    """Within the context gradients are summed in this process, until a later backward pass averages them over the
    processes.

    FSDP still averages over the processes that together have a model: it has no room for whole gradients.
    """
    if isinstance(parallel, DistributedDataParallel):
        return cast(AbstractContextManager[None], parallel.no_sync())
    return _without_all_reduce(model) if is_sharded(model) else nullcontext()


@contextmanager
def _without_all_reduce(model: "FSDPModule") -> Iterator[None]:
    model.set_requires_all_reduce(False)
    yield
    model.set_requires_all_reduce(True)


def local_slice(p: Tensor) -> Tensor:
    """This process's slice of a parameter or gradient, sharing its memory; all of it where it is not sliced."""
    return p.to_local().detach() if _is_slice(p) else p.detach()


def slice_like(whole: Tensor, p: Tensor) -> Tensor:
    """The slice of a whole tensor that corresponds to this process's slice of the parameter p."""
    if not _is_slice(p):
        return whole
    from torch.distributed.tensor import distribute_tensor

    # Every process has the whole tensor: it need not be sent.
    return distribute_tensor(whole, p.device_mesh, p.placements, src_data_rank=None).to_local()


def gather_slices(local: Tensor, p: Tensor) -> Tensor:
    """The whole tensor from the slices that correspond to those of the parameter p; every process has to call it."""
    if not _is_slice(p):
        return local
    from torch.distributed.tensor import DTensor

    placed = DTensor.from_local(local, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride())
    return placed.full_tensor()


def slicing_of(p: Tensor) -> Slicing:
    """The processes that have the slices of a parameter."""
    return Slicing(p.device_mesh.get_group("fsdp")) if _is_slice(p) else WHOLE
