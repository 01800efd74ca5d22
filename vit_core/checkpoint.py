"""The checkpoint folder both twins open: `config.json` and `model.safetensors`, canonical names, torch's layout.

The weights file is replaced in one step and carries the config in its header, so whatever instant a save is cut at,
weights and config belong together; config.json is the copy for people and tools. A stamp in both tells a config.json
that somebody edited (it counts) from one that an interrupted save left (the header counts: it names the stamp it was
about to replace) and from one of another checkpoint (refused).
"""

import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import model_validator
from safetensors import SafetensorError

from vit_core import parameters, position_embeddings
from vit_core.arrays import DTYPES, LazyArrays, convert
from vit_core.config import Size, ViTConfig
from vit_core.containers import Container, open_safetensors, write_safetensors
from vit_core.errors import InputError, some, unknown_name
from vit_core.places import Stored, place, sending
from vit_core.position_embeddings import Method
from vit_core.preprocess import Preprocessing
from vit_core.schema import Flag, NonNegative, Schema

WEIGHTS, CONFIG = "model.safetensors", "config.json"
FINISHED = "checkpoint"
"""Where a training run leaves its checkpoint, in its folder."""


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


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: its config, and its parameters read one by one when asked for."""

    path: Path
    config: CheckpointConfig
    arrays: LazyArrays
    """Canonical name -> array in torch's layout."""
    notes: tuple[str, ...] = ()
    """What was assumed or left out in reading another project's file."""
    format: str = "vit"
    """The format it was read from."""

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
            adapted = dataclasses.replace(adapted, arrays=adapted.arrays.as_type(dtype))
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

    def with_config(self, config: CheckpointConfig) -> "Checkpoint":
        """The same arrays under another config."""
        return dataclasses.replace(self, config=config)

    def with_head(self, num_classes: int) -> "Checkpoint":
        """With a new head, its initial values as the config says (zero, unless head_bias_init); 0: with none."""
        old = self.config.model
        model = old.replace(num_classes=num_classes, representation=old.representation if num_classes else None)
        config = self.config.replace(model=model, labels=None)
        rows, arrays = parameters.parameters(model), self.arrays
        dtype = arrays.entries["patch_embed.proj.weight"].dtype
        for name, row in rows.items():
            if name.startswith(("head.", "head_dist.")):
                arrays = arrays.with_array(name, convert(parameters.draw(row, 0), dtype))
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


def open_checkpoint(
    path: str | os.PathLike[str], *, format: str | None = None, fields: Mapping[str, Any] | None = None
) -> Checkpoint:
    """Opens a checkpoint of any format (vit_core.formats), no weights read yet but what tells their kind.

    format: its format, where it should not be recognised. fields: of the model's config, where a file of another
    project cannot tell them (`{"heads": 6}`).
    Every name and shape is checked. Raises InputError naming what is missing, damaged or does not fit.
    """
    from vit_core import formats  # they are built on this module

    return formats.open_any(place(path), format, fields or {})


def open_folder(path: Path) -> Checkpoint:
    """Opens our own format: a checkpoint folder, or its weights file alone. Raises InputError as open_checkpoint."""
    weights = path / WEIGHTS if path.is_dir() else path
    if not path.exists():
        raise InputError(f"{path}: no such checkpoint; expected a folder with {CONFIG} and {WEIGHTS}")
    if not weights.is_file():
        found = "is not a file" if weights.exists() else "is missing"
        raise InputError(f"{weights}: {found}; a checkpoint is a folder with {CONFIG} and {WEIGHTS}")
    file = open_safetensors(weights)
    config = _read_config(path, file)
    rows = parameters.parameters(config.model)
    if wrong := _differences(rows, file.arrays.shapes):
        raise InputError(f"{weights}: parameters do not fit the config: {wrong}")
    return Checkpoint(path, config, checked(weights, file.arrays.select(rows)))


def checked(path: Path, arrays: LazyArrays) -> LazyArrays:
    """The same, each of a type that parameters can have, and with a warning when one that is not finite is read."""
    for name, entry in arrays.entries.items():
        if entry.dtype not in DTYPES:
            raise InputError(f"{path}: parameter {name} is {entry.dtype}; expected one of {', '.join(DTYPES)}")
    return LazyArrays(
        {
            name: entry.then(partial(_warn_not_finite, path, name), entry.shape, entry.dtype)
            for name, entry in arrays.entries.items()
        }
    )


def _warn_not_finite(path: Path, name: str, array: np.ndarray) -> np.ndarray:
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
    stored = LazyArrays.of(arrays).as_type(dtype)
    if wrong := _differences(rows, stored.shapes):
        raise InputError(f"{path}: these parameters do not fit the config: {wrong}")
    text, _ = config.to_json()
    with staging(path, (WEIGHTS, CONFIG)) as stage:
        metadata = {"format": "pt", "config": text, "replaces": _stamp_of(path / CONFIG) or ""}
        write_safetensors(stage / WEIGHTS, stored.select(rows), metadata)
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
            with suppress(OSError), _locked(stale):
                shutil.rmtree(stale)
        stage = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
        try:
            with _locked(stage):
                yield stage
            for name in names:
                (stage / name).chmod(0o666 & ~_umask())  # torch and others write as they like
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


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """For this process alone; BlockingIOError where another has it. The kernel ends it with the process."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


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


def _read_config(path: Path, weights: Container) -> CheckpointConfig:
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
    """Missing, unexpected and wrongly shaped parameter, with what was expected and found; "" if none."""
    missing = [f"{name} {list(row.shape)}" for name, row in rows.items() if name not in shapes]
    unexpected = [f"{name} {list(shape)}" for name, shape in shapes.items() if name not in rows]
    misshapen = [
        f"{name} expected {list(row.shape)} found {list(shapes[name])}"
        for name, row in rows.items()
        if name in shapes and shapes[name] != row.shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "wrong shape": misshapen}
    return "; ".join(f"{kind}: {some(names)}" for kind, names in kinds.items() if names)
