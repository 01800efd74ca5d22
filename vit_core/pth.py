"""PyTorch's own files (.pth, .pt, .bin), through torch: the only module of vit_core that calls it, when it has to.

They are pickles. torch.load(weights_only=True) makes tensors of them and nothing else; of Python's other classes only
argparse.Namespace is let through, which DINO, MAE and DeiT keep their settings in.
"""

import zipfile
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_core.arrays import DTYPES, LazyArray
from vit_core.errors import InputError, some

if TYPE_CHECKING:
    from torch import Tensor

_NESTED = ("state_dict_ema", "model_ema", "teacher", "model", "state_dict", "module", "student")
"""Where training scripts keep the weights, the best first: an average, and DINO's teacher, before what was trained."""


def read(path: Path) -> tuple[dict[str, LazyArray], tuple[str, ...]]:
    """The arrays of a state dict, wherever it is nested, and notes of what else there was."""
    torch = imported(path)
    try:
        with torch.serialization.safe_globals([Namespace]):
            loaded = torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
    except MemoryError:
        raise
    except Exception as error:
        said = next((line for line in str(error).splitlines() if "GLOBAL" in line), " ".join(str(error).split()))
        raise InputError(f"{path}: cannot be read as weights alone ({said.strip()[:200]})") from None
    tensors, notes = _state_dict(path, loaded, torch)
    return {name: _lazy(path, name, tensor) for name, tensor in tensors.items()}, notes


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """A state dict as torch.save writes it."""
    torch = imported(path)
    try:
        torch.save({name: _tensor(torch, array) for name, array in arrays.items()}, path)
    except RuntimeError as error:  # so it calls what the file system refuses
        raise OSError(str(error)) from None


def imported(path: Path) -> Any:
    """PyTorch. InputError where it is not installed."""
    try:
        import torch
    except ImportError:
        raise InputError(f"{path}: a .pth file takes PyTorch: pip install 'vit-parity[torch]'") from None
    return torch


def _state_dict(path: Path, loaded: object, torch: Any) -> tuple[dict[str, "Tensor"], tuple[str, ...]]:
    notes: list[str] = []
    while isinstance(loaded, Mapping):
        key = next((key for key in _NESTED if isinstance(loaded.get(key), Mapping)), None)
        if key is None:
            tensors = {str(name): value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
            if tensors:
                return tensors, tuple(notes)
            break
        others = [str(name)[:60] for name in loaded if name != key]
        notes.append(f"read '{key}'" + (f"; left out: {some(others)}" if others else ""))
        loaded = loaded[key]
    raise InputError(f"{path}: holds no state dict of tensors, nor one under {', '.join(_NESTED)}")


def _lazy(path: Path, name: str, tensor: "Tensor") -> LazyArray:
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise InputError(f"{path}: {name[:60]} has shape {list(tensor.shape)}, more than the file holds of it")
    tensor, kind = tensor.detach(), str(tensor.dtype).removeprefix("torch.")
    return LazyArray(tuple(tensor.shape), kind, lambda: _array(tensor, kind))


def _array(tensor: "Tensor", kind: str) -> np.ndarray:
    if kind == "bfloat16":
        return tensor.contiguous().view(imported(Path()).int16).numpy().view(DTYPES[kind]).copy()
    return np.array(tensor.numpy())


def _tensor(torch: Any, array: np.ndarray) -> "Tensor":
    array = np.require(array, requirements=["C", "W"])
    tensor: Tensor
    if array.dtype == DTYPES["bfloat16"]:
        tensor = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(array)
    return tensor
