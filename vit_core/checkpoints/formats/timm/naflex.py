"""Converts arrays of timm's NaFlexVit class (timm/models/naflexvit.py) to those of its VisionTransformer.

For images of the position table's grid the two classes are equal. NaFlexVit's patch projection is a matrix over
(height, width, channel); its table has the axes of the grid, or is the sum of one table for rows and one for columns.
"""

from collections.abc import Mapping
from functools import partial
from math import isqrt
from typing import Any

import numpy as np

from vit_core.arrays import LazyArray, LazyArrays
from vit_core.checkpoints.formats.interface import axes_of
from vit_core.errors import InputError

ANCHOR = r"embeds\.proj\.weight"
_EMBEDS = "embeds."


def is_naflex(names: Mapping[str, object]) -> bool:
    """Whether the names are those of timm's NaFlexVit."""
    return f"{_EMBEDS}proj.weight" in names


def with_canonical_names(arrays: LazyArrays, known: Mapping[str, Any], where: object) -> tuple[LazyArrays, list[str]]:
    """The arrays under VisionTransformer's names, and notes on what was computed. known: stated fields; patch_size and
    channels determine the axes of the patch projection (default: square patches of three channels). Raises InputError
    if they do not fit its shape."""
    if not is_naflex(arrays):
        return arrays, []
    entries: dict[str, LazyArray] = {}
    for name, array in arrays.entries.items():
        inner = name.removeprefix(_EMBEDS)
        entries[f"patch_embed.{inner}" if inner.startswith(("proj.", "norm")) and inner != name else inner] = array
    notes = []
    entries["patch_embed.proj.weight"] = _kernel(entries["patch_embed.proj.weight"], known, where)
    if "pos_embed_y" in entries and "pos_embed_x" in entries:
        y, x = (entries.pop(f"pos_embed_{axis}") for axis in "yx")
        (_, h, D), (_, w, _) = (axes_of(arrays.shapes, f"{_EMBEDS}pos_embed_{axis}", 3, where) for axis in "yx")
        entries["pos_embed"] = LazyArray((1, h * w, D), y.dtype, partial(_summed, y, x))
        notes.append("positions: the sums of positions of rows and of columns")
    elif "pos_embed" in entries:
        _, h, w, D = axes_of(arrays.shapes, f"{_EMBEDS}pos_embed", 4, where)
        flat = (1, h * w, D)
        entries["pos_embed"] = entries["pos_embed"].then(
            partial(np.reshape, shape=flat), flat, entries["pos_embed"].dtype
        )
    return LazyArrays(entries), notes


def grid_of(arrays: LazyArrays) -> tuple[int, int] | None:
    """The grid (height, width) of the position table, in patches; None if there is no table."""
    shapes = arrays.shapes
    if len(table := shapes.get(f"{_EMBEDS}pos_embed", ())) == 4:
        return table[1], table[2]
    rows, columns = (shapes.get(f"{_EMBEDS}pos_embed_{axis}", ()) for axis in "yx")
    return (rows[1], columns[1]) if len(rows) == len(columns) == 3 else None


def _kernel(projection: LazyArray, known: Mapping[str, Any], where: object) -> LazyArray:
    channels, patch = known.get("channels", 3), known.get("patch_size")
    rows, values = projection.shape if len(projection.shape) == 2 else (0, 0)
    side = isqrt(values // channels)
    height, width = (side, side) if patch is None else (patch, patch) if isinstance(patch, int) else patch
    if not rows or height * width * channels != values:
        raise InputError(
            f"{where}: embeds.proj.weight has shape {list(projection.shape)}, not that of patches {height}x{width} "
            f"with {channels} channels; use --set patch_size=HEIGHTxWIDTH and --set channels=N"
        )
    shape = (rows, channels, height, width)
    return projection.then(partial(_as_kernel, height, width), shape, projection.dtype)


def _as_kernel(height: int, width: int, projection_DP: np.ndarray) -> np.ndarray:
    return projection_DP.reshape(len(projection_DP), height, width, -1).transpose(0, 3, 1, 2)


def _summed(y: LazyArray, x: LazyArray) -> np.ndarray:
    pos_1hwD = y.read()[:, :, None] + x.read()[:, None]
    return pos_1hwD.reshape(1, -1, pos_1hwD.shape[-1])
