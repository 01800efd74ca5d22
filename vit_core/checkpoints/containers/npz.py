"""NumPy's .npz files, read without unpickling anything and written array by array."""

import io
import math
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from vit_core.arrays import DTYPES, LazyArray, LazyArrays
from vit_core.checkpoints.containers.archives import Archive
from vit_core.checkpoints.containers.checked_arrays import checked
from vit_core.checkpoints.containers.container import Container, StandIn, nested
from vit_core.checkpoints.containers.reading import FileRange, readable
from vit_core.errors import InputError, abbreviate, one_line

_LONGEST_HEADER = 2**16


def read_npz(source: FileRange) -> Container:
    """Opens a .npz file. Elements of two raw bytes (V2), which is how NumPy writes bfloat16, are read as bfloat16.

    Raises InputError if it is damaged or has only Python objects. If it has other arrays too, the objects are left out
    with a note.
    """
    entries: dict[str, LazyArray | StandIn] = {}
    objects = []
    with readable(source.path, "a complete .npz file"):
        archive = Archive(source)
        for member in archive.names:
            shape, fortran, dtype, start = _header(archive.head(member, _LONGEST_HEADER))
            name = member.removesuffix(".npy")
            if dtype.hasobject:
                objects.append(one_line(name)[:60])
                entries[name] = StandIn("an array of Python objects", is_array=True)
                continue
            if dtype.kind == "V" and dtype.itemsize == 2 and dtype.names is None:
                dtype = DTYPES["bfloat16"]
            size = archive.size(member) - start
            if math.prod(shape) * dtype.itemsize != size:
                raise ValueError(f"{member} has {size} bytes for shape {list(shape)}")
            values = partial(archive.values, member, start, size)
            read = partial(_read, source, name, values, dtype, shape, "F" if fortran else "C")
            entries[name] = LazyArray(shape, dtype.name, read)
    holds = f"Python objects are never read: {abbreviate(objects)}"
    if objects and len(objects) == len(entries):
        raise InputError(f"{source.path}: {holds}; save plain arrays instead")
    return Container(source.path, "npz", nested(entries), notes=(holds,) if objects else (), separator="/")


def _header(content: bytes) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """The shape, whether the order is Fortran's, the type, and the offset of the values."""
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return *np.lib.format.read_array_header_1_0(file), file.tell()
    if version == (2, 0):
        return *np.lib.format.read_array_header_2_0(file), file.tell()
    raise ValueError(f"version {version} of the .npy format is not supported")


def _read(
    source: FileRange,
    name: str,
    values: Callable[[], np.ndarray],
    dtype: np.dtype,
    shape: tuple[int, ...],
    order: Literal["C", "F"],
) -> np.ndarray:
    """The array; memory-mapped if it is not compressed, so that one layer of a stacked array can be read alone."""
    with readable(source.path, f"complete (reading {one_line(name)[:60]})"):
        array = values().view(dtype)
        # An array that was written on another machine may be in the other byte order.
        return array.astype(dtype.newbyteorder("="), copy=False).reshape(shape, order=order)


def write_npz(path: Path, arrays: LazyArrays) -> None:
    """Writes an uncompressed .npz file, array by array; the same arrays give the same bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, entry in arrays.entries.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, checked(name, entry, arrays[name]), allow_pickle=False)
