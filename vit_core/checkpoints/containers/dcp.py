"""Folders of torch.distributed.checkpoint, read without PyTorch. Each tensor is assembled from the pieces that the
processes of a training run have written.

`.metadata` is a pickle with the type, the shape and the pieces of each tensor. A piece is a range of bytes of a
`.distcp` file; the range is itself a PyTorch file.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from vit_core.arrays import LazyArray
from vit_core.checkpoints.containers.container import Container, StandIn
from vit_core.checkpoints.containers.element_types import ELEMENT_TYPES
from vit_core.checkpoints.containers.pickle_arrays import lengths
from vit_core.checkpoints.containers.pickle_objects import constructors
from vit_core.checkpoints.containers.pickle_reader import Budget, Global, Instance, PickleReader
from vit_core.checkpoints.containers.pickle_tree import PlainTree
from vit_core.checkpoints.containers.pth import load_pth
from vit_core.checkpoints.containers.reading import FileRange, readable
from vit_core.errors import InputError
from vit_core.storage import Location

METADATA = ".metadata"
_MOST_PIECES = 4096
_MOST_VALUES, _LONGEST_VALUE = 1000, 2**16
"""Values other than tensors (an epoch, a learning rate) are read when the folder is opened: at most so many, and so
many bytes each."""


@dataclass(frozen=True)
class _Piece:
    """A rectangular part of a tensor, and the PyTorch file that has its values."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    source: FileRange


def read_dcp(folder: Location, files: Mapping[str, FileRange]) -> Container:
    """Opens a folder of torch.distributed.checkpoint. files: its files by name. Raises InputError if a file is missing
    or damaged."""
    path = folder / METADATA
    with readable(path, "the metadata of a distributed checkpoint"):
        metadata = _state(_load_metadata(files[METADATA]))
        places = _places(metadata.get("storage_data"), files)
        paths = metadata.get("planner_data")
        values = 0
        tree: dict[str, Any] = {}
        for name, described in _dictionary(metadata.get("state_dict_metadata")).items():
            if not isinstance(name, str) or not isinstance(described, Instance):
                raise ValueError("it has a tensor without a name")
            if described.kind.endswith(".TensorStorageMetadata"):
                leaf: Any = _tensor(folder, name, _state(described), places.get(name, {}))
            else:
                values += 1
                source = next(iter(places.get(name, {}).values()), None)
                leaf = _value(source) if source and values <= _MOST_VALUES else StandIn("a stored object")
            keys = paths.get(name) if isinstance(paths, dict) else None
            _insert(tree, keys if isinstance(keys, tuple) and keys else (name,), leaf)
    container = Container(folder, "dcp", tree)
    if not container.arrays:
        raise InputError(f"{folder}: a distributed checkpoint (DCP) without tensors; give the folder of the weights")
    return container


def _load_metadata(source: FileRange) -> Any:
    content = source.read(0, source.length)
    budget = Budget(copied=2 * len(content) + 2**20)
    return PickleReader(content, 0, constructors(budget), _no_storages, budget).load()


def _no_storages(name: object) -> Any:
    raise ValueError("it has a tensor, expected only descriptions of tensors")


def _state(value: object) -> dict[Any, Any]:
    """The attributes of an object in the pickle; empty for anything else."""
    return value.state if isinstance(value, Instance) and isinstance(value.state, dict) else {}


def _dictionary(value: object) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise ValueError("it has no list of tensors")
    return value


def _places(storage: object, files: Mapping[str, FileRange]) -> dict[str, dict[tuple[int, ...] | None, FileRange]]:
    """Name of a tensor -> offsets of a piece -> the bytes of the piece."""
    places: dict[str, dict[tuple[int, ...] | None, FileRange]] = {}
    for index, information in _dictionary(storage).items():
        which, where = _state(index), _state(information)
        name, offsets, file = which.get("fqn"), which.get("offset"), where.get("relative_path")
        if not isinstance(name, str) or not isinstance(file, str) or file not in files:
            raise ValueError(f"a piece is in {str(file)[:60]}, which is missing")
        if where.get("transform_descriptors"):
            raise ValueError("its pieces are compressed or encrypted, which is not supported")
        start, length = where.get("offset"), where.get("length")
        if not isinstance(start, int) or not isinstance(length, int):
            raise ValueError(f"a piece of {name[:60]} has no offset or length")
        places.setdefault(name, {})[None if offsets is None else lengths(offsets)] = files[file].part(start, length)
    return places


