"""Files and folders of named arrays: safetensors, .npz, PyTorch's files, msgpack, Orbax, distributed checkpoints."""

from vit_core.checkpoints.containers.container import MODULES, Container, StandIn, walk_arrays
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
    "write_npz",
    "write_pth",
    "write_safetensors",
]
