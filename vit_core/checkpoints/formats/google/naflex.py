"""big_vision's NaFlex (models/proj/image_text/naflex_vit.py): SigLIP 2 for images of any aspect.

Its files are those of the plain ViT but for two arrays: the patch projection is a Dense over patches that are cut
before, and the table of positions keeps its two axes, which are equal. Every image resizes the table to its own grid.
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
"""How each image's grid is filled from the table."""
POSITIONS = "pos_embedding"


def is_naflex(source: Source) -> bool:
    """By the axes of the patch projection."""
    return len(source.arrays.shapes.get(PATCHES, ())) == 2


def as_images(source: Source, fields: Fields) -> Source:
    """The source with both arrays in the shapes of a model of one size. fields: what the user says, of which patch_size
    and channels tell the axes of a patch (else: square patches of three channels)."""
    arrays, where = source.arrays, source.path
    values, width = axes_of(arrays.shapes, PATCHES, 2, where)
    channels, patch = fields.get("channels", 3), fields.get("patch_size")
    if patch is None:
        patch = isqrt(values // max(channels, 1))
    height, across = (patch, patch) if isinstance(patch, int) else patch
    if height * across * channels != values:
        raise InputError(
            f"{where}: {PATCHES} reads {values} values of a patch, which patches of {height}x{across} and {channels} "
            "channels do not give; use --set patch_size=HEIGHTxWIDTH and --set channels=N"
        )
    (h, w), features = grid_of(source), arrays.shapes[POSITIONS][2]
    shapes = {PATCHES: (height, across, channels, width), POSITIONS: (1, h * w, features)}
    return dataclasses.replace(source, arrays=_reshaped(arrays, shapes))


def grid_of(source: Source) -> tuple[int, int]:
    """Positions down and across, which are as many."""
    h, w, features = axes_of(source.arrays.shapes, POSITIONS, 3, source.path)
    if h != w:
        raise InputError(f"{source.path}: {POSITIONS} has shape {[h, w, features]}; expected [N, N, {features}]")
    return h, w


def holds(config: CheckpointConfig) -> bool:
    """Whether a checkpoint is one for images of any aspect, and its model one that this code has."""
    model = config.model
    return is_any_aspect(config) and not model.class_token and model.pooling in ("gap", "map") and bool(model.positions)


def write_arrays(arrays: LazyArrays, model: ViTConfig, prefix: str, where: object) -> LazyArrays:
    """The arrays of a model of one size with both in NaFlex's shapes. Raises InputError for positions that its code
    would place otherwise."""
    if model.position_resampling != RESAMPLING:
        raise InputError(
            f"{where}: big_vision's NaFlex cannot hold position_resampling '{model.position_resampling}' (there: "
            f"'{RESAMPLING}'), by which it places the patches of each image; --method {RESAMPLING} changes the model's"
        )
    if model.grid[0] != model.grid[1]:
        raise InputError(f"{where}: big_vision's NaFlex has a square grid of positions, found {model.grid}")
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
