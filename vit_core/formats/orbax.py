"""A training step that Orbax wrote (train.steps_orbax), read without JAX, one array at a time.

Orbax keeps every leaf of the JAX engine's state as one Zarr array, whatever mesh and processes wrote it, in
TensorStore's OCDBT database. Neither has a checksum over the values, so step.json beside them has one for every file,
and says what the step holds. It is written last: a folder that has it is whole. TensorStore reads it rather than Orbax
because Orbax would start JAX, which takes most of a GPU's memory from whoever only wants to read.
"""

import hashlib
import json
import os
import re
from base64 import b64encode
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cached_property, partial
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from zlib import crc32

import numpy as np
from pydantic import Field, JsonValue

from vit_core import parameters
from vit_core.arrays import LazyArray, LazyArrays
from vit_core.config import ViTConfig
from vit_core.errors import InputError
from vit_core.parameters import Stack
from vit_core.places import Stored, here, place
from vit_core.schema import Flag, NonNegative, Schema

MANIFEST = "step.json"
COMMITTED = "commit_success.txt"
"""What Orbax wants to see in a store, where it cannot rename a folder."""
CHANGING = ("_CHECKPOINT_METADATA", COMMITTED)
"""Orbax writes these after step.json; no value depends on them."""
PARAMETERS, SKIPPED = "params", "skipped"
_MEANS = {"second_moment_rows": slice(0, 1), "second_moment_columns": slice(1, None)}
"""Statistics that are means over a matrix's rows or columns, and which of its lengths they have."""
_BLOCK = 2**22


class Leaf(Schema):
    """One array of a step."""

    dtype: Literal["bfloat16", "float16", "float32", "float64", "int32"]
    shape: tuple[NonNegative, ...]


class File(Schema):
    """What a file was when the step was saved."""

    bytes: NonNegative
    crc32: NonNegative

    @classmethod
    def of(cls, path: Path) -> Self:
        """As it is now."""
        size, checksum = 0, 0
        with here(path) as copy, copy.open("rb") as file:
            while block := file.read(_BLOCK):
                size, checksum = size + len(block), crc32(block, checksum)
        return cls(bytes=size, crc32=checksum)


class StoredFile(Schema):
    """The same of an object in a store, which has made a checksum of what it received: nothing need be read again."""

    bytes: NonNegative
    md5: str

    @classmethod
    def of(cls, path: Path) -> Self:
        """As it is now, in a store or copied from there."""
        if isinstance(path, Stored) and (known := path.md5):
            return cls(bytes=path.stat().st_size, md5=known)
        with here(path) as copy, copy.open("rb") as file:
            digest = hashlib.file_digest(file, "md5").digest()
        return cls(bytes=_size(path), md5=b64encode(digest).decode())


