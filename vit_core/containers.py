"""Files of named arrays, whatever they hold: safetensors (in shards too), NumPy's .npz, PyTorch's .pth and .bin.

Nothing is read before it is asked for but names, shapes and types, and files are untrusted: no pickle, sizes checked
before memory is taken, every fault one line. Writing goes array by array, and so can make files larger than memory.
"""

import json
import math
import mmap
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
from safetensors import safe_open

from vit_core.arrays import DTYPES, LazyArray, LazyArrays, contiguous
from vit_core.errors import InputError
from vit_core.places import StoreError, here

_SAFETENSORS_TYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
_FOLDER = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""What a folder's weights are called, the first one first."""
_LONGEST_INDEX = 2**26


@dataclass(frozen=True)
class Container:
    """An opened file."""

    path: Path
    arrays: LazyArrays
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What a person should know of how it was read."""


def open_container(path: Path) -> Container:
    """The arrays of a file, recognised by its first bytes, or of a folder's weights. InputError for any other."""
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; expected a checkpoint")
    if path.is_dir():
        path = _weights_of(path)
    if path.name.endswith(".index.json"):
        return _open_shards(path)
    with readable(path, "a file of weights"), path.open("rb") as file:
        start = file.read(16)
    if start[:2] == b"PK":
        with readable(path, "a whole .npz or .pth file"), zipfile.ZipFile(path) as archive:
            arrays_only = all(name.endswith(".npy") for name in archive.namelist())
        return open_npz(path) if arrays_only else _open_pth(path)
    if start[8:9] == b"{":
        return open_safetensors(path)
    if start[:1] == b"\x80":  # the pickle that PyTorch wrote before 1.6
        return _open_pth(path)
    raise InputError(f"{path}: neither safetensors nor .npz nor .pth; expected one of them, or a checkpoint folder")


def _weights_of(folder: Path) -> Path:
    for name in _FOLDER:
        if (folder / name).is_file():
            return folder / name
    found = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".npz", ".pth", ".bin"))
    if len(found) == 1:
        return found[0]
    those = f"; name one of {', '.join(path.name for path in found[:5])}" if found else ""
    raise InputError(f"{folder}: not a checkpoint folder (no {_FOLDER[0]} or the like){those}")


@contextmanager
def readable(path: Path, what: str) -> Iterator[None]:
    """Whatever a decoder makes of a broken file (each has its own words for it) as one InputError."""
    try:
        yield
    except (InputError, StoreError):
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    except MemoryError:
        raise InputError(f"{path}: does not fit in memory") from None
    except Exception as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path}: not {what} ({said}); copy or save it again") from None


def open_safetensors(path: Path) -> Container:
    """A safetensors file."""
    with readable(path, "a whole safetensors file"):
        with here(path) as local:
            file = safe_open(local, framework="np")
        views = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        entries = {}
        for name, view in views.items():
            kind = view.get_dtype()
            read = partial(_read, path, file.get_tensor, name)
            entries[name] = LazyArray(tuple(view.get_shape()), _SAFETENSORS_TYPES.get(kind, kind), read)
        return Container(path, LazyArrays(entries), file.metadata() or {})


def _open_shards(index: Path) -> Container:
    """The shards that an index names, which stand beside it."""
    with readable(index, "an index of shards"):
        if index.stat().st_size > _LONGEST_INDEX:
            raise ValueError("too long")
        shard_of = json.loads(index.read_text())["weight_map"]
        opened = {}
        for shard in sorted(set(shard_of.values())):
            if Path(shard).name != shard or shard.endswith(".index.json"):
                raise ValueError(f"shard '{shard}' is not a file beside it")
            opened[shard] = open_container(index.parent / shard).arrays
        return Container(index, LazyArrays({name: opened[shard].entries[name] for name, shard in shard_of.items()}))


def open_npz(path: Path) -> Container:
    """A .npz file. bfloat16, which NumPy writes as two raw bytes (V2), is read as what it is."""
    entries = {}
    with readable(path, "a whole .npz file"), zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            with archive.open(info) as member:
                shape, fortran, dtype = _npy_header(member)
                start = member.tell()
            if dtype.hasobject:
                raise InputError(f"{path}: {info.filename} holds Python objects, which are never read")
            if dtype.kind == "V" and dtype.itemsize == 2 and dtype.names is None:
                dtype = DTYPES["bfloat16"]
            if math.prod(shape) * dtype.itemsize != info.file_size - start:
                raise ValueError(f"{info.filename} has {info.file_size - start} bytes for shape {list(shape)}")
            how = partial(_read_npy, path, info, start, dtype, shape, "F" if fortran else "C")
            name = info.filename.removesuffix(".npy")
            entries[name] = LazyArray(shape, dtype.name, partial(_read, path, how))
    return Container(path, LazyArrays(entries))


def _npy_header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(member)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(member)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(member)
    raise ValueError(f".npy format {version}")


def _read_npy(
    path: Path, info: zipfile.ZipInfo, start: int, dtype: np.dtype, shape: tuple[int, ...], order: str
) -> np.ndarray:
    if info.compress_type == zipfile.ZIP_STORED:
        # Mapped, so that one layer of a stacked array can be had without the others.
        with path.open("rb") as file:
            file.seek(info.header_offset + 26)
            lengths = np.frombuffer(file.read(4), "<u2")
            offset = info.header_offset + 30 + int(lengths.sum()) + start
            whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        array = np.frombuffer(whole, dtype, math.prod(shape), offset)
    else:
        with zipfile.ZipFile(path) as archive:
            array = np.frombuffer(bytearray(archive.read(info)), dtype, offset=start)
    array = array.astype(dtype.newbyteorder("="), copy=False)  # one written on another machine may be the other way
    return array.reshape(shape, order=order)  # type: ignore[call-overload]


def _open_pth(path: Path) -> Container:
    from vit_core import pth

    arrays, notes = pth.read(path)
    entries = {
        name: LazyArray(entry.shape, entry.dtype, partial(_read, path, entry.read)) for name, entry in arrays.items()
    }
    return Container(path, LazyArrays(entries), notes=notes)


def _read(path: Path, how: Callable[..., np.ndarray], *names: str) -> np.ndarray:
    with readable(path, "whole"):
        return how(*names)


def write_safetensors(path: Path, arrays: LazyArrays, metadata: Mapping[str, str]) -> None:
    """A safetensors file, written array by array. (The library's own writer wants all in memory, twice.)"""
    kinds = {name: kind for kind, name in _SAFETENSORS_TYPES.items()}
    entries = dict(sorted(arrays.entries.items(), key=lambda item: -DTYPES[item[1].dtype].itemsize))  # keeps alignment
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, entry in entries.items():
        start, end = end, end + math.prod(entry.shape) * DTYPES[entry.dtype].itemsize
        header[name] = {"dtype": kinds[entry.dtype], "shape": list(entry.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, entry in entries.items():
            file.write(_checked(name, entry, arrays[name]).reshape(-1).view(np.uint8).data)


def write_npz(path: Path, arrays: LazyArrays) -> None:
    """An uncompressed .npz file, written array by array; the same arrays give the same bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, entry in arrays.entries.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, _checked(name, entry, arrays[name]), allow_pickle=False)


def _checked(name: str, entry: LazyArray, array: np.ndarray) -> np.ndarray:
    """Ready to be written. What was said of it before it was read has to be true, or the file would be none."""
    if (array.shape, array.dtype.name) != (entry.shape, entry.dtype):
        raise AssertionError(f"{name} is {array.dtype} {array.shape}, expected {entry.dtype} {entry.shape}")
    return contiguous(array)
