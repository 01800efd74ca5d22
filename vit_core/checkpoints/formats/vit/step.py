"""A training step saved by Orbax, read without JAX, one array at a time.

The JAX engine's state is a flat dict of arrays, called leaves here. Orbax stores each leaf as one Zarr array in
TensorStore's OCDBT database, in the same form for every mesh and number of processes. Neither stores checksums of the
values, so `step.json` has a checksum of every file, and lists the leaves. It is written last: a folder with a
`step.json` is complete. Leaves are read by TensorStore, not by Orbax, because Orbax would start JAX, which allocates
most of a GPU's memory.
"""

import hashlib
import json
import os
import re
from base64 import b64encode
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from zlib import crc32

import numpy as np
from pydantic import Field, JsonValue

from vit_core.arrays import LazyArray, LazyArrays
from vit_core.config import ViTConfig
from vit_core.errors import DamagedError, InputError, shortened
from vit_core.parameters import DECODER, Parameter, Stack, parameters
from vit_core.schema import Flag, NonNegative, Schema
from vit_core.storage import Location, StorePath, absolute, is_local, local_copy, location

MANIFEST = "step.json"
COMMITTED = "commit_success.txt"
"""The file that marks a step in a store as complete for Orbax, because stores cannot rename a folder."""
WRITTEN_AFTER_MANIFEST = ("_CHECKPOINT_METADATA", COMMITTED)
"""Files that Orbax writes after step.json; no value depends on them."""
PARAMETERS = "params"
"""Leaves of parameters are named "params/<stack>", those of the optimizer "<statistic>/<stack>"."""

_BLOCK_BYTES = 2**22
_NOT_AS_WRITTEN = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
"""Errors of the file system that mean a damaged step. Others (no permission, no connection) say nothing about its
files."""
_UNDECODABLE = (ValueError, NotImplementedError, LookupError)
"""Errors of TensorStore for contents that it cannot decode."""


class Leaf(Schema):
    """Type and shape of one array of a step."""

    dtype: Literal["bfloat16", "float16", "float32", "float64", "int32"]
    shape: tuple[NonNegative, ...]


class LocalFile(Schema):
    """Size and checksum of a file when the step was saved."""

    bytes: NonNegative
    crc32: NonNegative

    @classmethod
    def of(cls, path: Location) -> Self:
        """The current size and checksum of a file."""
        size, checksum = 0, 0
        with local_copy(path) as copy, copy.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                size, checksum = size + len(block), crc32(block, checksum)
        return cls(bytes=size, crc32=checksum)


class StoredFile(Schema):
    """Size and checksum of an object in a store. The store computes the checksum during the upload, so nothing is read
    back."""

    bytes: NonNegative
    md5: str

    @classmethod
    def of(cls, path: Location) -> Self:
        """The current size and checksum of an object in a store, or of a local copy of it."""
        if isinstance(path, StorePath) and (known := path.md5):
            return cls(bytes=path.stat().st_size, md5=known)
        with local_copy(path) as copy:
            with copy.open("rb") as file:
                digest = hashlib.file_digest(file, "md5").digest()
            return cls(bytes=copy.stat().st_size, md5=b64encode(digest).decode())


class Manifest(Schema):
    """The contents of step.json, except its stamp (a digest of the other fields)."""

    format_version: Literal[1] = 1
    metadata: dict[str, JsonValue]
    """The fields of the checkpoint's config."""
    structured: Flag = False
    """Whether the optimizer's statistics are stored by matrix (LAMB, Adafactor) instead of in the JAX layout."""
    leaves: dict[Annotated[str, Field(min_length=1)], Leaf]
    files: dict[str, LocalFile | StoredFile]

    @classmethod
    def read(cls, folder: Location) -> Self:
        """Reads a step's manifest. Raises DamagedError if it is missing, incomplete or changed."""
        path = folder / MANIFEST
        try:
            fields = json.loads(path.read_text())
        except (*_NOT_AS_WRITTEN, ValueError, RecursionError) as error:
            raise DamagedError(f"{path}: cannot be read ({error}); restore an earlier step") from None
        stamp = fields.pop("stamp", None) if isinstance(fields, dict) else None
        try:
            manifest = cls.parse(fields, str(path))
        except InputError as error:
            raise DamagedError(f"{error}; restore an earlier step") from None
        if stamp != manifest.stamp:
            raise DamagedError(f"{path}: damaged (its contents do not match its stamp); restore an earlier step")
        return manifest

    def write(self, folder: Location) -> None:
        """Writes the manifest into a step's folder, which marks the step as complete."""
        fields = {"stamp": self.stamp, **self.model_dump(mode="json")}
        (folder / MANIFEST).write_text(json.dumps(fields, indent=2) + "\n")

    @property
    def stamp(self) -> str:
        """The first 16 hexadecimal digits of a SHA-256 of all fields."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:16]

    def check(self, folder: Location, names: Collection[str] = ()) -> None:
        """Raises DamagedError that names the first file that is missing or has another size. Files in `names` are also
        read, and their checksums compared."""
        try:
            present = step_files(folder)
            for name, expected in self.files.items():
                if name not in present:
                    raise DamagedError(f"{folder / name}: missing; restore an earlier step")
                if (size := present[name].stat().st_size) != expected.bytes:
                    raise DamagedError(
                        f"{folder / name}: {size} bytes, expected {expected.bytes}; restore an earlier step"
                    )
                if name in names and type(expected).of(present[name]) != expected:
                    raise DamagedError(f"{folder / name}: damaged (another checksum); restore an earlier step")
        except _NOT_AS_WRITTEN as error:
            raise DamagedError(f"{folder}: cannot be read ({error}); restore an earlier step") from None


def step_files(folder: Location) -> Mapping[str, Location]:
    """The files of a step that its manifest lists, by their path in the folder."""
    if is_local(folder):
        files: Mapping[str, Location] = {path.relative_to(folder).as_posix(): path for path in _walk(folder)}
    else:
        assert isinstance(folder, StorePath)
        files = folder.files()
    return {name: path for name, path in files.items() if name not in (MANIFEST, *WRITTEN_AFTER_MANIFEST)}


def _walk(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _walk(path)
        else:
            yield path


def is_orbax_step(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is a complete step that Orbax saved."""
    return (location(folder) / MANIFEST).is_file()


