"""Resizing by vit_core.preprocess's geometry as operations on arrays, for programs that are exported with it.

Pillow resamples pixels of 8 bits in whole numbers: each weight is rounded to 22 bits, each pass to 8. Sums of such
products are exact in float64, so matrices of whole numbers give Pillow's bits (those of Pillow 13). Sizes may be
symbols while torch or JAX traces a program: nothing here asks for their values.
"""

from math import floor
from typing import Any

from vit_core.planes import LEVELS
from vit_core.preprocess import MODES, Preprocessing
from vit_core.resampling import REACH, WEIGHT_LEVELS, filter_values, is_down_first

Array = Any
"""An array of NumPy, or of the library `xp` that stands in its place."""


def why_not_traceable(preprocessing: Preprocessing) -> str | None:
    """The reason why an exported program cannot resize images as Pillow does; None if it can."""
    if preprocessing.interpolation not in REACH:
        return f"interpolation {preprocessing.interpolation}: Pillow adds up its coordinates one after the other"
    if preprocessing.bit_depth != 8 or preprocessing.channels not in MODES:
        return "pixels of other than 8 bits, or 1 or 3 channels, are resampled in floating point, with other roundings"
    return None


def resized_pixels(x_BHWC: Array, preprocessing: Preprocessing, xp: Any) -> Array:
    """Whole numbers [B, height, width, C] in float64, equal to `resize_image`'s pixels, from images of one size.

    x_BHWC: float64, whole numbers from 0 to 255. xp: numpy, torch or jax.numpy (with 64-bit types enabled).
    """
    _, H, W, _ = x_BHWC.shape
    numbers = xp.arange(H, dtype=xp.float64), xp.arange(W, dtype=xp.float64)
    height, width = (numbers_S[-1] + 1.0 for numbers_S in numbers)  # the size as arrays
    full_height, full_width = _full_size(height, width, preprocessing, xp)
    rows_hH, has_h = _axis(numbers[0], full_height, preprocessing.image_size[0], preprocessing, xp)
    columns_wW, has_w = _axis(numbers[1], full_width, preprocessing.image_size[1], preprocessing, xp)
    x_BCHW = xp.moveaxis(x_BHWC, -1, 1)
    across_BChw = _rounded(rows_hH @ _rounded(x_BCHW @ columns_wW.T, xp), xp)
    down_BChw = _rounded(_rounded(rows_hH @ x_BCHW, xp) @ columns_wW.T, xp)
    x_BChw = xp.where(is_down_first(height, width, full_height, full_width), down_BChw, across_BChw)
    if preprocessing.resize == "border":
        levels = [round(LEVELS[preprocessing.bit_depth] * mean) for mean in preprocessing.mean]
        fill_C11 = xp.asarray(levels, dtype=xp.float64)[:, None, None]
        x_BChw = xp.where(has_h[:, None] & has_w, x_BChw, fill_C11)
    return xp.moveaxis(x_BChw, 1, -1)


def _full_size(height: Array, width: Array, preprocessing: Preprocessing, xp: Any) -> tuple[Array, Array]:
    """The size of the whole resized image: preprocess's `_resized_size`, for arrays."""
    target_height, target_width = (floor(side / preprocessing.crop_fraction) for side in preprocessing.image_size)
    if preprocessing.resize == "squash":
        return 0.0 * height + target_height, 0.0 * width + target_width
    ratios = height / target_height, width / target_width
    if preprocessing.resize == "border":
        ratio = xp.maximum(*ratios)
        return xp.clip(xp.round(height / ratio), 1.0, None), xp.clip(xp.round(width / ratio), 1.0, None)
    if target_height == target_width:
        grown = xp.floor(target_height * xp.maximum(height, width) / xp.minimum(height, width))
        return xp.where(height > width, grown, target_height), xp.where(height > width, target_width, grown)
    ratio = xp.minimum(*ratios)
    return xp.round(height / ratio), xp.round(width / ratio)


def _axis(numbers_S: Array, full: Array, target: int, preprocessing: Preprocessing, xp: Any) -> tuple[Array, Array]:
    """What makes an axis of `target` pixels of one of S: Pillow's weights [target, S], whole numbers in units of
    1 / WEIGHT_LEVELS; and, for each pixel, whether it is in the image (otherwise in its border).

    numbers_S: 0, 1, ... S - 1. full: pixels of the whole resized axis, of which the center is cut out.
    """
    margin, missing = xp.clip(full - target, 0.0, None), xp.clip(target - full, 0.0, None)
    begin = xp.floor(margin / 2.0) if preprocessing.crop_rounding == "floor" else xp.round(margin / 2.0)
    places_t = xp.arange(target, dtype=xp.float64) + begin - xp.floor(missing / 2.0)
    weights_tS = _weights(numbers_S, full, places_t, preprocessing.interpolation, xp)
    whole_tS = xp.floor(xp.abs(weights_tS) * WEIGHT_LEVELS + 0.5)
    return xp.where(weights_tS < 0.0, -whole_tS, whole_tS), (places_t >= 0.0) & (places_t < full)


def _weights(numbers_S: Array, full: Array, places_t: Array, interpolation: str, xp: Any) -> Array:
    """The filter's weights [t, S] before they are rounded; each row sums to 1."""
    size = numbers_S[-1] + 1.0
    scale = size / full
    widened = xp.clip(scale, 1.0, None)  # antialias
    centers_t1 = ((places_t + 0.5) * scale)[:, None]
    reach = REACH[interpolation] * widened
    first_t1 = xp.floor(xp.clip(centers_t1 - reach + 0.5, 0.0, None))
    last_t1 = xp.floor(centers_t1 + reach + 0.5)
    distances_tS = (numbers_S - centers_t1 + 0.5) * (1.0 / widened)
    inside_tS = (numbers_S >= first_t1) & (numbers_S < last_t1)
    weights_tS = xp.where(inside_tS, filter_values(distances_tS, interpolation, xp), 0.0)
    total_t1 = weights_tS.sum(axis=1)[:, None]
    return weights_tS / xp.where(total_t1 == 0.0, 1.0, total_t1)  # no pixel is near a row in the border


def _rounded(sums: Array, xp: Any) -> Array:
    """8-bit pixels, as whole numbers, of sums of products with weights in units of 1 / WEIGHT_LEVELS."""
    return xp.clip(xp.floor((sums + WEIGHT_LEVELS / 2) / WEIGHT_LEVELS), 0.0, 255.0)
