"""The mesh of a run: its devices along the axes data, fsdp and tensor, and who makes which rows of a batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding

from vit_core.errors import InputError
from vit_jax.sharding import AXES, spec

from .config import TrainConfig


def make_mesh(config: TrainConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Of all devices, or of these. InputError where they, or the model, cannot be shared so."""
    devices = jax.devices() if devices is None else devices
    sizes = config.mesh.over(len(devices), config.model).axes
    # A TPU's torus is cut where an axis of the mesh does not go into one of its own.
    grid = mesh_utils.create_device_mesh(tuple(sizes.values()), devices, allow_split_physical_axes=True)
    # Auto: the compiler places what the rules do not name; explicit axes refuse the class token's concatenation.
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def shares(mesh: Mesh) -> int:
    """How many parts a batch is cut in."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def by_batch(mesh: Mesh, layout: str = "batch") -> NamedSharding:
    """Where an array with a batch axis lies."""
    return NamedSharding(mesh, spec(layout))


def rows(mesh: Mesh, size: int) -> np.ndarray:
    """Which rows of a batch of `size` this process's devices hold, ascending."""
    return np.concatenate([np.arange(size)[cut] for cut in _cuts(mesh, size)])


def primary(mesh: Mesh) -> bool:
    """Whether no process of a lower number holds the same rows. InputError where two share some but not all."""
    of_process: dict[int, set[int]] = {}
    cuts: Mapping[Any, Any] = by_batch(mesh).devices_indices_map((shares(mesh),))
    for device, (cut,) in cuts.items():
        of_process.setdefault(device.process_index, set()).add(cut.start or 0)
    mine = of_process[jax.process_index()]
    if any(held != mine and held & mine for held in of_process.values()):
        raise InputError(
            f"mesh.tensor: {mesh.shape['tensor']} leaves processes of {jax.local_device_count()} devices with parts of "
            "the same rows; make one a multiple of the other"
        )
    return min(process for process, held in of_process.items() if held == mine) == jax.process_index()


def from_rows(mesh: Mesh, x: np.ndarray, layout: str, size: int) -> jax.Array:
    """The global array whose batch axis has `size` rows, from this process's."""
    sharding, axis = by_batch(mesh, layout), layout.split().index("batch")
    held = rows(mesh, size)

    def cut(index: Any) -> np.ndarray:
        first, last = index[axis].start or 0, size if index[axis].stop is None else index[axis].stop
        begin = int(np.searchsorted(held, first))
        return x[(*index[:axis], slice(begin, begin + last - first), *index[axis + 1 :])]

    return jax.make_array_from_callback((*x.shape[:axis], size, *x.shape[axis + 1 :]), sharding, cut)


def to_rows(x: jax.Array) -> np.ndarray:
    """This process's rows of an array with the batch axis first."""
    held = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(held[first]) for first in sorted(held)])


def _cuts(mesh: Mesh, size: int) -> list[slice]:
    indices = by_batch(mesh).addressable_devices_indices_map((size,)).values()
    found = {(cut.start or 0): cut for index in indices if index is not None for cut in index}
    return [found[first] for first in sorted(found)]