def step_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The fields of the checkpoint's config that was saved with a step. Raises DamagedError for a damaged manifest."""
    return dict(Manifest.read(location(folder)).metadata)


def step_leaves(folder: str | os.PathLike[str]) -> LazyArrays:
    """Every leaf of a step under its name in the JAX engine's state, in the layout it was saved in.

    Raises DamagedError for a damaged manifest or a file of another size. Damage inside a file is found when the first
    leaf is read.
    """
    step = OrbaxStep(location(folder))
    return LazyArrays({leaf: step.lazy_leaf(leaf) for leaf in step.manifest.leaves})


def step_parameters(folder: str | os.PathLike[str], config: ViTConfig) -> LazyArrays:
    """The parameters of a step: canonical name -> array in PyTorch's layout.

    Raises InputError if the step does not have this config's parameters, and DamagedError as `step_leaves` does.
    """
    return OrbaxStep(location(folder)).parameters(config)


class OrbaxStep:
    """An opened step: its manifest, and methods that read whole leaves or parts of them.

    Raises DamagedError for a damaged manifest, and for a file that is missing or has another size.
    """

    def __init__(self, folder: Location) -> None:
        self.folder, self.manifest = folder, Manifest.read(folder)
        self.manifest.check(folder)

    def parameters(self, config: ViTConfig) -> LazyArrays:
        """Canonical name -> array in PyTorch's layout. Raises InputError if the step has other parameters."""
        rows = parameters(config)
        # A masked autoencoder's decoder is not part of the checkpoint: only a resumed run uses it.
        leaves = [leaf for leaf in self.leaves((PARAMETERS,)) if not leaf.startswith(f"{PARAMETERS}/{DECODER}")]
        arrays = {
            row.name: LazyArray(row.shape, self.manifest.leaves[leaf].dtype, partial(self.read_row, leaf, stack, i))
            for leaf, stack in self.stacks(rows, leaves)
            for i, row in enumerate(stack.rows)
        }
        if missing := [name for name in rows if name not in arrays]:
            raise self.not_of_config(f"no {PARAMETERS} for {', '.join(missing)}")
        return LazyArrays(arrays).select(rows)

    def not_of_config(self, what: str) -> InputError:
        """The error for leaves that do not fit a config."""
        return InputError(f"{self.folder}: {what}; check that it was saved with this config")

    def leaves(self, kinds: Collection[str]) -> list[str]:
        """The names of the leaves ("<kind>/<stack>") of these kinds."""
        return [leaf for leaf in self.manifest.leaves if leaf.partition("/")[0] in kinds]

    def stacks(
        self,
        rows: Mapping[str, Parameter],
        leaves: Iterable[str],
        shape_of: Callable[[str, Stack], tuple[int, ...]] = lambda kind, stack: stack.jax_shape,
    ) -> Iterator[tuple[str, Stack]]:
        """Each of these leaves with its stack of rows of the parameter table; `shape_of` gives the expected shape.

        Raises InputError for a leaf that belongs to none of these rows, or has another shape.
        """
        depth = max((row.layer + 1 for row in rows.values() if row.layer is not None), default=0)
        seen = set[tuple[str, str]]()
        for leaf in leaves:
            (kind, _, name), found = leaf.partition("/"), self.manifest.leaves[leaf]
            members = [rows.get(member) for member in _stack_members(name, depth)]
            stack = Stack(tuple(row for row in members if row is not None))
            if None in members or not members or stack.name != name or seen & {(kind, row.name) for row in stack.rows}:
                raise self.not_of_config(f"unexpected {leaf}")
            seen |= {(kind, row.name) for row in stack.rows}
            if found.shape != (expected := shape_of(kind, stack)):
                raise self.not_of_config(f"{leaf} expected {list(expected)} found {list(found.shape)}")
            yield leaf, stack

    def read_row(self, leaf: str, stack: Stack, i: int) -> np.ndarray:
        """Parameter number i of a leaf that is stored in the JAX layout, as an array in PyTorch's layout."""
        array = self.read_leaf(leaf) if stack.layers is None else self.read_leaf(leaf, i)
        return np.ascontiguousarray(stack.rows[i].to_torch(array))

    def lazy_leaf(self, leaf: str) -> LazyArray:
        """A leaf in the layout it was saved in."""
        expected = self.manifest.leaves[leaf]
        return LazyArray(expected.shape, expected.dtype, partial(self.read_leaf, leaf))

    def read_leaf(self, leaf: str, part: int | slice | None = None) -> np.ndarray:
        """A leaf, or a part of it along its first axis. Raises DamagedError if a file of the step is damaged."""
        self.verify()
        expected = self.manifest.leaves[leaf]
        try:
            spec = _tensorstore_spec(self.folder, leaf)
            store = self._tensorstore.open(spec, open=True, read=True, context=self._context).result()
            if (tuple(store.shape), store.dtype.name) != (expected.shape, expected.dtype):
                raise ValueError(
                    f"{leaf} is {store.dtype.name} {list(store.shape)}, but {MANIFEST} states another type or shape"
                )
            array: np.ndarray = (store if part is None else store[part]).read().result()
        except InputError:
            raise
        except _UNDECODABLE as error:
            raise DamagedError(
                f"{self.folder}: {leaf} cannot be read ({one_line_cause(error)}); restore an earlier step"
            ) from None
        return array

    def verify(self) -> None:
        """On the first call, reads every file and compares its checksum. Raises DamagedError if one differs."""
        _ = self._verified

    @cached_property
    def _verified(self) -> None:
        self.manifest.check(self.folder, self.manifest.files)

    @cached_property
    def _context(self) -> Any:
        """TensorStore's context for reads from a store: it caches the database's index and limits retries."""
        if is_local(self.folder):
            return None
        retries = {f"{driver}_request_retries": {"max_retries": 6} for driver in ("gcs", "s3")}
        return self._tensorstore.Context({"cache_pool": {"total_bytes_limit": 2**24}, **retries})

    @property
    def _tensorstore(self) -> Any:
        try:
            import tensorstore
        except ImportError:
            raise InputError(
                f"{self.folder}: reading a step that Orbax saved needs tensorstore: pip install 'vit-parity[train]'"
            ) from None
        return tensorstore


