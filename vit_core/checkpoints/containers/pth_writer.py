"""A state dict in PyTorch's zip format, written without PyTorch, array by array.

The layout, as torch.save makes it (pytorch/caffe2/serialize/inline_container.cc and torch/serialization.py):

    archive/data.pkl                protocol 2: {name: _rebuild_tensor_v2(storage KEY, 0, shape, strides, False, {})}
    archive/byteorder               "little"
    archive/data/KEY                the elements of array number KEY, in C order
    archive/version                 "3"
    archive/.data/serialization_id  a digest of the names and checksums of all parts

Every part is stored uncompressed and begins at a multiple of 64 bytes, with an extra field "FB" before it as padding,
so that torch.load(mmap=True) can map it.
"""

import math
import struct
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from zlib import crc32

import numpy as np

from vit_core.arrays import LazyArray, LazyArrays
from vit_core.checkpoints.containers.checked_arrays import checked

_ALIGNMENT = 64
_CHUNK = 2**20
_ZIP64_FIELD = 20
"""Bytes that zipfile inserts before our extra field in a header with 64-bit sizes."""
_STORAGES = {"float32": "Float", "float64": "Double", "float16": "Half", "bfloat16": "BFloat16"}
_BIG = 2**31 - 1
"""A part with more bytes needs 64-bit sizes."""


def write_pth(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a state dict that torch.load(weights_only=True, mmap=True) opens; the same arrays give the same bytes.

    One array at a time is in memory. Raises OSError if the file cannot be written.
    """
    lazy = LazyArrays.of(arrays)
    with zipfile.ZipFile(path, "w") as archive:
        parts = _Parts(archive)
        parts.write("data.pkl", state_dict_pickle(lazy.entries))
        parts.write(".format_version", b"1")
        parts.write(".storage_alignment", str(_ALIGNMENT).encode())
        parts.write("byteorder", b"little")
        for key, (name, entry) in enumerate(lazy.entries.items()):
            array = checked(name, entry, lazy[name])
            if sys.byteorder == "big":
                array = array.byteswap()
            parts.write(f"data/{key}", array.reshape(-1).view(np.uint8).data)
            del array
        parts.write("version", b"3\n")
        parts.write(".data/serialization_id", parts.digest().encode())


class _Parts:
    """Writes the parts of an archive, and computes the digest of all parts."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._names, self._checksums = 0, 0

    def write(self, name: str, content: bytes | memoryview) -> None:
        """Writes one part, whose content begins at a multiple of 64 bytes."""
        info = zipfile.ZipInfo(f"archive/{name}")
        is_big = len(content) > _BIG
        assert self._archive.fp is not None
        start = self._archive.fp.tell() + 30 + len(info.filename.encode()) + (_ZIP64_FIELD if is_big else 0) + 4
        padding = -start % _ALIGNMENT
        info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
        info.file_size = len(content)
        with self._archive.open(info, "w", force_zip64=is_big) as part:
            for first in range(
                0, len(content), _CHUNK
            ):  # in chunks, which stay in the CPU's cache between checksum and copy
                part.write(content[first : first + _CHUNK])
        self._names = crc32(info.filename.encode(), self._names)
        self._checksums = crc32(info.CRC.to_bytes(4, "little"), self._checksums)

    def digest(self) -> str:
        """40 decimal digits, computed from the names and checksums of all parts written so far."""
        return f"{self._names:020d}{self._checksums:020d}"


def state_dict_pickle(entries: Mapping[str, LazyArray]) -> bytes:
    """The pickle of a dictionary of tensors, in which array number i is storage i."""
    code = [b"\x80\x02}"]
    if entries:
        code.append(b"(")
        for key, (name, entry) in enumerate(entries.items()):
            strides = [math.prod(entry.shape[axis + 1 :]) for axis in range(len(entry.shape))]
            code += [
                _text(name),
                b"ctorch._utils\n_rebuild_tensor_v2\n((",
                _text("storage"),
                b"ctorch\n%sStorage\n" % _STORAGES[entry.dtype].encode(),
                _text(str(key)),
                _text("cpu"),
                _integer(math.prod(entry.shape)),
                b"tQ",
                _integer(0),
                _integers(entry.shape),
                _integers(strides),
                b"\x89ccollections\nOrderedDict\n)RtR",
            ]
        code.append(b"u")
    code.append(b".")
    return b"".join(code)


def _text(value: str) -> bytes:
    content = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(content)) + content


def _integer(value: int) -> bytes:
    if value < 256:
        return b"K" + bytes([value])
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


def _integers(values: tuple[int, ...] | list[int]) -> bytes:
    return b"(" + b"".join(map(_integer, values)) + b"t"
