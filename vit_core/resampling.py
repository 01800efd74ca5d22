"""Resampling of 8-bit pixels with Pillow's bits: by compiled loops where they were seen to give them, else by Pillow.

Pillow adds up whole numbers: each weight is rounded to 22 bits, each of the two passes to 8. So the order of additions
does not matter, and neither does the width of a processor's registers; only the weights have to be the same.
"""

from functools import cache, lru_cache
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

WEIGHT_LEVELS = 2**22
"""Pillow's weight of 1."""
REACH = {"bilinear": 1, "bicubic": 2, "lanczos": 3}
"""Filter -> distance at which it becomes 0."""
_COMPILED = ("bilinear", "bicubic")
"""Filters of the compiled loops. Lanczos' weights come from the C library's sine, which NumPy's need not equal."""

Array = Any
"""An array of NumPy, or of the library `xp` that stands in its place."""


class Taps(NamedTuple):
    """Which pixels of an axis each new pixel is the weighted sum of."""

    first_t: np.ndarray
    """int64: the first of them."""
    weights_tK: np.ndarray
    """int32, in units of 1 / WEIGHT_LEVELS: those of the pixels from the first on; 0 beyond the last."""


def resize(pixels_HWC: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    """uint8 [height, width, C] with the bits of `PIL.Image.resize`; maybe the same array, maybe read-only.

    pixels_HWC: uint8, with 1 or 3 channels. interpolation: "nearest", "bilinear", "bicubic" or "lanczos".
    """
    if pixels_HWC.shape[:2] == (height, width):
        return pixels_HWC
    if interpolation in _COMPILED and (compiled := _compiled_like_pillow()):
        return _by(compiled, pixels_HWC, height, width, interpolation)
    return _by_pillow(pixels_HWC, height, width, interpolation)


def resize_crops(
    pixels_BHWC: np.ndarray, boxes_B4: np.ndarray, mirrored_B: np.ndarray, interpolation: str, result_BhwC: np.ndarray
) -> bool:
    """Sets each image of the result to a crop of one (top, left, height, width), resized and maybe mirrored, with the
    bits of `resize` and `mirror`; returns False, and does nothing, where there are no compiled loops for it."""
    if interpolation not in _COMPILED or not (compiled := _compiled_like_pillow()):
        return False
    (H, W), (h, w) = pixels_BHWC.shape[1:3], result_BhwC.shape[1:3]
    rows, columns = _taps_of_crops(H, h, interpolation), _taps_of_crops(W, w, interpolation)
    compiled.resample_crops(pixels_BHWC, boxes_B4, mirrored_B, rows, columns, result_BhwC)
    return True


@lru_cache(maxsize=8)
def _taps_of_crops(size: int, new_size: int, interpolation: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Taps of crops of each length up to `size`: their first pixels and weights, one after another, and where the
    weights of each length begin."""
    of_length = [taps(length, new_size, interpolation) for length in range(1, size + 1)]
    starts = np.cumsum([0, *(each.weights_tK.size for each in of_length)])
    first, weights = (
        np.concatenate([each.first_t for each in of_length]),
        np.concatenate([each.weights_tK.ravel() for each in of_length]),
    )
    return first, weights, starts


def mirror(pixels_HWC: np.ndarray) -> np.ndarray:
    """uint8 [H, W, C] with the columns in reverse order."""
    if compiled := _compiled_like_pillow():
        result_HWC = np.empty(pixels_HWC.shape, np.uint8)
        compiled.mirror(pixels_HWC, result_HWC)
        return result_HWC
    return pixels_HWC[:, ::-1]


def is_down_first(height: Array, width: Array, new_height: Array, new_width: Array) -> Array:
    """Whether Pillow 13 resamples the columns before the rows: where that makes the image so much smaller."""
    return (new_height < height) & (height - new_height > 2.0 * (width - new_width))


@lru_cache(maxsize=2048)
def taps(size: int, new_size: int, interpolation: str) -> Taps:
    """Those of an axis of `size` pixels that becomes one of `new_size`, computed in Pillow's order of operations."""
    scale = size / new_size
    widened = max(scale, 1.0)  # antialias
    reach = REACH[interpolation] * widened
    centers_t = (np.arange(new_size) + 0.5) * scale
    first_t = np.maximum(centers_t - reach + 0.5, 0.0).astype(np.int64)
    last_t = np.minimum((centers_t + reach + 0.5).astype(np.int64), size)
    numbers_tK = first_t[:, None] + np.arange(int((last_t - first_t).max()))
    weights_tK = filter_values((numbers_tK - centers_t[:, None] + 0.5) * (1.0 / widened), interpolation, np)
    weights_tK[numbers_tK >= last_t[:, None]] = 0.0
    # One after the other, as Pillow: NumPy's sum adds in another order.
    weights_tK /= np.cumsum(weights_tK, axis=1)[:, -1:]
    whole_tK = np.floor(np.abs(weights_tK) * WEIGHT_LEVELS + 0.5)
    found = Taps(first_t, np.where(weights_tK < 0.0, -whole_tK, whole_tK).astype(np.int32))
    for array in found:
        array.flags.writeable = False  # it is given to all who ask
    return found


def filter_values(distance: Array, interpolation: str, xp: Any) -> Array:
    """A filter of Pillow at distances in pixels. xp: numpy, torch or jax.numpy."""
    x = xp.abs(distance)
    if interpolation == "bilinear":
        return xp.clip(1.0 - x, 0.0, None)
    if interpolation == "bicubic":  # Keys' kernel with the slope -0.5 at 1
        near, far = (1.5 * x - 2.5) * x * x + 1.0, (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
        return xp.where(x < 1.0, near, xp.where(x < 2.0, far, 0.0))
    return xp.where(x < 3.0, _sinc(x, xp) * _sinc(x / 3.0, xp), 0.0)


def _sinc(x: Array, xp: Any) -> Array:
    angle = np.pi * xp.where(x == 0.0, 1.0, x)
    return xp.where(x == 0.0, 1.0, xp.sin(angle) / angle)


def _by(compiled: ModuleType, pixels_HWC: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    H, W, C = pixels_HWC.shape
    rows, columns = taps(H, height, interpolation), taps(W, width, interpolation)
    result_hwC = np.empty((height, width, C), np.uint8)
    compiled.resample(pixels_HWC, *rows, *columns, is_down_first(H, W, height, width), result_hwC)
    return result_hwC


def _by_pillow(pixels_HWC: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    C = pixels_HWC.shape[-1]
    image = Image.fromarray(pixels_HWC[..., 0] if C == 1 else pixels_HWC)
    return np.asarray(image.resize((width, height), Image.Resampling[interpolation.upper()])).reshape(height, width, C)


@cache
def _compiled_like_pillow() -> ModuleType | None:
    """The compiled loops; None without numba, and where they do not give the bits of the Pillow that is installed.

    Pillow before 13 has another order of passes, Pillow-SIMD other weights, and compilers for ARM may round the weights
    differently by fusing multiplications and additions.
    """
    try:
        from vit_core import compiled_resampling as compiled
    except ImportError:
        return None
    rng = np.random.default_rng(0)
    for height, width, new_height, new_width in ((61, 83, 24, 37), (97, 40, 31, 64), (13, 9, 32, 32), (31, 47, 33, 20)):
        pixels_HWC = rng.choice(np.array([0, 255], np.uint8), (height, width, 3))  # the largest sums
        for interpolation in _COMPILED:
            wanted = new_height, new_width, interpolation
            if not np.array_equal(_by(compiled, pixels_HWC, *wanted), _by_pillow(pixels_HWC, *wanted)):
                return None
    return compiled