def _tensorstore_spec(folder: Location, leaf: str) -> dict[str, Any]:
    database = {"driver": "ocdbt", "base": _key_value_store(folder), "path": f"{leaf}/"}
    once = {} if is_local(folder) else {"recheck_cached_data": False, "recheck_cached_metadata": False}
    return {"driver": "zarr", "kvstore": database, **once}


def _key_value_store(folder: Location) -> dict[str, Any]:
    """TensorStore's specification of a folder. Raises InputError for a store that TensorStore does not know."""
    if is_local(folder):
        return {"driver": "file", "path": f"{absolute(folder)}/"}
    assert isinstance(folder, StorePath)
    bucket, _, path = folder.key.partition("/")
    if folder.protocol == "gs":
        return {"driver": "gcs", "bucket": bucket, "path": f"{path}/"}
    if folder.protocol == "s3":
        return {"driver": "s3", "bucket": bucket, "path": f"{path}/", **s3_options()}
    raise InputError(f"{folder}: steps that Orbax saved can be read only from this machine, gs:// and s3://")


def s3_options() -> dict[str, str]:
    """TensorStore's options for S3 and servers with the same protocol, from the environment variables of AWS's clients:
    AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, AWS_REGION, AWS_DEFAULT_REGION. (TensorStore itself reads only credentials
    from the environment.)"""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    options = {"aws_region": region} if region else {}
    return options | ({"endpoint": endpoint, "aws_region": region or "us-east-1"} if endpoint else {})


def _stack_members(name: str, depth: int) -> list[str]:
    """Names of a stack's parameters: "blocks.0-1,5.norm1.bias" stands for three, any other name for itself."""
    match = re.fullmatch(rf"((?:{re.escape(DECODER)})?)blocks\.([\d,-]{{1,4096}})\.(.+)", name)
    return [f"{match[1]}blocks.{layer}.{match[3]}" for layer in _layers(match[2], depth)] if match else [name]


def _layers(spans: str, depth: int) -> Iterable[int]:
    """The layer numbers in a text that parameters.spans wrote, below depth."""
    for span in spans.split(","):
        first, _, last = span.partition("-")
        if first.isdigit() and (last or first).isdigit():
            yield from range(int(first), min(int(last or first), depth) + 1)


def one_line_cause(error: BaseException) -> str:
    """The message of a TensorStore error in one line, without its source locations."""
    return shortened(str(error).partition("\n")[0].partition(" [source locations")[0]) or type(error).__name__


def leaf_summary(arrays: Mapping[str, Any]) -> dict[str, Leaf]:
    """Name -> `Leaf`, for arrays of any library."""
    return {name: Leaf(dtype=np.dtype(x.dtype).name, shape=tuple(x.shape)) for name, x in arrays.items()}