def _tensor(
    folder: Location, name: str, described: Mapping[str, Any], places: Mapping[tuple[int, ...] | None, FileRange]
) -> LazyArray | StandIn:
    properties = described.get("properties")
    state = properties.state if isinstance(properties, Instance) else None
    kind = state[0] if isinstance(state, tuple) and state else _state(properties).get("dtype")
    dtype = ELEMENT_TYPES.get(kind.name.removeprefix("torch.")) if isinstance(kind, Global) else None
    if dtype is None:
        return StandIn("a tensor of a type that NumPy does not have", is_array=True)
    shape = lengths(described.get("size"))
    chunks = described.get("chunks")
    pieces = []
    for chunk in chunks if isinstance(chunks, list) else []:
        box = _state(chunk)
        offsets, sizes = lengths(box.get("offsets")), lengths(box.get("sizes"))
        source = places.get(offsets)
        if source is None or not len(shape) == len(offsets) == len(sizes):
            raise ValueError(f"a piece of {name[:60]} is missing")
        pieces.append(_Piece(offsets, sizes, source))
    _check_cover(name, shape, pieces, dtype.itemsize)
    return LazyArray(shape, dtype.name, partial(_assemble, folder, name, dtype, shape, pieces))


def _check_cover(name: str, shape: tuple[int, ...], pieces: list[_Piece], itemsize: int) -> None:
    """Raises ValueError unless the pieces cover each element of the tensor exactly once and have enough bytes."""
    size = math.prod(shape)
    if len(pieces) > _MOST_PIECES:
        raise ValueError(f"{name[:60]} has more than {_MOST_PIECES} pieces")
    if sum(math.prod(piece.sizes) for piece in pieces) != size:
        raise ValueError(f"the pieces of {name[:60]} do not cover it")
    if not size:
        return
    pieces = [piece for piece in pieces if math.prod(piece.sizes)]
    if any(math.prod(piece.sizes) * itemsize > piece.source.length for piece in pieces):
        raise ValueError(f"{name[:60]} has shape {list(shape)}, but the file has fewer bytes")
    first_ND = np.array([piece.offsets for piece in pieces], dtype=object).reshape(len(pieces), len(shape))
    last_ND = first_ND + np.array([piece.sizes for piece in pieces], dtype=object).reshape(len(pieces), len(shape))
    if (last_ND > np.array(shape, dtype=object)).any():
        raise ValueError(f"a piece of {name[:60]} is partly outside the tensor")
    for i in range(len(pieces) - 1):
        apart_N = ((first_ND[i + 1 :] >= last_ND[i]) | (last_ND[i + 1 :] <= first_ND[i])).any(axis=1)
        if not apart_N.all():
            raise ValueError(f"pieces of {name[:60]} overlap")


def _assemble(folder: Location, name: str, dtype: np.dtype, shape: tuple[int, ...], pieces: list[_Piece]) -> np.ndarray:
    with readable(folder, f"complete (reading {name[:60]})"):
        arrays = [_piece(piece, dtype) for piece in pieces]
        if len(pieces) == 1 and pieces[0].sizes == shape:
            return arrays[0].read()
        assembled = np.empty(shape, dtype)
        for piece, array in zip(pieces, arrays, strict=True):
            box = tuple(slice(o, o + n) for o, n in zip(piece.offsets, piece.sizes, strict=True))
            assembled[box] = array.read()
        return assembled


def _piece(piece: _Piece, dtype: np.dtype) -> LazyArray:
    value = load_pth(piece.source)[1]
    if not isinstance(value, LazyArray) or (value.shape, value.dtype) != (piece.sizes, dtype.name):
        raise ValueError("a piece has another shape or type than .metadata states")
    return value


def _value(source: FileRange) -> Any:
    """A small stored value other than a tensor, as plain data."""
    if source.length > _LONGEST_VALUE:
        return StandIn("a stored object")
    _, loaded = load_pth(source)
    return PlainTree(source.path).convert(loaded)


def _insert(tree: dict[str, Any], keys: tuple[Any, ...], leaf: Any) -> None:
    *folders, last = [str(key)[:1000] for key in keys[:50]]
    node = tree
    for folder in folders:
        inner = node.setdefault(folder, {})
        if not isinstance(inner, dict):
            raise ValueError(f"it has two values for {folder[:60]}")
        node = inner
    if last in node:
        raise ValueError(f"it has two values for {last[:60]}")
    node[last] = leaf
