"""Converts arrays of timm's NaFlexVit class (timm/models/naflexvit.py) to those of its VisionTransformer.

For images of the position table's grid the two classes are equal. NaFlexVit's patch projection is a matrix over
(height, width, channel); its table has the axes of the grid, or is the sum of one table for rows and one for columns.
"""

import re
from collections.abc import Mapping
from functools import partial
from math import isqrt
from typing import Any

import numpy as np

from vit_core.arrays import LazyArray, LazyArrays
from vit_core.checkpoints.checkpoint import Assumption
from vit_core.checkpoints.formats.interface import axes_of
from vit_core.checkpoints.formats.timm import rotary
from vit_core.config import ViTConfig
from vit_core.errors import InputError

ANCHOR = r"embeds\.proj\.weight"
_EMBEDS = "embeds."
_ROTATIONS = ("", "none", "axial", "mixed", "dinov3")
_RESAMPLING = {
    ("bicubic", True, False): "bicubic_antialias",
    ("bicubic", False, False): "bicubic",
    ("bicubic", False, True): "bicubic_align_corners",
    ("bilinear", True, False): "bilinear_antialias",
    ("bilinear", False, False): "bilinear",
    ("bilinear", False, True): "zoom_linear",
}
"""Interpolation, antialias and align_corners of the position table -> position_resampling."""


def is_naflex(names: Mapping[str, object]) -> bool:
    """Whether the names are those of timm's NaFlexVit."""
    return f"{_EMBEDS}proj.weight" in names


