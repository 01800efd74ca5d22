"""A checkpoint as data: the config of a model, where its weights come from, and its arrays; no reading or writing."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self

import numpy as np
from pydantic import model_validator

from vit_core import patch_kernels, position_embeddings
from vit_core.arrays import LazyArray, LazyArrays, convert
from vit_core.checkpoints.decoder import Decoder
from vit_core.config import Size, ViTConfig
from vit_core.errors import InputError, unknown_name
from vit_core.field_text import field_text
from vit_core.parameters import initial_value, parameters
from vit_core.planes import RGB
from vit_core.position_embeddings import Method
from vit_core.preprocess import IMAGE_FIELDS, Preprocessing
from vit_core.relative_positions import resampled_table
from vit_core.schema import Flag, NonNegative, Schema

_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "crop_fraction": 0.875}
_PUBLISHED: dict[str | None, dict[str, Any]] = {
    "torchvision": {**_IMAGENET, "interpolation": "bilinear"},  # ViT_B_16_Weights.IMAGENET1K_V1
    "meta": _IMAGENET,  # the evaluation of DINO, DINOv2, MAE, DeiT
}
"""Format of weights that were published with one preprocessing for RGB images -> fields of it. They are assumed if the
file records none."""


class Resampling(Schema):
    """One resampling of the position embeddings to another grid."""

    method: Method
    source: Size
    """Grid before, in patches."""
    target: Size
    """Grid after, in patches."""
    trained_since: Flag = False
    """Whether the weights were trained at the new resolution afterwards. Resizing without training costs accuracy."""


class Provenance(Schema):
    """Where the weights of a checkpoint come from."""

    run: str | None = None
    """Name of the training run."""
    step: NonNegative | None = None
    """Number of training steps that the run had finished."""
    source: str | None = None
    """Name of the file or folder from which the weights were converted."""
    source_format: str | None = None
    """Format of that file or folder."""
    position_resampling: tuple[Resampling, ...] = ()
    """Changes of resolution, oldest first."""

    @property
    def resampling_warning(self) -> str | None:
        """The warning for positions that were resampled and not trained afterwards, which costs accuracy; None if there
        are none."""
        untrained = [done for done in self.position_resampling if not done.trained_since]
        if not untrained:
            return None
        source, target = (f"{height} x {width}" for height, width in (untrained[0].source, untrained[-1].target))
        return (
            f"positions resampled from a {source} grid to {target} and not trained since: expect less accuracy than "
            "after fine-tuning at this size"
        )


class CheckpointConfig(Schema):
    """Everything in a checkpoint folder's config.json."""

    format_version: Literal[1] = 1
    model: ViTConfig
    preprocessing: Preprocessing | None = None
    """How the training images were prepared. None: unknown."""
    labels: tuple[str, ...] | None = None
    """Name of each class, in the order of the outputs."""
    probabilities: Literal["softmax", "sigmoid"] | None = None
    """How training computed probabilities from the outputs. softmax: each image has one class. sigmoid: each class is
    present or absent independently of the others. None: unknown."""
    provenance: Provenance = Provenance()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        model, preprocessing = self.model, self.preprocessing
        if self.labels is not None and len(self.labels) != model.num_classes:
            raise ValueError(f"labels: {len(self.labels)} names for num_classes {model.num_classes}")
        if preprocessing and (preprocessing.image_size, preprocessing.channels) != (model.image_size, model.channels):
            raise ValueError(
                f"preprocessing: produces {preprocessing.image_size} with {preprocessing.channels} channels, "
                f"but the model expects {model.image_size} with {model.channels}"
            )
        if preprocessing and preprocessing.max_patches is not None and preprocessing.patch_size != model.patch_size:
            raise ValueError(
                f"preprocessing: cuts patches of {preprocessing.patch_size}, but the model expects {model.patch_size}"
            )
        return self

    @classmethod
    def of(
        cls,
        model: ViTConfig,
        loaded_with: "CheckpointConfig | None",
        preprocessing: Preprocessing | None,
        labels: tuple[str, ...] | None,
        provenance: Provenance | None,
    ) -> Self:
        """The config to save with a model: each argument that is not None, otherwise the value in `loaded_with`, the
        config that the model was loaded with."""
        before = loaded_with or cls(model=model)
        return cls(
            model=model,
            preprocessing=preprocessing or before.preprocessing,
            labels=labels if labels is not None else before.labels,
            probabilities=before.probabilities,
            provenance=provenance or before.provenance,
        )

    def with_head_of(self, model: ViTConfig) -> Self:
        """The config of a model with a new head: labels and probabilities, which belong to the old outputs, are
        removed."""
        return self.replace(model=model, labels=None, probabilities=None)

    def preparation(self, changes: Mapping[str, Any] | None = None) -> tuple[Preprocessing, tuple[str, ...]]:
        """The preprocessing for this model's images: as in its training, except for `changes` (fields of
        Preprocessing).

        Also returns the names of the fields that had to be assumed, because no preprocessing is recorded: those of the
        weights that were published in the format, or the defaults.
        """
        changes = dict(changes or {})
        if changes.get("max_patches") is not None:
            changes["patch_size"] = self.model.patch_size
        channels = self.model.channels
        usual = _PUBLISHED.get(self.provenance.source_format, {}) if channels == RGB else {}
        recorded = self.preprocessing or Preprocessing(image_size=self.model.image_size, channels=channels, **usual)
        assumed = () if self.preprocessing else tuple(name for name in IMAGE_FIELDS if name not in changes)
        return recorded.replace(**changes) if changes else recorded, assumed

    def to_json(self) -> tuple[str, str]:
        """The text of config.json, and the stamp in it (the first 16 hexadecimal digits of a SHA-256 of the other
        fields)."""
        fields = self.model_dump(mode="json")
        stamp = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]
        return json.dumps({"stamp": stamp, **fields}, indent=2) + "\n", stamp

    @classmethod
    def from_json(cls, text: str, where: str) -> tuple[Self, str | None]:
        """The config and its stamp, if it has one. Raises InputError for text that was not written by to_json (it may
        have been edited)."""
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: not JSON ({error}); expected the config of a checkpoint") from None
        if not isinstance(fields, dict) or "format_version" not in fields or "model" not in fields:
            raise InputError(f"{where}: not the config of a vit-parity checkpoint (no format_version and model)")
        stamp = fields.pop("stamp", None)
        return cls.parse(fields, where), stamp if isinstance(stamp, str) else None

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The JSON schema of config.json."""
        schema = cls.model_json_schema()
        stamp = {"type": "string", "description": "Identifies the weights that this file was written with."}
        schema["properties"] = {"stamp": stamp, **schema["properties"]}
        return schema


@dataclass(frozen=True)
class Assumption:
    """A field of ViTConfig that a file of another project does not contain, and the value that was assumed for it."""

    field: str
    """Name of the field; "model_type" if two networks have the same arrays and transformers' config.json is missing."""
    value: Any
    why: str
    """Why this value, as a phrase: "as in ViT-B/16"."""
    alternatives: str = ""
    """How to choose another value; empty: `--set FIELD=VALUE`."""

    def __str__(self) -> str:
        value = field_text(self.field, self.value).partition("=")[2]
        alternatives = self.alternatives or f"--set {self.field}=VALUE for another"
        return f"{self.field}: {value}, {self.why}; {alternatives}"


