"""Flax's msgpack files (flax.serialization). Arrays stay in the file until they are used.

The format (github.com/msgpack/msgpack/blob/master/spec.md) has one type byte before each value. Flax adds three types:
1, an array, packed as (shape, name of its type, bytes in C order); 2, a complex number; 3, a NumPy scalar, packed as an
array. An array of more than 2**30 bytes is a mapping with "__msgpack_chunked_array__", "shape", "chunks".
"""

import math
import struct
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from vit_core.arrays import LazyArray
from vit_core.checkpoints.containers.container import Container, StandIn
from vit_core.checkpoints.containers.element_types import ELEMENT_TYPES
from vit_core.checkpoints.containers.pickle_reader import Bytes
from vit_core.checkpoints.containers.reading import FileRange, readable
from vit_core.errors import InputError

_MOST_VALUES = 1_000_000
_DEEPEST = 50
_LONGEST_KEY = 1000
_LONGEST_BYTES = 4096
_CHUNKED = "__msgpack_chunked_array__"
_NDARRAY, _COMPLEX, _SCALAR = 1, 2, 3

_NUMBERS = {
    0xCA: ">f",
    0xCB: ">d",
    0xCC: ">B",
    0xCD: ">H",
    0xCE: ">I",
    0xCF: ">Q",
    0xD0: ">b",
    0xD1: ">h",
    0xD2: ">i",
    0xD3: ">q",
}
_LENGTHS = {
    0xC4: ("bytes", 1),
    0xC5: ("bytes", 2),
    0xC6: ("bytes", 4),
    0xC7: ("extension", 1),
    0xC8: ("extension", 2),
    0xC9: ("extension", 4),
    0xD9: ("text", 1),
    0xDA: ("text", 2),
    0xDB: ("text", 4),
    0xDC: ("list", 2),
    0xDD: ("list", 4),
    0xDE: ("mapping", 2),
    0xDF: ("mapping", 4),
}
"""Type byte -> kind of the value, and the number of bytes of the length that follows."""
_FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}


def is_msgpack(head: bytes) -> bool:
    """Whether a file begins with a mapping whose first key is text."""
    if not head:
        return False
    first = {0xDE: 3, 0xDF: 5}.get(head[0], 1 if 0x81 <= head[0] <= 0x8F else 0)
    return bool(first) and len(head) > first and (0xA0 <= head[first] <= 0xBF or head[first] in (0xD9, 0xDA))


def read_msgpack(source: FileRange) -> Container:
    """Opens a file of flax.serialization. Raises InputError if it is damaged or has no arrays."""
    with readable(source.path, "a complete Flax msgpack file"):
        tree = load_msgpack(source)
        if not isinstance(tree, dict):
            raise ValueError(f"it has one {type(tree).__name__} instead of a mapping")
    container = Container(source.path, "msgpack", tree, separator="/")
    if not container.arrays:
        raise InputError(f"{source.path}: a msgpack file without arrays; expected one of flax.serialization")
    return container


def load_msgpack(source: FileRange) -> Any:
    """The tree of a msgpack file, with lazy arrays. Raises ValueError or another exception if it is damaged; callers
    use `readable`."""
    with source.view() as content:
        reader = _Reader(source, content)
        tree = reader.value(0)
        if reader.position != source.length:
            raise ValueError(f"{source.length - reader.position} bytes follow its end")
    return tree


