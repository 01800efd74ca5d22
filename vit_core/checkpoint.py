"""The checkpoint folder both twins open: `config.json` and `model.safetensors`, canonical names, torch's layout.

The weights file is replaced in one step and carries the config in its header, so whatever instant a save is cut at,
weights and config belong together; config.json is the copy for people and tools. A stamp in both tells a config.json
that somebody edited (it counts) from one that an interrupted save left (the header counts: it names the stamp it was
about to replace) and from one of another checkpoint (refused).
"""

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import ml_dtypes
import numpy as np
from pydantic import model_validator
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vit_core import parameters, position_embeddings
from vit_core.config import Size, ViTConfig
from vit_core.errors import InputError, unknown_name
from vit_core.places import Stored, here, place, sending
from vit_core.position_embeddings import Method
from vit_core.preprocess import Preprocessing
from vit_core.schema import Flag, NonNegative, Schema

WEIGHTS, CONFIG = "model.safetensors", "config.json"
FINISHED = "checkpoint"
"""Where a training run leaves its checkpoint, in its folder."""

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
    trained_since: Flag = False
    """Whether the weights were trained at it since; without, resizing costs accuracy."""


class Provenance(Schema):
    """Where weights come from."""

    run: str | None = None
    """Name of the training run."""
    step: NonNegative | None = None
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

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        model, seen = self.model, self.preprocessing
        if self.labels is not None and len(self.labels) != model.num_classes:
            raise ValueError(f"labels: {len(self.labels)} names for num_classes {model.num_classes}")
        if seen and (seen.image_size, seen.channels) != (model.image_size, model.channels):
            raise ValueError(
                f"preprocessing: gives {seen.image_size} with {seen.channels} channels, "
                f"the model takes {model.image_size} with {model.channels}"
            )
        return self

    @classmethod
    def of(
        cls,
        model: ViTConfig,
        before: "CheckpointConfig | None",
        preprocessing: Preprocessing | None,
        labels: tuple[str, ...] | None,
        provenance: Provenance | None,
    ) -> Self:
        """The config to save a model with: what is given, else what it was loaded with."""
        before = before or cls(model=model)
        return cls(
            model=model,
            preprocessing=preprocessing or before.preprocessing,
            labels=labels if labels is not None else before.labels,
            provenance=provenance or before.provenance,
        )

    def to_json(self) -> tuple[str, str]:
        """The text of config.json and the stamp it carries."""
        fields = self.model_dump(mode="json")
        stamp = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]
        return json.dumps({"stamp": stamp, **fields}, indent=2) + "\n", stamp

    @classmethod
    def from_json(cls, text: str, where: str) -> tuple[Self, str | None]:
        """The config and its stamp, if any; InputError for anything else than what to_json wrote (or its edit)."""
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: not JSON ({error}); expected a checkpoint's config") from None
        if not isinstance(fields, dict) or "format_version" not in fields or "model" not in fields:
            raise InputError(f"{where}: not a vit-parity checkpoint's config (no format_version and model)")
        stamp = fields.pop("stamp", None)
        return cls.parse(fields, where), stamp if isinstance(stamp, str) else None

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The JSON schema of config.json."""
        schema = cls.model_json_schema()
        stamp = {"type": "string", "description": "Ties this file to the weights it was written with."}
        schema["properties"] = {"stamp": stamp, **schema["properties"]}
        return schema


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

    def __contains__(self, name: object) -> bool:
        return name in self.makers  # Mapping's own would make the array

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
        dtype: object = None,
    ) -> "Checkpoint":
        """In another type, for another image size (positions resampled, and that recorded) or number of classes.

        position_embedding_method: becomes the config's own, for this change and later ones. dtype: of all arrays;
        positions are resampled from it. Raises InputError for what cannot be.
        """
        adapted = self
        if dtype is not None:
            as_dtype(dtype)
            makers = {name: partial(self._converted, name, dtype) for name in self.arrays}
            adapted = dataclasses.replace(adapted, arrays=LazyArrays(makers))
        if position_embedding_method is not None:
            if position_embedding_method not in position_embeddings.METHODS:
                raise unknown_name("position-embedding method", position_embedding_method, position_embeddings.METHODS)
            model = self.config.model.replace(position_resampling=position_embedding_method)
            adapted = adapted.with_config(self.config.replace(model=model))
        if num_classes is not None and num_classes != self.config.model.num_classes:
            adapted = adapted.with_head(num_classes)
        if image_size is not None:
            adapted = adapted._with_image_size(image_size)
        return adapted

    def _converted(self, name: str, dtype: object) -> np.ndarray:
        return convert(self.arrays[name], dtype)

    def with_config(self, config: CheckpointConfig) -> "Checkpoint":
        """The same arrays under another config."""
        return dataclasses.replace(self, config=config)

    def with_head(self, num_classes: int) -> "Checkpoint":
        """With a new head, its initial values as the config says (zero, unless head_bias_init); 0: with none."""
        old = self.config.model
        model = old.replace(num_classes=num_classes, representation=old.representation if num_classes else None)
        config = self.config.replace(model=model, labels=None)
        rows, arrays = parameters.parameters(model), self.arrays
        dtype = arrays["patch_embed.proj.weight"].dtype
        for name, row in rows.items():
            if name.startswith(("head.", "head_dist.")):
                arrays = arrays.with_array(name, parameters.draw(row, 0).astype(dtype))
        return dataclasses.replace(self, config=config, arrays=arrays.select(rows))

    def _with_image_size(self, image_size: int | tuple[int, int]) -> "Checkpoint":
        old = self.config.model
        new = old.replace(image_size=image_size)
        changes: dict[str, Any] = {"model": new}
        if self.config.preprocessing:
            changes["preprocessing"] = self.config.preprocessing.replace(image_size=image_size)
        arrays = self.arrays
        if old.position_embedding == "learned" and new.grid != old.grid:
            prefix = old.prefix_positions
            pos_1ND = arrays["pos_embed"]
            pos_1ND = position_embeddings.resample(pos_1ND, old.grid, new.grid, old.position_resampling, prefix)
            arrays = arrays.with_array("pos_embed", pos_1ND)
            done = Resampling(method=old.position_resampling, source=old.grid, target=new.grid)
            provenance = self.config.provenance
            changes["provenance"] = provenance.replace(position_resampling=(*provenance.position_resampling, done))
        return dataclasses.replace(self, config=self.config.replace(**changes), arrays=arrays)


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens a checkpoint folder (or its weights file alone), or a step that Orbax wrote, no weights read yet.

    Every name and shape is checked. Raises InputError naming what is missing, damaged or does not fit.
    """
    if orbax_step := _orbax_step(path):
        return orbax_step
    path = place(path)
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
    arrays = LazyArrays({name: partial(file.read, name) for name in rows})
    return Checkpoint(path, config, LazyArrays({name: partial(_read_finite, weights, arrays, name) for name in rows}))


