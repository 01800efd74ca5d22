"""Reads and writes HDF5 files of plain arrays, as Keras 3 saves weights (`NAME.weights.h5`).

Only arrays that are in the file itself, whole and without compression, are read, which is how Keras writes all of them.
Links, virtual arrays and arrays in other files are refused, because they could name any file of the machine. h5py is
needed to find the arrays; their values are then read from the file like those of other formats.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

from vit_core.arrays import DTYPES, LazyArray, LazyArrays
from vit_core.checkpoints.containers.checked_arrays import checked
from vit_core.checkpoints.containers.container import Container, nested
from vit_core.checkpoints.containers.reading import FileRange, readable
from vit_core.errors import InputError, one_line

_KERAS_2 = ("layer_names", "keras_version")
"""Attributes that Keras before version 3, and TensorFlow's models of transformers, write at the top of a file."""
LAYER_NAME = "name"
"""The attribute in which Keras stores the name of a layer, at the group of its arrays ("vars")."""


def read_hdf5(source: FileRange) -> Container:
    """Opens an HDF5 file. The metadata are the names of its layers: "layers/dense/vars" -> "predictions".

    Raises InputError if it is damaged, in the layout of Keras 2, or contains something else than plain arrays, and if
    h5py is not installed.
    """
    h5py, names = _h5py(source.path), dict[str, str]()
    with readable(source.path, "a complete HDF5 file"), source.open() as file, _opened(h5py, file) as root:
        if any(name in root.attrs for name in _KERAS_2) or "model_weights" in root:
            raise InputError(
                f"{source.path}: an HDF5 file in the layout of Keras 2, expected that of Keras 3; open it with the "
                "library that wrote it, and save it with model.save_weights('NAME.weights.h5') in Keras 3, or as "
                ".safetensors"
            )
        found = dict(_members(h5py, root, source))
        entries = {name: _lazy(item, name, source) for name, item in found.items() if isinstance(item, h5py.Dataset)}
        for name, item in found.items():
            if isinstance(item, h5py.Group) and isinstance(named := item.attrs.get(LAYER_NAME), str):
                names[name] = named
    return Container(source.path, "hdf5", nested(entries), names, separator="/")


def _h5py(path: object) -> ModuleType:
    try:
        import h5py
    except ImportError:
        step = "pip install 'vit-parity[keras]', or convert it where h5py is installed"
        raise InputError(f"{path}: an HDF5 file, which needs the package h5py; {step}") from None
    return h5py


def _opened(h5py: ModuleType, file: BinaryIO) -> Any:
    try:
        return h5py.File(file, "r")
    except OSError as error:  # h5py's for a damaged file too
        raise ValueError(str(error)) from None


def _members(h5py: ModuleType, root: Any, source: FileRange) -> Iterator[tuple[str, Any]]:
    """Every group and array, with its path. Raises InputError for a link to another path or file, and for a group or an
    array with two paths, because nested ones would never end."""
    seen, left = {h5py.h5o.get_info(root.id).addr}, [("", root)]
    while left:
        prefix, group = left.pop()
        for name in group:
            path = f"{prefix}{name}"
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise InputError(
                    f"{source.path}: {one_line(path)[:100]} is a link, which is never followed; save the arrays "
                    "themselves (model.save_weights)"
                )
            item = group[name]
            if (address := h5py.h5o.get_info(item.id).addr) in seen:
                raise InputError(f"{source.path}: {one_line(path)[:100]} has two paths in the file; save it again")
            seen.add(address)
            yield path, item
            if isinstance(item, h5py.Group):
                left.append((f"{path}/", item))


def _lazy(item: Any, name: str, source: FileRange) -> LazyArray:
    """An array, of which the file is read on access."""
    shown = one_line(name)[:100]
    if item.is_virtual or item.external:
        raise InputError(f"{source.path}: {shown} is stored in other files, which are never opened; save it again")
    dtype = DTYPES["bfloat16"] if item.attrs.get("dtype") == "bfloat16" and item.dtype.itemsize == 2 else item.dtype
    if item.dtype.hasobject or (dtype.kind == "V" and dtype != DTYPES["bfloat16"]):
        raise ValueError(f"{shown} has the type {dtype}, expected numbers")
    offset, size = item.id.get_offset(), item.size * dtype.itemsize
    if offset is None or item.id.get_storage_size() != size:
        raise InputError(
            f"{source.path}: {shown} is compressed or in chunks, or has no values; expected whole arrays, as Keras "
            "writes them; h5repack -l CONTI -f NONE changes the file"
        )
    values = source.part(offset, size)  # raises ValueError for an array that the file is too short for
    return LazyArray(item.shape, dtype.name, partial(_read, values, dtype, item.shape, shown))


def _read(values: FileRange, dtype: np.dtype, shape: tuple[int, ...], shown: str) -> np.ndarray:
    with readable(values.path, f"complete (reading {shown})"):
        # An array that was written on another machine may be in the other byte order.
        return values.map().view(dtype).astype(dtype.newbyteorder("="), copy=False).reshape(shape)


def write_hdf5(path: Path, arrays: LazyArrays) -> None:
    """Writes an HDF5 file, array by array. bfloat16 is marked by an attribute, as Keras does, because HDF5 has no such
    type. Raises InputError if h5py is not installed."""
    with _h5py(path).File(path, "w") as root:
        for name, entry in arrays.entries.items():
            array = checked(name, entry, arrays[name])
            written = root.create_dataset(name, data=array)
            if entry.dtype == "bfloat16":
                written.attrs["dtype"] = entry.dtype