@dataclass(frozen=True)
class Checkpoint:
    """The config and the parameters of a model, independent of the file format; each parameter is read when it is
    used."""

    config: CheckpointConfig
    arrays: LazyArrays
    """Canonical name -> array in the layout on disk (PyTorch's)."""
    origin: str = "a checkpoint in memory"
    """Where it was opened, for messages: the path of a file or folder."""
    format: str = "vit"
    """Name of the format of the file or folder."""
    notes: tuple[str, ...] = ()
    """Notes for the user on how another project's file was read: values that were assumed, and arrays that were left
    out."""
    assumptions: tuple[Assumption, ...] = ()
    """The fields of the config that the file does not contain."""
    decoder: Decoder | None = None
    """The decoder that belongs to this encoder, if the file is that of a masked autoencoder. Only pretraining needs it,
    and only transformers' format can store it."""

    @classmethod
    def of(cls, config: CheckpointConfig, arrays: Mapping[str, np.ndarray], dtype: object = None) -> Self:
        """A checkpoint of arrays in memory (canonical name -> array in the layout on disk), to be stored as `dtype`
        (None: the type of each array)."""
        return cls(config, LazyArrays.of(arrays).as_type(dtype))

    @property
    def dtype(self) -> str:
        """Name of the type of the patch projection's weight, for example "float32"; most arrays have the same type."""
        return self.arrays.entries["patch_embed.proj.weight"].dtype

    def with_config(self, config: CheckpointConfig) -> "Checkpoint":
        """The same arrays with another config."""
        return dataclasses.replace(self, config=config)

    def with_model(self, **fields: Any) -> "Checkpoint":
        """The same arrays with a model config in which some fields are changed."""
        return self.with_config(self.config.replace(model=self.config.model.replace(**fields)))

    def with_arrays(self, arrays: LazyArrays) -> "Checkpoint":
        """The same config with other arrays, selected and ordered by the parameter table."""
        return dataclasses.replace(self, arrays=arrays.select(parameters(self.config.model)))

    def adapt(
        self,
        *,
        image_size: int | tuple[int, int] | None = None,
        patch_size: int | tuple[int, int] | None = None,
        num_classes: int | None = None,
        position_embedding_method: str | None = None,
        patch_method: str = patch_kernels.METHODS[0],
        dtype: object = None,
    ) -> "Checkpoint":
        """The checkpoint with another type, image or patch size, or number of classes; arguments that are None change
        nothing.

        image_size: (height, width) in pixels; learned positions are resampled, and provenance records it. patch_size:
        (height, width) in pixels; the patch kernel is resized as in FlexiViT (arXiv:2212.08013), and positions are
        resampled to the new grid, for the same image size unless another is given. patch_method: one of
        vit_core.patch_kernels.METHODS; "bilinear" for FlexiViT's published weights and smaller patches.
        num_classes: makes a new head with the config's initial values. position_embedding_method: replaces the
        config's, for this resampling and later ones. dtype: of all arrays, converted before anything is resampled.
        Raises InputError for values that the model cannot have.
        """
        adapted = self
        if dtype is not None:
            decoder = adapted.decoder and adapted.decoder.as_type(dtype)
            adapted = dataclasses.replace(adapted, arrays=adapted.arrays.as_type(dtype), decoder=decoder)
        if position_embedding_method is not None:
            if position_embedding_method not in position_embeddings.METHODS:
                raise unknown_name("position-embedding method", position_embedding_method, position_embeddings.METHODS)
            adapted = adapted.with_model(position_resampling=position_embedding_method)
        if num_classes is not None and num_classes != self.config.model.num_classes:
            adapted = adapted.with_head(num_classes)
        if image_size is not None or patch_size is not None:
            model = self.config.model
            adapted = adapted._with_sizes(image_size or model.image_size, patch_size or model.patch_size, patch_method)
        return adapted

    def with_fixed_positions(self) -> "Checkpoint":
        """The checkpoint with MAE's position formula in place of a table with its rounded values and zeros for the
        class token; unchanged if the table has other values. (Masked autoencoders do not train the table, but files
        contain it.)"""
        model = self.config.model
        if model.position_embedding != "learned" or not position_embeddings.is_mae_table(
            self.arrays["pos_embed"], model.grid, model.prefix_positions
        ):
            return self
        fixed = self.with_model(position_embedding="sincos2d_mae")
        return fixed.with_arrays(self.arrays)

    def with_head(self, num_classes: int) -> "Checkpoint":
        """The checkpoint with a new head of `num_classes` outputs, with the config's initial values (zeros, unless
        head_bias_init is set); 0 removes the head. Labels and the kind of probabilities are removed."""
        old = self.config.model
        model = old.replace(num_classes=num_classes, representation=old.representation if num_classes else None)
        arrays = self.arrays
        for name, row in parameters(model).items():
            if name.startswith(("head.", "head_dist.")):
                arrays = arrays.with_array(name, convert(initial_value(row, 0), self.dtype))
        return self.with_config(self.config.with_head_of(model)).with_arrays(arrays)

    def with_outputs(self, order: Sequence[int | None]) -> "Checkpoint":
        """The checkpoint with reordered outputs of the head: output i is the old output order[i], or, for None, a new
        one with initial values as in `with_head`. Labels are reordered too; they are removed if an output is new.

        order: contains each old output at most once; otherwise ValueError.
        """
        kept = [i for i in order if i is not None]
        if len(set(kept)) < len(kept) or not set(kept) <= set(range(self.config.model.num_classes)):
            raise ValueError(f"order {list(order)}: expected outputs of {self.config.model.num_classes}, each once")
        changed = self.with_head(len(order))
        if not kept:
            return changed
        positions, entries = [i for i, old in enumerate(order) if old is not None], dict(changed.arrays.entries)
        for name, new in changed.arrays.entries.items():
            if name.startswith(("head.", "head_dist.")):
                old = self.arrays.entries[name]
                entries[name] = old.then(partial(_with_rows, new, positions, kept), new.shape, old.dtype)
        labels = self.config.labels and tuple(self.config.labels[i] for i in kept)
        config = changed.config.replace(
            labels=labels if len(kept) == len(order) else None, probabilities=self.config.probabilities
        )
        return dataclasses.replace(changed, config=config, arrays=LazyArrays(entries))

    def _with_sizes(
        self, image_size: int | tuple[int, int], patch_size: int | tuple[int, int], patch_method: str
    ) -> "Checkpoint":
        old = self.config.model
        new = old.replace(image_size=image_size, patch_size=patch_size)
        changes: dict[str, Any] = {"model": new}
        if self.config.preprocessing:
            patch = {} if self.config.preprocessing.patch_size is None else {"patch_size": patch_size}
            changes["preprocessing"] = self.config.preprocessing.replace(image_size=image_size, **patch)
        arrays = self.arrays
        if new.patch_kernel != old.patch_kernel:
            kernel = arrays["patch_embed.proj.weight"]
            kernel = patch_kernels.resize_kernel(kernel, old.kernel_of(new.patch_size), patch_method)
            arrays = arrays.with_array("patch_embed.proj.weight", kernel)
        if new.grid != old.grid:
            for name in list(arrays):
                if name.endswith("relative_position_bias_table"):
                    arrays = arrays.with_array(name, resampled_table(arrays[name], old.grid, new.grid))
        if old.position_embedding == "learned" and new.grid != old.grid:
            pos_1ND = position_embeddings.resample(
                arrays["pos_embed"], old.grid, new.grid, old.position_resampling, old.prefix_positions
            )
            arrays = arrays.with_array("pos_embed", pos_1ND)
            resampled = Resampling(method=old.position_resampling, source=old.grid, target=new.grid)
            provenance = self.config.provenance
            changes["provenance"] = provenance.replace(position_resampling=(*provenance.position_resampling, resampled))
        return dataclasses.replace(self, config=self.config.replace(**changes), arrays=arrays)


def weights_digest(arrays: Mapping[str, np.ndarray]) -> str:
    """The first 32 hexadecimal digits of a SHA-256 of the names, types, shapes and values of arrays."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:32]


def _with_rows(new: LazyArray, positions: list[int], rows: list[int], old: np.ndarray) -> np.ndarray:
    """A new array in the type of the old one, whose rows at `positions` are the `rows` of the old one."""
    array = new.read().astype(old.dtype)
    array[positions] = old[rows]
    return array