def _orbax_step(folder: str | os.PathLike[str]) -> Checkpoint | None:
    from vit_core.formats import orbax  # it is built on this module

    path = place(folder)
    if not orbax.is_step(path):
        return None
    config = CheckpointConfig.parse(orbax.metadata(path), f"{path / orbax.MANIFEST}: metadata")
    arrays = orbax.parameters_of(path, config.model)
    return Checkpoint(path, config, LazyArrays({name: partial(_read_finite, path, arrays, name) for name in arrays}))


def _read_finite(path: Path, arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    array = arrays[name]
    if not np.isfinite(array).all():
        warnings.warn(f"{path}: parameter {name} holds values that are not finite", stacklevel=2)
    return array


def saved_steps(run: Path) -> list[Path]:
    """Whole saved steps of a training run (RUN/steps/NNNNNN), the newest first."""
    from vit_core.formats import orbax

    folders = [folder for folder in run.glob("steps/[0-9]*") if folder.name.isdigit()]
    steps = [folder for folder in folders if (folder / WEIGHTS).exists() or orbax.is_step(folder)]
    return sorted(steps, key=lambda step: int(step.name), reverse=True)


def checkpoint_of(path: Path) -> Path:
    """What to open at a path: of a run the finished checkpoint, else the newest step; anything else is itself."""
    finished = path / FINISHED
    return finished if (finished / WEIGHTS).is_file() else next(iter(saved_steps(path)), path)


def save_checkpoint(
    path: str | os.PathLike[str],
    config: CheckpointConfig,
    arrays: Mapping[str, np.ndarray],
    dtype: str | np.dtype | None = None,
) -> None:
    """Writes a checkpoint folder; one that stands there is replaced, or stays whole if writing fails.

    arrays: canonical name -> array in torch's layout, exactly the config's table. dtype: stored type, else each's own.
    """
    path, rows = place(path), parameters.parameters(config.model)
    unexpected = {name: np.shape(arrays[name]) for name in arrays if name not in rows}
    stored = {name: np.ascontiguousarray(convert(arrays[name], dtype)) for name in rows if name in arrays}
    if wrong := _differences(rows, unexpected | {name: array.shape for name, array in stored.items()}):
        raise InputError(f"{path}: these parameters do not fit the config: {wrong}")
    text, _ = config.to_json()
    with staging(path, (WEIGHTS, CONFIG)) as stage:
        metadata = {"format": "pt", "config": text, "replaces": _stamp_of(path / CONFIG) or ""}
        save_file(stored, stage / WEIGHTS, metadata=metadata)
        (stage / CONFIG).write_text(text)


@contextmanager
def staging(folder: Path, names: tuple[str, ...]) -> Iterator[Path]:
    """A place to write files `names` in; at the end they replace those in `folder`, one by one, in this order.

    Everything is on the disk before the first is replaced; what a killed process left is swept. Raises InputError
    for what the file system refuses, leaving the folder as it was.
    """
    if isinstance(folder, Stored):
        with sending(folder, *names) as stage:
            yield stage
        return
    created = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            if (folder / name).is_dir():
                raise IsADirectoryError(f"{folder / name} is a directory")
        for stale in folder.glob(".saving-*"):
            shutil.rmtree(stale, ignore_errors=True)
        stage = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
        try:
            yield stage
            for name in names:
                (stage / name).chmod(0o666 & ~_umask())  # safetensors writes 0600
                _flush(stage / name)
            for name in names:
                os.replace(stage / name, folder / name)
            _flush(folder)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        if created and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        raise InputError(f"{folder}: cannot write there ({error}); choose a writable folder with room") from None


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _stamp_of(config: Path) -> str | None:
    """The stamp of a config.json that is there and readable."""
    try:
        stamp = json.loads(config.read_text()).get("stamp")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return stamp if isinstance(stamp, str) else None


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


class _WeightsFile:
    """A safetensors file: its metadata, each array's shape, and a way to read one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with here(path) as file:
                self.file = safe_open(file, framework="np")
            self.metadata: dict[str, str] = self.file.metadata() or {}
            slices = {name: self.file.get_slice(name) for name in self.file.keys()}  # noqa: SIM118 (not a mapping)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: not a whole safetensors file ({error}); copy or save it again") from None
        self.shapes = {name: tuple(view.get_shape()) for name, view in slices.items()}
        for name, view in slices.items():
            if view.get_dtype() not in _SAFETENSORS_DTYPES:
                raise InputError(f"{path}: parameter {name} is {view.get_dtype()}; expected one of {', '.join(DTYPES)}")

    def read(self, name: str) -> np.ndarray:
        array: np.ndarray = self.file.get_tensor(name)
        return array


def _read_config(path: Path, weights: _WeightsFile) -> CheckpointConfig:
    header = weights.metadata.get("config")
    inside = CheckpointConfig.from_json(header, f"{weights.path} (header)") if header else None
    file = path / CONFIG
    if not path.is_dir() or not file.exists():
        if inside is None:
            raise InputError(f"{file if path.is_dir() else path}: no config; expected {CONFIG} beside {WEIGHTS}")
        return inside[0]
    if inside is not None and (stamp := _stamp_of(file)) not in (None, inside[1]):
        if stamp == weights.metadata.get("replaces"):
            return inside[0]  # a save was cut between the two files
        raise InputError(f"{file}: belongs to other weights than {weights.path.name} beside it; restore one of them")
    try:
        return CheckpointConfig.from_json(file.read_text(), str(file))[0]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read ({error})") from None


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
