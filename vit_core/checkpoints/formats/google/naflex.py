"""Converts big_vision's NaFlex (models/proj/image_text/naflex_vit.py): SigLIP 2 for images of any aspect ratio.

Its files are those of the plain ViT except for two arrays: the patch projection is a Dense over flattened patches, and
the table of positions has two axes of equal length. The table is resized to the grid of each image.
"""

import dataclasses
from functools import partial
from math import isqrt, prod
from typing import Any

import numpy as np

from vit_core.arrays import LazyArray, LazyArrays
from vit_core.checkpoints.checkpoint import CheckpointConfig
from vit_core.checkpoints.formats.any_aspect import is_any_aspect
from vit_core.checkpoints.formats.google.names import PATCHES
from vit_core.checkpoints.formats.interface import Fields, Source, axes_of
from vit_core.config import ViTConfig
from vit_core.errors import InputError

RESAMPLING = "bilinear_antialias"
"""How the table is resized to the grid of each image."""
POSITIONS = "pos_embedding"


def is_naflex(source: Source) -> bool:
    """Whether the patch projection has two axes, as in NaFlex."""
    return len(source.arrays.shapes.get(PATCHES, ())) == 2


def as_images(source: Source, fields: Fields) -> Source:
    """The source with both arrays in the shapes of a model for one image size. fields: those that the user gives;
    patch_size and channels determine the axes of a patch (default: square patches of three channels). Raises InputError
    if they do not fit the shape."""
    arrays, where = source.arrays, source.path
    values, width = axes_of(arrays.shapes, PATCHES, 2, where)
    channels, patch = fields.get("channels", 3), fields.get("patch_size")
    if patch is None:
        patch = isqrt(values // max(channels, 1))
    height, across = (patch, patch) if isinstance(patch, int) else patch
    if height * across * channels != values:
        raise InputError(
            f"{where}: {PATCHES} expects {values} values of a patch, not those of {height}x{across} with {channels} "
            "channels; use --set patch_size=HEIGHTxWIDTH and --set channels=N"
        )
    (h, w), features = grid_of(source), arrays.shapes[POSITIONS][2]
    shapes = {PATCHES: (height, across, channels, width), POSITIONS: (1, h * w, features)}
    return dataclasses.replace(source, arrays=_reshaped(arrays, shapes))


def grid_of(source: Source) -> tuple[int, int]:
    """The grid (height, width) of the position table. Raises InputError if it is not square."""
    h, w, features = axes_of(source.arrays.shapes, POSITIONS, 3, source.path)
    if h != w:
        raise InputError(f"{source.path}: {POSITIONS} has shape {[h, w, features]}; expected [N, N, {features}]")
    return h, w


def holds(config: CheckpointConfig) -> bool:
    """Whether a checkpoint is for images of any aspect ratio, and big_vision's NaFlex can compute its model."""
    model = config.model
    return is_any_aspect(config) and not model.class_token and model.pooling in ("gap", "map") and bool(model.positions)


def write_arrays(arrays: LazyArrays, model: ViTConfig, prefix: str, where: object) -> LazyArrays:
    """The inverse of `as_images`: both arrays in NaFlex's shapes. Raises InputError for positions that its code would
    resample in another way, or whose grid is not square."""
    if model.position_resampling != RESAMPLING:
        raise InputError(
            f"{where}: big_vision's NaFlex cannot express position_resampling '{model.position_resampling}' (it has "
            f"'{RESAMPLING}'), by which positions of each image are computed; --method {RESAMPLING} changes the model's"
        )
    if model.grid[0] != model.grid[1]:
        raise InputError(f"{where}: big_vision's NaFlex needs a square grid of positions, found {model.grid}")
    values = prod(model.patch_size) * model.channels
    shapes = {PATCHES: (values, model.width), POSITIONS: (*model.grid, model.width)}
    return _reshaped(arrays, {f"{prefix}{name}": shape for name, shape in shapes.items()})


def _reshaped(arrays: LazyArrays, shapes: dict[str, tuple[int, ...]]) -> LazyArrays:
    changed: dict[str, LazyArray] = dict(arrays.entries)
    for name, shape in shapes.items():
        changed[name] = changed[name].then(partial(_reshape, shape), shape, changed[name].dtype)
    return LazyArrays(changed)


def _reshape(shape: tuple[int, ...], array: Any) -> np.ndarray:
    return np.reshape(array, shape)
