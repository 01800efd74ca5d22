"""Folders that Orbax wrote for any project, read by TensorStore without JAX, Flax or Orbax.

Every leaf of a tree is a Zarr array, named by its keys joined with ".". All arrays are in one database (OCDBT,
`manifest.ocdbt`), or each is in its own folder. `_METADATA` has the keys and the kind of each leaf; `_strings.json` has
the leaves that are text. Before Orbax 0.5 the tree was the msgpack file `checkpoint`, with small leaves in it and
"PLACEHOLDER://NAME" for arrays. A step of a CheckpointManager has one such folder for each item ("default", "state").
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vit_core.arrays import LazyArray
from vit_core.checkpoints.containers.container import Container, StandIn
from vit_core.checkpoints.containers.element_types import ELEMENT_TYPES
from vit_core.checkpoints.containers.msgpack import is_msgpack, load_msgpack
from vit_core.checkpoints.containers.reading import FileRange, readable
from vit_core.errors import InputError, shortened
from vit_core.storage import Location, StorePath

METADATA, DATABASE, AGGREGATE, STRINGS = "_METADATA", "manifest.ocdbt", "checkpoint", "_strings.json"
_PLACEHOLDER = "PLACEHOLDER://"
_LONGEST_METADATA = 2**28
_MOST_SCALARS = 1000
_MOST_FILES = 100_000
_COMPRESSION, _ALWAYS_FITS = 1000, 2**26
"""An array is refused if it is larger than all files together by more than the first factor, and has more bytes than
the second number."""


def is_orbax_item(folder: Location, names: set[str]) -> bool:
    """Whether a folder is a tree that Orbax wrote. names: the files and folders in it."""
    if METADATA in names or DATABASE in names:
        return True
    aggregate = folder / AGGREGATE
    if AGGREGATE not in names or not aggregate.is_file():  # TensorFlow's file of this name is text
        return False
    if isinstance(aggregate, StorePath):
        return is_msgpack(aggregate.read_head(8))
    with aggregate.open("rb") as file:
        return is_msgpack(file.read(8))


def read_orbax(path: Location, folder: Path, owner: object = None) -> Container:
    """Opens a tree that Orbax wrote. folder: where it is on this machine. path: its name in messages. owner: kept as
    long as arrays may be read. Raises InputError if it is damaged or has no arrays."""
    with readable(path, "a complete Orbax checkpoint"):
        store = _Store(path, folder, owner)
        tree = store.described_tree() if (folder / METADATA).is_file() else store.older_tree()
    container = Container(path, "orbax", tree, separator="/")
    if not container.arrays:
        raise InputError(f"{path}: an Orbax checkpoint without arrays; give the folder of the item with the parameters")
    return container


class _Store:
    """The arrays of a folder, by their names."""

    def __init__(self, path: Location, folder: Path, owner: object) -> None:
        self.path, self.folder, self._owner = path, folder, owner
        self._tensorstore = _imported(path)
        self._in_database = (folder / DATABASE).is_file()
        self._zarr3 = False
        self._most_bytes = max(_ALWAYS_FITS, _COMPRESSION * _size(folder))

    def described_tree(self) -> dict[str, Any]:
        """The tree that `_METADATA` describes."""
        metadata = self._json(METADATA)
        self._zarr3 = metadata.get("use_zarr3") is True
        strings = self._json(STRINGS) if (self.folder / STRINGS).is_file() else {}
        leaves: list[tuple[tuple[str, ...], str]] = []
        for entry in metadata["tree_metadata"].values():
            keys = tuple(str(part["key"]) for part in entry["key_metadata"])
            if not keys or len(keys) > 50:
                raise ValueError("a leaf has no keys, or more than 50")
            leaves.append((keys, str(entry["value_metadata"]["value_type"])))
        stored = [".".join(keys) for keys, kind in leaves if kind in ("jax.Array", "np.ndarray", "scalar")]
        arrays = self._open(stored)
        scalars = 0
        tree: dict[str, Any] = {}
        for keys, kind in leaves:
            name, leaf = ".".join(keys), _leaf_without_values(kind)
            if kind == "string":
                leaf = strings.get(name) if isinstance(strings.get(name), str) else StandIn("text that is missing")
            elif name in arrays:
                leaf = arrays[name]
                scalars += kind == "scalar"
                if kind == "scalar" and not leaf.shape and scalars <= _MOST_SCALARS:
                    leaf = leaf.read().item()
            _insert(tree, keys, leaf)
        return tree

    def older_tree(self) -> dict[str, Any]:
        """The tree of the file `checkpoint` (before Orbax 0.5); if there is no such file, the tree of the arrays'
        names."""
        aggregate = self.folder / AGGREGATE
        if aggregate.is_file():
            source = FileRange.whole(self.path, aggregate, self._owner)
            template = load_msgpack(source)
            names = [text.removeprefix(_PLACEHOLDER) for text in _texts(template) if text.startswith(_PLACEHOLDER)]
            arrays = self._open(names)
            filled = _replaced(template, lambda text: arrays.get(text.removeprefix(_PLACEHOLDER), text))
            if not isinstance(filled, dict):
                raise ValueError(f"{AGGREGATE} is not a mapping")
            return filled
        tree: dict[str, Any] = {}
        for name, array in self._open(self._names()).items():
            _insert(tree, tuple(name.split(".")[:50]), array)
        return tree

    def _json(self, name: str) -> dict[str, Any]:
        file = self.folder / name
        if file.stat().st_size > _LONGEST_METADATA:
            raise ValueError(f"{name} has more than {_LONGEST_METADATA:,} bytes")
        content = json.loads(file.read_bytes())
        if not isinstance(content, dict):
            raise ValueError(f"{name} is not a mapping")
        return content

    def _names(self) -> list[str]:
        """The names of all arrays, found by listing the files, because no list of names is stored."""
        if not self._in_database:
            return sorted(file.parent.name for file in self.folder.glob("*/.zarray"))
        keys = self._tensorstore.KvStore.open(self._database()).result().list().result()
        files = [key.decode("utf-8", "replace") for key in keys]
        self._zarr3 = any(file.endswith("/zarr.json") for file in files)
        metadata = "/zarr.json" if self._zarr3 else "/.zarray"
        return [file.removesuffix(metadata) for file in files if file.endswith(metadata)]

    def _database(self, inside: str = "") -> dict[str, Any]:
        base = {"driver": "file", "path": f"{self.folder.absolute()}/"}
        return {"driver": "ocdbt", "base": base, "path": inside}

    def _open(self, names: list[str]) -> dict[str, LazyArray]:
        """Opens the arrays concurrently, which reads their shapes and types but no values."""
        arrays = {}
        started = {name: self._start(name) for name in dict.fromkeys(names)}
        for name, future in started.items():
            try:
                opened = future.result()
            except ValueError as error:
                raise ValueError(f"{name[:60]}: {cause(error)}") from None
            kind = opened.dtype.name
            if kind not in ELEMENT_TYPES:
                continue
            dtype, shape = ELEMENT_TYPES[kind], tuple(opened.shape)
            chunk = tuple(opened.chunk_layout.read_chunk.shape or ())
            if max(math.prod(shape), math.prod(chunk)) * dtype.itemsize > self._most_bytes:
                raise ValueError(f"{name[:60]} has shape {list(shape)}, but the files are too small for it")
            arrays[name] = LazyArray(shape, dtype.name, partial(self._read, name, opened))
        return arrays

    def _start(self, name: str) -> Any:
        if not self._in_database and any(part in ("", ".", "..") for part in name.split("/")):
            raise ValueError(f"{name[:60]} is not a valid name of an array")
        file = {"driver": "file", "path": f"{self.folder.absolute()}/{name}/"}
        kvstore = self._database(f"{name}/") if self._in_database else file
        spec = {"driver": "zarr3" if self._zarr3 else "zarr", "kvstore": kvstore}
        once = {"recheck_cached_data": False, "recheck_cached_metadata": False}
        return self._tensorstore.open(spec | once, open=True, read=True)

    def _read(self, name: str, opened: Any) -> np.ndarray:
        with readable(self.path, f"complete (reading {name[:60]})"):
            try:
                array: np.ndarray = opened.read().result()
            except ValueError as error:
                raise ValueError(cause(error)) from None
            return array


def _imported(path: Location) -> Any:
    try:
        import tensorstore
    except ImportError:
        raise InputError(f"{path}: an Orbax checkpoint; to read it, pip install 'vit-parity[train]'") from None
    return tensorstore


def cause(error: BaseException) -> str:
    """The message of a TensorStore error in one line, without its source locations."""
    return shortened(str(error).partition("\n")[0].partition(" [source locations")[0]) or type(error).__name__


def _size(folder: Path) -> int:
    """Total bytes of all files below a folder. Raises ValueError for more than _MOST_FILES entries."""
    size = 0
    for count, file in enumerate(folder.rglob("*")):
        if count > _MOST_FILES:
            raise ValueError(f"it has more than {_MOST_FILES:,} files")
        size += file.stat().st_size if file.is_file() else 0
    return size


def _leaf_without_values(kind: str) -> Any:
    return {"None": None, "Dict": {}, "List": [], "Tuple": []}.get(kind, StandIn(f"Orbax's type {kind[:60]}"))


def _insert(tree: dict[str, Any], keys: tuple[str, ...], leaf: Any) -> None:
    node = tree
    for key in keys[:-1]:
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise ValueError(f"it has two values for {key[:60]}")
    if keys[-1] in node:
        raise ValueError(f"it has two values for {keys[-1][:60]}")
    node[keys[-1]] = leaf


def _texts(tree: Any) -> Iterator[str]:
    if isinstance(tree, Mapping):
        for value in tree.values():
            yield from _texts(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _texts(value)
    elif isinstance(tree, str):
        yield tree


def _replaced(tree: Any, leaf: Callable[[str], Any]) -> Any:
    """The tree with each text replaced by leaf(text)."""
    if isinstance(tree, Mapping):
        return {key: _replaced(value, leaf) for key, value in tree.items()}
    if isinstance(tree, list):
        items = [_replaced(value, leaf) for value in tree]
        return {str(i): item for i, item in enumerate(items)} if _holds_arrays(items) else items
    return leaf(tree) if isinstance(tree, str) else tree


def _holds_arrays(items: list[Any]) -> bool:
    return any(isinstance(item, LazyArray | Mapping) for item in items)
