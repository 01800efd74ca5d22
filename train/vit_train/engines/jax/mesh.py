"""The mesh of a run: its devices along the axes data, fsdp and tensor, and each process's rows of a batch."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding

from vit_core.config import ViTConfig
from vit_core.errors import InputError
from vit_jax.sharding import AXES, spec
from vit_train import config


def make_mesh(sizes: config.Mesh, model: ViTConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of a config over all devices, or over the given ones. Raises InputError if they, or the model, cannot be
    divided so."""
    devices = jax.devices() if devices is None else devices
    lengths = sizes.over(len(devices), model).axes
    # Where an axis of the mesh does not fit into one of a TPU's torus, that one is split.
    grid = mesh_utils.create_device_mesh(tuple(lengths.values()), devices, allow_split_physical_axes=True)
    # Auto: the compiler shards arrays without a rule; explicit axes refuse the class token's concatenation.
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_shards(mesh: Mesh) -> int:
    """Number of parts that a batch is divided into."""
    return int(mesh.shape["data"] * mesh.shape["fsdp"])


@cache
def batch_sharding(mesh: Mesh, layout: str = "batch") -> NamedSharding:
    """Sharding of an array whose layout ("batch", "layers batch") has a batch axis."""
    return NamedSharding(mesh, spec(layout))


@cache
def process_rows(mesh: Mesh, size: int) -> np.ndarray:
    """Which rows of a batch of `size` this process's devices hold, ascending."""
    rows = np.concatenate([np.arange(size)[rows] for rows in _local_slices(mesh, size)])
    rows.flags.writeable = False
    return rows


def is_primary(mesh: Mesh) -> bool:
    """Whether no process of a lower number holds the same rows. Raises InputError if two processes share some rows, not
    all."""
    rows_of: dict[int, set[int]] = {}
    slices: Mapping[Any, Any] = batch_sharding(mesh).devices_indices_map((batch_shards(mesh),))
    for device, (rows,) in slices.items():
        rows_of.setdefault(device.process_index, set()).add(rows.start or 0)
    mine = rows_of[jax.process_index()]
    if any(rows != mine and rows & mine for rows in rows_of.values()):
        raise InputError(
            f"mesh.tensor: {mesh.shape['tensor']} leaves processes of {jax.local_device_count()} devices with parts of "
            "the same rows; make one a multiple of the other"
        )
    return min(process for process, rows in rows_of.items() if rows == mine) == jax.process_index()


def to_global(mesh: Mesh, x: np.ndarray, layout: str, size: int) -> jax.Array | np.ndarray:
    """The global array whose batch axis has `size` rows, from this process's rows. For one device it stays as it is:
    jax.jit puts it there in less of the host's time."""
    if mesh.size == 1:
        return x
    sharding = batch_sharding(mesh, layout)
    if not layout:  # one array for the whole batch
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])
    axis = layout.split().index("batch")
    held = process_rows(mesh, size)

    def part(index: Any) -> np.ndarray:
        first, last = index[axis].start or 0, size if index[axis].stop is None else index[axis].stop
        begin = int(np.searchsorted(held, first))
        return x[(*index[:axis], slice(begin, begin + last - first), *index[axis + 1 :])]

    return jax.make_array_from_callback((*x.shape[:axis], size, *x.shape[axis + 1 :]), sharding, part)


def to_local(x: jax.Array) -> np.ndarray:
    """This process's rows of a global array with the batch axis first."""
    held = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(held[first]) for first in sorted(held)])


def _local_slices(mesh: Mesh, size: int) -> list[slice]:
    indices = batch_sharding(mesh).addressable_devices_indices_map((size,)).values()
    slices = {(rows.start or 0): rows for index in indices if index is not None for rows in index}
    return [slices[first] for first in sorted(slices)]