def arguments(architecture: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, with those of the architecture ("" if unknown) for positions."""
    if not architecture:
        return dict(args)
    named: dict[str, Any] = {"rope_type": "none"}
    named["pos_embed_ar_preserving"] = bool(re.search("_par(fac)?_|_radio_", architecture))
    if patch := re.search(r"_patch(\d+)", architecture):
        named["patch_size"] = int(patch[1])
    return {**named, **args}


def stated_fields(args: Mapping[str, Any], named: str, where: object) -> dict[str, Any]:
    """The fields of ViTConfig that arguments of NaFlexVit state: the axes of the patch projection, which is a matrix,
    and the positions. args: the arguments that are not null. named: the architecture's position_resampling. Raises
    InputError for a value that ViTConfig cannot express."""
    fields: dict[str, Any] = {}
    if "patch_size" in args:
        patch = args["patch_size"]
        sides = tuple(patch) if isinstance(patch, list | tuple) else (patch, patch)
        if len(sides) != 2:
            raise _unexpected("patch_size", patch, "a side, or height and width", where)
        fields["patch_size"] = tuple(_positive("patch_size", side, where) for side in sides)
    if "in_chans" in args:
        fields["channels"] = _positive("in_chans", args["in_chans"], where)
    if "rope_type" in args:
        kind = args["rope_type"]
        if kind not in _ROTATIONS:
            raise _unexpected("rope_type", kind, f"one of {', '.join(_ROTATIONS[1:])}", where)
        same = {"use_rot_pos_emb": kind not in ("", "none"), "rope_type": {"axial": "cat"}.get(kind, kind)}
        fields["rope"] = rotary.read_rope(
            "", {**args, **same, "ref_feat_shape": args.get("rope_ref_feat_shape")}, where
        )
    keys = ("pos_embed_interp_mode", "pos_embed_antialias", "pos_embed_align_corners")
    if any(key in args for key in keys):
        defaults = next(one for one, rule in _RESAMPLING.items() if rule == named)
        asked = tuple(args.get(key, default) for key, default in zip(keys, defaults, strict=True))
        if asked not in _RESAMPLING:
            said = ", ".join(f"{key} {value}" for key, value in zip(keys, asked, strict=True))
            raise InputError(f"{where}: config.json: {said} cannot be expressed by ViTConfig")
        fields["position_resampling"] = _RESAMPLING[asked]
    return fields


def _positive(key: str, value: object, where: object) -> int:
    if type(value) is not int or value < 1:
        raise _unexpected(key, value, "a whole number above 0", where)
    return value


def _unexpected(key: str, value: object, expected: str, where: object) -> InputError:
    return InputError(f"{where}: config.json: {key} {str(value)[:60]!r}, expected {expected}")


def with_canonical_names(
    arrays: LazyArrays, known: Mapping[str, Any], args: Mapping[str, Any], where: object
) -> tuple[LazyArrays, list[str]]:
    """The arrays under VisionTransformer's names, and notes on what was computed. known: stated fields; patch_size and
    channels determine the axes of the patch projection (default: square patches of three channels). args: the model's
    arguments, of which patchify_channels_last determines the order of these axes. Raises InputError if they do not fit
    its shape."""
    if not is_naflex(arrays):
        return arrays, []
    entries: dict[str, LazyArray] = {}
    for name, array in arrays.entries.items():
        inner = name.removeprefix(_EMBEDS)
        entries[f"patch_embed.{inner}" if inner.startswith(("proj.", "norm")) and inner != name else inner] = array
    notes = []
    if len(entries["patch_embed.proj.weight"].shape) != 4:  # with embed_proj_type 'conv' it has the axes of a kernel
        last = bool(args.get("patchify_channels_last", True))
        entries["patch_embed.proj.weight"] = _kernel(entries["patch_embed.proj.weight"], known, last, where)
    if "pos_embed_y" in entries and "pos_embed_x" in entries:
        y, x = (entries.pop(f"pos_embed_{axis}") for axis in "yx")
        (_, h, D), (_, w, _) = (axes_of(arrays.shapes, f"{_EMBEDS}pos_embed_{axis}", 3, where) for axis in "yx")
        if h != w and args.get("pos_embed_ar_preserving"):
            raise InputError(
                f"{where}: positions of {h} rows and {w} columns with pos_embed_ar_preserving depend on the longer "
                "side of the image, which ViTConfig cannot express"
            )
        entries["pos_embed"] = LazyArray((1, h * w, D), y.dtype, partial(_summed, y, x))
        notes.append("positions: the sums of positions of rows and of columns")
    elif "pos_embed" in entries:
        _, h, w, D = axes_of(arrays.shapes, f"{_EMBEDS}pos_embed", 4, where)
        flat = (1, h * w, D)
        entries["pos_embed"] = entries["pos_embed"].then(
            partial(np.reshape, shape=flat), flat, entries["pos_embed"].dtype
        )
    return LazyArrays(entries), notes


def assumptions(arrays: LazyArrays, model: ViTConfig, config: Mapping[str, Any]) -> list[Assumption]:
    """The assumption on the axes of a patch projection that is a matrix, unless the architecture is known."""
    if "architecture" in config or len(arrays.shapes.get(f"{_EMBEDS}proj.weight", ())) != 2:
        return []
    why = f"square patches of {model.channels} channels, each pixel's side by side, as in timm's models"
    return [Assumption("patch_size", list(model.patch_size), why, "--set patch_size=HEIGHTxWIDTH")]


def grid_of(arrays: LazyArrays) -> tuple[int, int] | None:
    """The grid (height, width) of the position table, in patches; None if there is no table."""
    shapes = arrays.shapes
    if len(table := shapes.get(f"{_EMBEDS}pos_embed", ())) == 4:
        return table[1], table[2]
    rows, columns = (shapes.get(f"{_EMBEDS}pos_embed_{axis}", ()) for axis in "yx")
    return (rows[1], columns[1]) if len(rows) == len(columns) == 3 else None


def _kernel(projection: LazyArray, known: Mapping[str, Any], channels_last: bool, where: object) -> LazyArray:
    patch = known.get("patch_size")
    rows, values = projection.shape if len(projection.shape) == 2 else (0, 0)
    side = isqrt(values // known.get("channels", 3))
    height, width = (side, side) if patch is None else (patch, patch) if isinstance(patch, int) else patch
    channels = known.get("channels", 3 if patch is None else values // (height * width))
    if not rows or height * width * channels != values:
        raise InputError(
            f"{where}: embeds.proj.weight has shape {list(projection.shape)}, not that of patches {height}x{width} "
            f"with {channels} channels; use --set patch_size=HEIGHTxWIDTH and --set channels=N"
        )
    shape = (rows, channels, height, width)
    return projection.then(partial(_as_kernel, shape, channels_last), shape, projection.dtype)


def _as_kernel(shape: tuple[int, int, int, int], channels_last: bool, projection_DP: np.ndarray) -> np.ndarray:
    rows, channels, height, width = shape
    if not channels_last:
        return projection_DP.reshape(shape)
    return projection_DP.reshape(rows, height, width, channels).transpose(0, 3, 1, 2)


def _summed(y: LazyArray, x: LazyArray) -> np.ndarray:
    pos_1hwD = y.read()[:, :, None] + x.read()[:, None]
    return pos_1hwD.reshape(1, -1, pos_1hwD.shape[-1])
