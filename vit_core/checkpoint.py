"""The checkpoint folder both twins open: `config.json` and `model.safetensors`, canonical names, torch's layout.

The weights file is replaced in one step and carries the config in its header, so whatever instant a save is cut at,
weights and config belong together; config.json is the copy for people and tools. A stamp in both tells a config.json
somebody edited (it counts) from one that an interrupted save left behind (the header counts).
"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vit_core import parameters, position_embeddings
from vit_core.config import Size, ViTConfig
from vit_core.errors import InputError, unknown_name
from vit_core.position_embeddings import Method
from vit_core.preprocess import Preprocessing
from vit_core.schema import Schema

WEIGHTS, CONFIG = "model.safetensors", "config.json"

DTYPES: dict[str, np.dtype] = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}
_SAFETENSORS_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


class Resampling(Schema):
    """One change of resolution that the position embeddings went through."""

    method: Method
    source: Size
    """Grid before, in patches."""
    target: Size
    """Grid after."""


class Provenance(Schema):
    """Where weights come from."""

    run: str | None = None
    """Name of the training run."""
    step: int | None = None
    """Training step."""
    source: str | None = None
    """Name of the file or folder they were converted from."""
    source_format: str | None = None
    """Its format."""
    position_resampling: tuple[Resampling, ...] = ()
    """Changes of resolution, oldest first."""


class CheckpointConfig(Schema):
    """All of config.json."""

    format_version: Literal[1] = 1
    model: ViTConfig
    preprocessing: Preprocessing | None = None
    """How the images it was trained on were made; none if unknown."""
    labels: tuple[str, ...] | None = None
    """Name of each class."""
    provenance: Provenance = Provenance()

    def to_json(self) -> tuple[str, str]:
        """The text of config.json and the stamp it carries."""
        fields = self.model_dump(mode="json")
        stamp = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]
        return json.dumps({"stamp": stamp, **fields}, indent=2) + "\n", stamp

    @classmethod
    def from_json(cls, text: str, where: str) -> tuple[Self, str | None]:
        """The config and its stamp; InputError for anything else than what to_json wrote (or its edit)."""
        try:
            fields = json.loads(text)
        except ValueError as error:
            raise InputError(f"{where}: not JSON ({error}); expected a checkpoint's config") from None
        if not isinstance(fields, dict) or "format_version" not in fields or "model" not in fields:
            raise InputError(f"{where}: not a vit-parity checkpoint's config (no format_version and model)")
        stamp = fields.pop("stamp", None)
        config = cls.parse(fields, where)
        if config.labels is not None and len(config.labels) != config.model.num_classes:
            raise InputError(f"{where}: {len(config.labels)} labels for num_classes {config.model.num_classes}")
        return config, stamp


class LazyArrays(Mapping[str, np.ndarray]):
    """Arrays by name, made when asked for and each time anew, so that whoever gets one may write into it."""

    def __init__(self, makers: Mapping[str, Callable[[], np.ndarray]]) -> None:
        self.makers = makers

    def with_array(self, name: str, array: np.ndarray) -> "LazyArrays":
        """With one array put in or replaced."""
        return LazyArrays({**self.makers, name: array.copy})

    def select(self, names: Iterable[str]) -> "LazyArrays":
        """Only these, in this order."""
        return LazyArrays({name: self.makers[name] for name in names})

    def __getitem__(self, name: str) -> np.ndarray:
        return self.makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self.makers)

    def __len__(self) -> int:
        return len(self.makers)


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: its config, and its parameters read one by one when asked for."""

    path: Path
    config: CheckpointConfig
    arrays: LazyArrays
    """Canonical name -> array in torch's layout."""

    def adapt(
        self,
        *,
        image_size: int | tuple[int, int] | None = None,
        num_classes: int | None = None,
        position_embedding_method: str | None = None,
    ) -> "Checkpoint":
        """For another image size (positions resampled, and that recorded) or number of classes (a new head).

        position_embedding_method: by default the config's own. Raises InputError for what cannot be.
        """
        if position_embedding_method not in (None, *position_embeddings.METHODS):
            raise unknown_name("position-embedding method", position_embedding_method, position_embeddings.METHODS)
        adapted = self
        if num_classes is not None and num_classes != self.config.model.num_classes:
            adapted = adapted._with_classes(num_classes)
        if image_size is not None:
            adapted = adapted._with_image_size(image_size, position_embedding_method)
        return adapted

    def _with_classes(self, num_classes: int) -> "Checkpoint":
        old = self.config.model
        model = old.replace(num_classes=num_classes, representation=old.representation if num_classes else None)
        config = self.config.replace(model=model, labels=None)
        rows = parameters.parameters(model)
        arrays = self.arrays
        for name, row in rows.items():
            if name.startswith("head."):
                arrays = arrays.with_array(name, parameters.draw(row, 0).astype(np.float32))
        return replace(self, config=config, arrays=arrays.select(rows))

    def _with_image_size(self, image_size: int | tuple[int, int], method: str | None) -> "Checkpoint":
        old = self.config.model
        new = old.replace(image_size=image_size)
        changes: dict[str, Any] = {"model": new}
        if self.config.preprocessing:
            changes["preprocessing"] = self.config.preprocessing.replace(image_size=image_size)
        arrays = self.arrays
        if old.position_embedding == "learned" and new.grid != old.grid:
            method = method or old.position_resampling
            prefix = int(old.class_token_position)
            pos_1ND = position_embeddings.resample(arrays["pos_embed"], old.grid, new.grid, method, prefix)
            arrays = arrays.with_array("pos_embed", pos_1ND)
            done = Resampling(method=method, source=old.grid, target=new.grid)
            provenance = self.config.provenance
            changes["provenance"] = provenance.replace(position_resampling=(*provenance.position_resampling, done))
        return replace(self, config=self.config.replace(**changes), arrays=arrays)


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens a checkpoint folder (or its weights file alone), every name and shape checked, no weights read yet.

    Raises InputError naming what is missing, damaged or does not fit.
    """
    path = Path(path)
    weights = path / WEIGHTS if path.is_dir() else path
    if not path.exists():
        raise InputError(f"{path}: no such checkpoint; expected a folder with {CONFIG} and {WEIGHTS}")
    if not weights.is_file():
        found = "is not a file" if weights.exists() else "is missing"
        raise InputError(f"{weights}: {found}; a checkpoint is a folder with {CONFIG} and {WEIGHTS}")
    file = _WeightsFile(weights)
    config = _read_config(path, file)
    rows = parameters.parameters(config.model)
    if wrong := _differences(rows, file.shapes):
        raise InputError(f"{weights}: parameters do not fit the config: {wrong}")
    return Checkpoint(path, config, LazyArrays({name: partial(file.read, name) for name in rows}))


def save_checkpoint(
    path: str | os.PathLike[str],
    config: CheckpointConfig,
    arrays: Mapping[str, np.ndarray],
    dtype: str | np.dtype | None = None,
) -> None:
    """Writes a checkpoint folder; one that stands there is replaced, and survives whole if writing fails.

    arrays: canonical name -> array in torch's layout, exactly the config's table. dtype: stored type, else each's own.
    """
    path = Path(path)
    rows = parameters.parameters(config.model)
    stored = {name: np.ascontiguousarray(convert(arrays[name], dtype)) for name in rows if name in arrays}
    wrong = _differences(rows, {name: array.shape for name, array in {**arrays, **stored}.items()})
    if wrong:
        raise InputError(f"{path}: these parameters do not fit the config: {wrong}")
    text, _ = config.to_json()
    created = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        replace_file(path / WEIGHTS, lambda temporary: save_file(stored, temporary, metadata={"config": text}))
        replace_file(path / CONFIG, lambda temporary: temporary.write_text(text))
    except (OSError, SafetensorError) as error:
        if created and path.is_dir() and not any(path.iterdir()):
            path.rmdir()
        raise InputError(f"{path}: cannot write the checkpoint ({error}); choose a writable folder with room") from None


def convert(array: np.ndarray, dtype: object = None) -> np.ndarray:
    """The array in another floating type, named, or given as a NumPy, JAX or PyTorch dtype; as it is for none."""
    return array if dtype is None else array.astype(as_dtype(dtype), copy=False)


def as_dtype(dtype: object) -> np.dtype:
    """The NumPy type of a floating dtype, however it is given: "bfloat16", jnp.bfloat16, torch.bfloat16, ..."""
    try:
        name = dtype.removeprefix("torch.") if isinstance(dtype, str) else np.dtype(dtype).name  # type: ignore
    except TypeError:
        name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise unknown_name("dtype", name, DTYPES)
    return DTYPES[name]


def replace_file(path: Path, write: Any) -> None:
    """Puts a file in place in one step: `write(temporary)`, flushed to the disk, then renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class _WeightsFile:
    """A safetensors file: its metadata, each array's shape, and a way to read one (warning if it is not finite)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.file = safe_open(path, framework="np")
            self.metadata: dict[str, str] = self.file.metadata() or {}
            slices = {name: self.file.get_slice(name) for name in self.file.keys()}  # noqa: SIM118 (not a mapping)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: not a whole safetensors file ({error}); copy or save it again") from None
        self.shapes = {name: tuple(view.get_shape()) for name, view in slices.items()}
        for name, view in slices.items():
            if view.get_dtype() not in _SAFETENSORS_DTYPES:
                raise InputError(f"{path}: parameter {name} is {view.get_dtype()}; expected one of {', '.join(DTYPES)}")

    def read(self, name: str) -> np.ndarray:
        array = self.file.get_tensor(name)
        if not np.isfinite(array).all():
            warnings.warn(f"{self.path}: parameter {name} holds values that are not finite", stacklevel=2)
        return array


def _read_config(path: Path, weights: _WeightsFile) -> CheckpointConfig:
    header = weights.metadata.get("config")
    inside = CheckpointConfig.from_json(header, f"{weights.path} (header)") if header else None
    file = path / CONFIG
    if not path.is_dir() or not file.exists():
        if inside is None:
            raise InputError(f"{file if path.is_dir() else path}: no config; expected {CONFIG} beside {WEIGHTS}")
        return inside[0]
    try:
        outside = CheckpointConfig.from_json(file.read_text(), str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read ({error})") from None
    if inside is not None and inside[1] != outside[1]:
        return inside[0]  # a save was cut between the two files
    return outside[0]


def _differences(rows: Mapping[str, parameters.Parameter], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Every missing, unexpected and wrongly shaped parameter, with what was expected and found; "" if none."""
    missing = [f"{name} {list(row.shape)}" for name, row in rows.items() if name not in shapes]
    unexpected = [f"{name} {list(shape)}" for name, shape in shapes.items() if name not in rows]
    misshapen = [
        f"{name} expected {list(row.shape)} found {list(shapes[name])}"
        for name, row in rows.items()
        if name in shapes and shapes[name] != row.shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "wrong shape": misshapen}
    return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names)
