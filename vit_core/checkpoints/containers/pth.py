"""PyTorch's own files (.pth, .pt, .bin, .ckpt), read without PyTorch and without running any code of a file.

Since PyTorch 1.6 a file is a zip archive: `NAME/data.pkl` is a pickle in which every tensor refers to a storage,
`NAME/data/KEY` has the bytes of each storage, and `NAME/byteorder` has their byte order. (A TorchScript archive has the
same parts and its code.) Before 1.6 a file was a sequence: four pickles (a magic number, a version, data about the
machine, the object), the list of the storages' keys, and for each key the number of elements and the bytes. A plain
pickle of NumPy or JAX arrays, or of tensors, is read the same way.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from vit_core.checkpoints.containers.archives import Archive
from vit_core.checkpoints.containers.container import Container, StandIn
from vit_core.checkpoints.containers.element_types import ELEMENT_TYPES
from vit_core.checkpoints.containers.pickle_objects import Storage, constructors, storage_type
from vit_core.checkpoints.containers.pickle_reader import Budget, Bytes, Instance, PickleReader
from vit_core.checkpoints.containers.pickle_tree import PlainTree
from vit_core.checkpoints.containers.reading import FileRange, readable
from vit_core.errors import InputError, one_line

_MAGIC = 0x1950A86A20F9469CFC6C
_LONGEST_PICKLE = 2**29
_OTHER_ITEM_SIZES = {"QInt32Storage": 4, "ComplexHalfStorage": 4}
"""Bytes of an element, for types that NumPy does not have; types that are not listed take one byte."""


def read_pth(source: FileRange) -> Container:
    """Opens a PyTorch file, or a pickle of arrays. Raises InputError if it is damaged or has no arrays."""
    with readable(source.path, "a complete .pth file"):
        kind, loaded = load_pth(source)
        plain = PlainTree(source.path)
        tree = plain.convert(loaded)
        notes = plain.notes
    if source.path.name.endswith(".distcp"):
        raise InputError(
            f"{source.path}: is a part of a checkpoint of torch.distributed.checkpoint (DCP); give the folder that "
            "contains it and .metadata"
        )
    container = Container(source.path, kind, tree if isinstance(tree, dict) else {"": tree}, notes=notes)
    if not container.arrays:
        inside = "; ".join(notes) or f"it contains {_summary(tree)}"
        raise InputError(
            f"{source.path}: has no tensors that can be read without running its code ({inside}); save the model's "
            f"state_dict() with torch.save"
        )
    return container


def load_pth(source: FileRange) -> tuple[str, Any]:
    """The kind of the file ("pth" or "pickle"), and the content of its pickle as objects of the pickle reader."""
    if source.head(2) == b"PK":
        return "pth", _load_zip(source)
    with source.view() as content:
        budget = Budget(copied=2 * source.length + 2**20)
        return _load_sequence(content, source.map, budget, inner=False)


def _summary(tree: Any) -> str:
    if isinstance(tree, dict):
        return one_line(", ".join(list(tree)[:5]))[:100] or "nothing"
    return f"an object of {one_line(tree.kind)[:80]}" if isinstance(tree, StandIn) else f"one {type(tree).__name__}"


# Archives


def _load_zip(source: FileRange) -> Any:
    archive = Archive(source)
    names = set(archive.names)
    pickles = [name for name in archive.names if re.fullmatch(r"(?:[^/]+/)?data\.pkl", name)]
    if not pickles:
        raise ValueError("the zip archive has no data.pkl")
    folder = pickles[0].removesuffix("data.pkl")
    order = archive.read(f"{folder}byteorder", 16).strip() if f"{folder}byteorder" in names else b"little"
    if order not in (b"little", b"big"):
        raise ValueError(f"its byte order is {order!r}, expected little or big")
    content = archive.read(pickles[0], _LONGEST_PICKLE)
    budget = Budget(copied=2 * len(content) + 2**20)
    storages: dict[str, Storage] = {}

    def persistent(reference: object) -> Any:
        key, dtype, size = _storage_name(reference)
        if key not in storages:
            storages[key] = Storage(dtype, size, big_endian=order == b"big")
            name = f"{folder}data/{key}"
            if name in names:
                storages[key].fetch, storages[key].available = partial(archive.values, name), archive.size(name)
        return storages[key]

    return PickleReader(content, 0, constructors(budget, _inner_loader(budget)), persistent, budget).load()


def _storage_name(name: object) -> tuple[str, str, int]:
    """The key, type and size in a reference to a storage: ('storage', class, key, device, elements, ...)."""
    if not isinstance(name, tuple) or len(name) < 5 or name[0] != "storage":
        raise ValueError("a persistent reference is not to a storage")
    _, kind, key, _, size = name[:5]
    dtype = storage_type(kind)
    if dtype is None or not isinstance(key, str | int) or not isinstance(size, int) or not 0 <= size < 2**62:
        raise ValueError("a storage has no valid type, key or size")
    return str(key), dtype, size


# Files before PyTorch 1.6, and plain pickles


def _load_sequence(
    content: Bytes, fetch: Callable[[int, int], np.ndarray], budget: Budget, inner: bool
) -> tuple[str, Any]:
    storages: dict[str, Storage] = {}
    table = constructors(budget, None if inner else _inner_loader(budget))
    reader = PickleReader(content, 0, table, partial(_legacy_persistent, storages), budget)
    first = reader.load()
    if first != _MAGIC:
        if storages:
            raise ValueError("a pickle refers to storages, but the file has none")
        return "pickle", first
    version, _machine, loaded = (_next(reader, content, table, storages, budget) for _ in range(3))
    if version != 1001:
        raise ValueError(f"version {version} of PyTorch's old format is not supported")
    position = _next(reader, content, table, storages, budget)
    _locate(position, reader.position, content, storages, fetch)
    return "pth", loaded


def _next(reader: PickleReader, content: Bytes, table: Any, storages: dict[str, Storage], budget: Budget) -> Any:
    """Loads the next pickle of the file; then `reader.position` is its end."""
    following = PickleReader(content, reader.position, table, partial(_legacy_persistent, storages), budget)
    loaded = following.load()
    reader.position = following.position
    return loaded


def _legacy_persistent(storages: dict[str, Storage], name: object) -> Any:
    if isinstance(name, tuple) and len(name) >= 2 and name[0] == "module":
        return name[1]
    key, dtype, size = _storage_name(name)
    assert isinstance(name, tuple)
    if key not in storages:
        storages[key] = Storage(dtype, size)
    view = name[5] if len(name) > 5 else None
    if view is None:
        return storages[key]
    view_key, first, view_size = view
    numbers = (first, view_size)
    if not all(isinstance(number, int) and number >= 0 for number in numbers) or first + view_size > size:
        raise ValueError(f"view {str(view_key)[:40]} ends outside its storage")
    return Storage(dtype, view_size, first=first, base=storages[key])


def _locate(
    keys: object,
    position: int,
    content: Bytes,
    storages: dict[str, Storage],
    fetch: Callable[[int, int], np.ndarray],
) -> None:
    """Finds the bytes of each storage. The file has the number of elements (8 bytes), then the elements, little
    endian."""
    if not isinstance(keys, list):
        raise ValueError("it has no list of storages")
    for key in keys:
        storage = storages.get(str(key))
        count = int.from_bytes(content[position : position + 8], "little")
        position += 8
        if storage is None or storage.fetch is not None:
            raise ValueError(f"storage {str(key)[:40]} is unknown, or occurs twice")
        known = ELEMENT_TYPES.get(storage.dtype)
        length = count * (known.itemsize if known else _OTHER_ITEM_SIZES.get(storage.dtype, 1))
        if position + length > len(content):
            raise ValueError("the file is truncated")
        storage.fetch, storage.available = partial(_shifted, fetch, position), length
        position += length


def _shifted(fetch: Callable[[int, int], np.ndarray], first: int, start: int, length: int) -> np.ndarray:
    return fetch(first + start, length)


def _inner_loader(budget: Budget) -> Callable[[Any], Any]:
    """The function that reads the PyTorch file which a plain pickle contains for each storage."""

    def load(content: object = b"", *_: object) -> Any:
        if not isinstance(content, bytes):
            return Instance("torch.storage._load_from_bytes")

        def fetch(start: int, length: int) -> np.ndarray:
            return np.frombuffer(bytearray(content[start : start + length]), np.uint8)

        return _load_sequence(content, fetch, budget, inner=True)[1]

    return load
