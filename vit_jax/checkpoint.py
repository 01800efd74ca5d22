"""Checkpoint folders in and out of the JAX twin."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
from flax import nnx

from vit_core.arrays import convert
from vit_core.errors import InputError
from vit_core.parameters import initial_value, parameters
from vit_jax import arrays
from vit_jax.model import ViT

if TYPE_CHECKING:
    from vit_core.checkpoints import Checkpoint, Provenance
    from vit_core.config import ViTConfig
    from vit_core.preprocess import Preprocessing
    from vit_core.storage import Location


def load(
    path: str | os.PathLike[str] | Checkpoint,
    *,
    format: str | None = None,
    fields: Mapping[str, Any] | None = None,
    part: str | None = None,
    base: str | os.PathLike[str] | Checkpoint | None = None,
    image_size: int | tuple[int, int] | None = None,
    patch_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    position_embedding_method: str | None = None,
    dtype: Any = None,
    **storage: Any,
) -> ViT:
    """A model with a checkpoint's weights.

    path: a checkpoint file or folder of any format, a training run or a saved step, local or in a store.
    format, fields, part, base: as for `vit_core.open_checkpoint`; a warning names the fields that were assumed. base:
        the checkpoint of a folder of adapters, which are merged into its weights.
    image_size: resample the positions for another (height, width), by `position_embedding_method` (default: the
        config's).
    patch_size: resize the patch kernel to another (height, width) as in FlexiViT (arXiv:2212.08013), and the positions
        to the new grid.
    num_classes: a new head with the config's initial values.
    dtype: of all parameters and therefore of the computation; default: as stored.
    storage: `attention`, `scan`, `remat` of ViT.
    Raises InputError for a checkpoint that is missing, damaged or does not fit these arguments.
    """
    from vit_core.checkpoints.opening import open_with_warning

    checkpoint = open_with_warning(path, format, fields, part, base)
    checkpoint = checkpoint.adapt(
        image_size=image_size,
        patch_size=patch_size,
        num_classes=num_classes,
        position_embedding_method=position_embedding_method,
        dtype=dtype,
    )
    model = nnx.eval_shape(lambda: ViT(checkpoint.config.model, rngs=nnx.Rngs(0), **storage))
    model.checkpoint = checkpoint.config
    arrays.write(model, lambda row: arrays.from_numpy(row.to_jax(checkpoint.arrays[row.name])))
    return model


def from_seed(config: ViTConfig, seed: int, *, dtype: Any = None, **storage: Any) -> ViT:
    """A new model with the same initial values as vit_torch.from_seed, drawn by NumPy from the seed.

    dtype: of all parameters (default: float32). storage: `attention`, `scan`, `remat` of ViT. Raises InputError for
    float64 without jax_enable_x64.
    """
    model = nnx.eval_shape(lambda: ViT(config, rngs=nnx.Rngs(0), **storage))
    arrays.write(
        model, lambda row: arrays.from_numpy(row.to_jax(convert(initial_value(row, seed), dtype or "float32")))
    )
    return model


def save(
    model: ViT,
    path: str | os.PathLike[str],
    *,
    preprocessing: Preprocessing | None = None,
    labels: tuple[str, ...] | None = None,
    provenance: Provenance | None = None,
    dtype: Any = None,
) -> Location:
    """Writes a checkpoint folder (`vit_core.checkpoints`) and returns its location.

    preprocessing, labels, provenance: by default those of the checkpoint from which the model was loaded. dtype: the
    stored type, by default the model's. The decoder of a masked autoencoder is left out. Raises InputError if the
    folder cannot be written, and for a model with adapters.
    """
    from vit_core.checkpoints import Checkpoint, CheckpointConfig, save_checkpoint
    from vit_core.lora import ADAPTERS_BESIDE
    from vit_core.storage import location

    config = CheckpointConfig.of(model.config, model.checkpoint, preprocessing, labels, provenance)
    rows = parameters(model.config)
    if arrays.has_adapters(model):
        raise InputError(ADAPTERS_BESIDE)
    found = jax.device_get(arrays.read(model))
    stored = {name: arrays.to_numpy(row, found[name]) for name, row in rows.items()}
    save_checkpoint(path, Checkpoint.of(config, stored, dtype))
    return location(path)