class Manifest(Schema):
    """All of step.json, but for the stamp that ties it together."""

    format_version: Literal[1] = 1
    metadata: dict[str, JsonValue]
    """The fields of the checkpoint's config."""
    structured: Flag = False
    """Whether the optimizer's statistics are kept by matrix (LAMB, Adafactor), not in the JAX layout."""
    leaves: dict[Annotated[str, Field(min_length=1)], Leaf]
    files: dict[str, File | StoredFile]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """A step's; InputError where it cannot be read or was changed."""
        path = folder / MANIFEST
        try:
            fields = json.loads(path.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{path}: cannot be read ({error}); restore an earlier step") from None
        stamp = fields.pop("stamp", None) if isinstance(fields, dict) else None
        manifest = cls.parse(fields, str(path))
        if stamp != manifest.stamp:
            raise InputError(f"{path}: damaged (its contents do not give its stamp); restore an earlier step")
        return manifest

    def write(self, folder: Path) -> None:
        """Into the folder."""
        fields = {"stamp": self.stamp, **self.model_dump(mode="json")}
        (folder / MANIFEST).write_text(json.dumps(fields, indent=2) + "\n")

    @property
    def stamp(self) -> str:
        """A digest of all fields."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:16]

    def check(self, folder: Path, names: Collection[str] = ()) -> None:
        """InputError naming the first file that is missing or not as long as it was; `names` are read and compared."""
        try:
            found = files(folder)
            for name, file in self.files.items():
                if name not in found:
                    raise InputError(f"{folder / name}: missing; restore an earlier step")
                if (size := _size(found[name])) != file.bytes:
                    raise InputError(f"{folder / name}: {size} bytes, expected {file.bytes}; restore an earlier step")
                if name in names and type(file).of(found[name]) != file:
                    raise InputError(f"{folder / name}: damaged (another checksum); restore an earlier step")
        except OSError as error:
            raise InputError(f"{folder}: cannot be read ({error}); restore an earlier step") from None


def files(folder: Path) -> dict[str, Path]:
    """Every file of a step that step.json answers for, by its path in the folder."""
    if isinstance(folder, Stored):
        found = folder.files()
    else:
        found = {path.relative_to(folder).as_posix(): path for path in _walk(folder)}
    return {name: path for name, path in found.items() if name not in (MANIFEST, *CHANGING)}


def _walk(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _walk(path)
        else:
            yield path


def _size(path: Path) -> int:
    return path.stat().st_size


def is_step(folder: str | os.PathLike[str]) -> bool:
    """Whether a whole step of this kind is there."""
    return bool((place(folder) / MANIFEST).is_file())


def metadata(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What was saved with the arrays: the fields of the checkpoint's config."""
    return dict(Manifest.read(place(folder)).metadata)


def read_leaves(folder: str | os.PathLike[str]) -> LazyArrays:
    """Every array under its name in the JAX engine's state, as it was there. Damage is found at the first read."""
    step = _Step(place(folder))
    return LazyArrays({name: step.lazy(name) for name in step.manifest.leaves})


def parameters_of(folder: str | os.PathLike[str], config: ViTConfig) -> LazyArrays:
    """Canonical name -> array in torch's layout. InputError where the step does not hold this config's parameters."""
    step = _Step(place(folder))
    found = {
        row.name: LazyArray(row.shape, step.manifest.leaves[name].dtype, partial(step.in_torch_layout, name, stack, i))
        for name, stack in step.stacks(config, (PARAMETERS,))
        for i, row in enumerate(stack.rows)
    }
    if missing := [name for name in parameters.parameters(config) if name not in found]:
        raise step.unlike(f"no {PARAMETERS} for {', '.join(missing)}")
    return LazyArrays(found).select(parameters.parameters(config))


def statistics_of(folder: str | os.PathLike[str], config: ViTConfig) -> LazyArrays:
    """ "<kind>/<canonical name>" -> what the optimizer and the moving average keep, and "skipped", as the engines'
    `statistics` gives it: in torch's layout, means over rows and columns [batch, length]."""
    step = _Step(place(folder))
    kinds = {name.partition("/")[0] for name in step.manifest.leaves} - {PARAMETERS, SKIPPED}
    found: dict[str, LazyArray] = {}
    for name, stack in step.stacks(config, kinds):
        kind, dtype = name.partition("/")[0], step.manifest.leaves[name].dtype
        by_matrix = step.manifest.structured and kind != "average"
        read = step.by_matrix if by_matrix else step.in_torch_layout
        for i, row in enumerate(stack.rows):
            shape = (_batch(stack), *_lengths(kind, stack)) if kind in _MEANS else row.shape
            found[f"{kind}/{row.name}"] = LazyArray(shape, dtype, partial(read, name, stack, i))
    if SKIPPED in step.manifest.leaves:
        found[SKIPPED] = step.lazy(SKIPPED)
    return LazyArrays(found)


class _Step:
    """A step's manifest, and a way to read an array of it or a part of one."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.manifest = folder, Manifest.read(folder)
        self.manifest.check(folder)

    def unlike(self, what: str) -> InputError:
        """The error for arrays that are not those of the config."""
        return InputError(f"{self.folder}: {what}; was it saved by another config?")

    def stacks(self, config: ViTConfig, kinds: Iterable[str]) -> Iterator[tuple[str, Stack]]:
        """Each leaf of these kinds, with the stack it is of."""
        rows, seen = parameters.parameters(config), set[tuple[str, str]]()
        for leaf, found in self.manifest.leaves.items():
            kind, _, name = leaf.partition("/")
            if kind not in kinds:
                continue
            members = [rows.get(member) for member in _members(name, config.depth)]
            stack = Stack(tuple(row for row in members if row is not None))
            if None in members or not members or stack.name != name or seen & {(kind, row.name) for row in stack.rows}:
                raise self.unlike(f"unexpected {leaf}")
            seen |= {(kind, row.name) for row in stack.rows}
            by_matrix = self.manifest.structured and kind not in (PARAMETERS, "average")
            expected = _matrices(kind, stack) if by_matrix else stack.jax_shape
            if found.shape != expected:
                raise self.unlike(f"{leaf} expected {list(expected)} found {list(found.shape)}")
            yield leaf, stack

    def in_torch_layout(self, leaf: str, stack: Stack, i: int) -> np.ndarray:
        """Row i of a leaf in the JAX layout."""
        part = self.read(leaf) if stack.layers is None else self.read(leaf, i)
        return np.ascontiguousarray(stack.rows[i].to_torch(part))

    def by_matrix(self, leaf: str, stack: Stack, i: int) -> np.ndarray:
        """Row i of a leaf kept by matrix."""
        row, batch = stack.rows[i], _batch(stack)
        part = self.read(leaf, slice(i * batch, (i + 1) * batch))
        return part.reshape(row.shape) if part.size == row.size else part

    def lazy(self, leaf: str) -> LazyArray:
        """A leaf as it is."""
        return LazyArray(self.manifest.leaves[leaf].shape, self.manifest.leaves[leaf].dtype, partial(self.read, leaf))

    def read(self, leaf: str, part: int | slice | None = None) -> np.ndarray:
        """A leaf, or a part of it along its first axis."""
        _ = self.checked
        expected = self.manifest.leaves[leaf]
        try:
            spec = _spec(self.folder, leaf)
            store = self._tensorstore.open(spec, open=True, read=True, context=self.context).result()
            if (tuple(store.shape), store.dtype.name) != (expected.shape, expected.dtype):
                raise ValueError(f"{leaf} is {store.dtype.name} {list(store.shape)}, not as {MANIFEST} has it")
            array: np.ndarray = (store if part is None else store[part]).read().result()
        except (OSError, ValueError, NotImplementedError, IndexError) as error:
            raise InputError(
                f"{self.folder}: {leaf} cannot be read ({cause(error)}); restore an earlier step"
            ) from None
        return array

    @cached_property
    def checked(self) -> None:
        """Whether every file is what it was: InputError if not. Once, when the first value is wanted."""
        self.manifest.check(self.folder, self.manifest.files)

    @cached_property
    def context(self) -> Any:
        """In a store, what is kept between reads, of which each would ask for the database's index anew; and how often
        to ask again, where the store does not answer."""
        if not isinstance(self.folder, Stored):
            return None
        kept = {"cache_pool": {"total_bytes_limit": 2**24}, "gcs_request_retries": {"max_retries": 6}}
        return self._tensorstore.Context(kept)

    @property
    def _tensorstore(self) -> Any:
        try:
            import tensorstore
        except ImportError:
            raise InputError(f"{self.folder}: reading an Orbax step takes pip install 'vit-parity[train]'") from None
        return tensorstore


def _spec(folder: Path, leaf: str) -> dict[str, Any]:
    stored, once = isinstance(folder, Stored), {"recheck_cached_data": False, "recheck_cached_metadata": False}
    base = f"{folder}/" if stored else {"driver": "file", "path": f"{folder.absolute()}/"}
    kvstore = {"driver": "ocdbt", "base": base, "path": f"{leaf}/"}
    return {"driver": "zarr", "kvstore": kvstore} | (once if stored else {})


def _members(name: str, depth: int) -> list[str]:
    """The parameters of a stack: "blocks.0-1,5.norm1.bias" has three, any other name is its own."""
    match = re.fullmatch(r"blocks\.([\d,-]{1,4096})\.(.+)", name)
    return [f"blocks.{layer}.{match[2]}" for layer in _layers(match[1], depth)] if match else [name]


def _layers(spans: str, depth: int) -> Iterator[int]:
    """The numbers of parameters.spans below depth."""
    for span in spans.split(","):
        first, _, last = span.partition("-")
        if first.isdigit() and (last or first).isdigit():
            yield from range(int(first), min(int(last or first), depth) + 1)


def _batch(stack: Stack) -> int:
    """How many matrices each of its parameters is taken for."""
    return stack.rows[0].size // prod(stack.rows[0].matrix_shape)


def _matrices(kind: str, stack: Stack) -> tuple[int, ...]:
    """Shape of a statistic kept by matrix: all matrices of the stack, one after another."""
    return (len(stack.rows) * _batch(stack), *_lengths(kind, stack))


def _lengths(kind: str, stack: Stack) -> tuple[int, ...]:
    """Shape of a statistic of one matrix."""
    shape = stack.rows[0].matrix_shape
    return shape[_MEANS[kind]] if kind in _MEANS else shape


def cause(error: BaseException) -> str:
    """What an error of TensorStore's says, in one line, without the places in its source."""
    return str(error).partition("\n")[0].partition(" [source locations")[0][:300] or type(error).__name__


def summary(arrays: Mapping[str, Any]) -> dict[str, Leaf]:
    """What step.json says of arrays, of any library."""
    return {name: Leaf(dtype=np.dtype(x.dtype).name, shape=tuple(x.shape)) for name, x in arrays.items()}