class _Reader:
    """Reads values one after another; `position` is where the next one begins."""

    def __init__(self, source: FileRange, content: Bytes, position: int = 0) -> None:
        self.position = position
        self._source, self._content = source, content
        self._values = 0

    def value(self, depth: int) -> Any:
        """The next value."""
        self._values += 1
        if self._values > _MOST_VALUES or depth > _DEEPEST:
            raise ValueError(f"it has more than {_MOST_VALUES:,} values or {_DEEPEST} levels")
        kind = self._take(1)[0]
        if kind < 0x80 or kind >= 0xE0:
            return kind if kind < 0x80 else kind - 256
        if kind < 0x90:
            return self._mapping(kind & 15, depth)
        if kind < 0xA0:
            return self._list(kind & 15, depth)
        if kind < 0xC0:
            return self._text(kind & 31)
        if kind in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[kind]
        if kind in _NUMBERS:
            return struct.unpack(_NUMBERS[kind], self._take(struct.calcsize(_NUMBERS[kind])))[0]
        if kind in _FIXED_EXTENSIONS:
            return self._extension(_FIXED_EXTENSIONS[kind])
        if kind not in _LENGTHS:
            raise ValueError(f"unknown type {kind}")
        what, size = _LENGTHS[kind]
        length = int.from_bytes(self._take(size), "big")
        if what == "mapping":
            return self._mapping(length, depth)
        if what == "list":
            return self._list(length, depth)
        return {"text": self._text, "bytes": self._bytes, "extension": self._extension}[what](length)

    def _take(self, length: int) -> bytes:
        content = self._content[self.position : self.position + length]
        if len(content) != length:
            raise ValueError("it is truncated")
        self.position += length
        return content

    def _skip(self, length: int) -> int:
        """Skips bytes; returns where they begin."""
        start = self.position
        if start + length > len(self._content):
            raise ValueError("it is truncated")
        self.position += length
        return start

    def _text(self, length: int) -> str:
        return self._take(length).decode("utf-8", "backslashreplace")

    def _bytes(self, length: int) -> Any:
        """ASCII bytes as text, because Python 2 and old versions of Flax wrote text as bytes; a stand-in for other
        bytes."""
        if length > _LONGEST_BYTES:
            self._skip(length)
            return StandIn("bytes")
        content = self._take(length)
        return content.decode() if content.isascii() else StandIn("bytes")

    def _list(self, count: int, depth: int) -> Any:
        items = [self.value(depth + 1) for _ in range(count)]
        if any(isinstance(item, LazyArray | Mapping) for item in items):
            return {str(i): item for i, item in enumerate(items)}
        return items

    def _mapping(self, count: int, depth: int) -> Any:
        tree: dict[str, Any] = {}
        for _ in range(count):
            key = self.value(depth + 1)
            if not isinstance(key, str | int | float | None) or len(text := str(key)) > _LONGEST_KEY:
                raise ValueError(f"a key is not text of at most {_LONGEST_KEY} characters")
            if text in tree:
                raise ValueError(f"it has two values for {text[:60]}")
            tree[text] = self.value(depth + 1)
        return _joined(tree) if _CHUNKED in tree else tree

    def _extension(self, length: int) -> Any:
        code = struct.unpack("b", self._take(1))[0]
        end = self.position + length
        if end > len(self._content):
            raise ValueError("it is truncated")
        if code not in (_NDARRAY, _SCALAR):
            self._skip(length)
            return StandIn("a complex number" if code == _COMPLEX else f"msgpack's type {code}")
        array = self._array(end)
        self.position = end
        if code == _SCALAR and isinstance(array, LazyArray):
            value = array.read()
            return value.item() if value.dtype.kind in "biuf" else float(value)
        return array

    def _array(self, end: int) -> LazyArray | StandIn:
        """An array, packed as (shape, name of its type, bytes), whose bytes end at `end`."""
        kind = self._take(1)[0]
        shape = self.value(_DEEPEST - 1) if kind == 0x93 else None
        name = self.value(_DEEPEST) if kind == 0x93 else None
        header = self._take(1)[0]
        what, size = _LENGTHS.get(header, ("text", 0) if 0xA0 <= header < 0xC0 else ("", 0))
        length = int.from_bytes(self._take(size), "big") if size else header & 31
        start = self._skip(length)
        if what not in ("bytes", "text") or start + length != end:
            raise ValueError("an array is not packed as (shape, type, bytes)")
        if not isinstance(shape, list) or len(shape) > 32 or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError("an array has no valid shape")
        name = "bfloat16" if name in ("V2", "|V2", "void16") else name
        if name not in ELEMENT_TYPES:
            return StandIn(f"an array of type {str(name)[:40]}", is_array=True)
        dtype = ELEMENT_TYPES[name]
        if math.prod(shape) * dtype.itemsize != length:
            raise ValueError(f"an array has {length} bytes for shape {shape}")
        return LazyArray(tuple(shape), dtype.name, partial(_read, self._source, start, dtype, tuple(shape)))


def _read(source: FileRange, start: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    with readable(source.path, "complete"):
        content = source.map(start, math.prod(shape) * dtype.itemsize)
        if content.ctypes.data % dtype.itemsize:
            content = content.copy()
        return content.view(dtype).reshape(shape)


def _joined(tree: Mapping[str, Any]) -> LazyArray:
    """The array of a mapping that stores it in chunks. Raises ValueError if the chunks do not fit its shape."""
    shape, chunks = (_in_order(tree.get(key)) for key in ("shape", "chunks"))
    if not all(isinstance(chunk, LazyArray) for chunk in chunks) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("the chunks of an array are not arrays, or it has no valid shape")
    if len({chunk.dtype for chunk in chunks}) != 1 or sum(math.prod(c.shape) for c in chunks) != math.prod(shape):
        raise ValueError("the chunks of an array do not fit its shape, or have different types")
    return LazyArray(tuple(shape), chunks[0].dtype, partial(_concatenate, chunks, tuple(shape)))


def _in_order(values: object) -> list[Any]:
    if isinstance(values, dict):
        return [values[str(i)] for i in range(len(values))]
    return values if isinstance(values, list) else []


def _concatenate(chunks: list[LazyArray], shape: tuple[int, ...]) -> np.ndarray:
    return np.concatenate([chunk.read().reshape(-1) for chunk in chunks]).reshape(shape)
