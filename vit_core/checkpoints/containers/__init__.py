"""Files and folders of named arrays: safetensors, .npz, PyTorch's files, msgpack, HDF5, Orbax, distributed ones."""

from vit_core.checkpoints.containers.container import MODULES, Container, StandIn, walk_arrays
from vit_core.checkpoints.containers.hdf5 import write_hdf5
from vit_core.checkpoints.containers.npz import write_npz
from vit_core.checkpoints.containers.opening import describe_kind, open_container, open_safetensors
from vit_core.checkpoints.containers.pth_writer import write_pth
from vit_core.checkpoints.containers.reading import readable
from vit_core.checkpoints.containers.safetensors import write_safetensors

__all__ = [
    "MODULES",
    "Container",
    "StandIn",
    "describe_kind",
    "open_container",
    "open_safetensors",
    "readable",
    "walk_arrays",
    "write_hdf5",
    "write_npz",
    "write_pth",
    "write_safetensors",
]
