"""Changes of an image's levels by tables of 256 entries, equal bit for bit to Pillow's ImageOps and ImageEnhance.

Pillow fills its tables in Python loops, which would take most of the time for a small image.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image

from vit_core.pixels import Pixels

_EVERY_LEVEL = Image.frombytes("L", (256, 1), bytes(range(256)))
_GRAY_WEIGHTS = np.array([19595, 38470, 7471], np.float32)
"""Shares of red, green and blue in Pillow's gray (ITU-R 601-2), in units of 1 / 65536."""


def posterized(image: Pixels, bits: int) -> Pixels:
    """`ImageOps.posterize`; the image becomes black if `bits` is 0 or negative (an error in Pillow)."""
    return _by_table(image, _posterizing(bits))


def solarized(image: Pixels, threshold: int) -> Pixels:
    """`ImageOps.solarize`: levels from the threshold on are inverted."""
    return _by_table(image, _solarizing(threshold))


def brightened_below_half(image: Pixels, added: int) -> Pixels:
    """timm's solarize_add: `added` is added to levels below 128, with 255 as the maximum."""
    return _by_table(image, _brightening_below_half(added))


def inverted(image: Pixels) -> Pixels:
    """`ImageOps.invert`."""
    return Pixels(255 - image.pixels_HWC)


def brightened(image: Pixels, factor: float) -> Pixels:
    """`ImageEnhance.Brightness`: black at 0, unchanged at 1."""
    return faded(image, 0, factor)


def contrasted(image: Pixels, factor: float) -> Pixels:
    """`ImageEnhance.Contrast`: the mean gray level everywhere at 0, unchanged at 1."""
    gray = image.pixels_HWC
    if gray.shape[-1] == 3:  # integers below 2**24 are exact in float32, and BLAS adds them fast
        weighted = gray.reshape(-1, 3).astype(np.float32) @ _GRAY_WEIGHTS + np.float32(2**15)
        gray = weighted.astype(np.int32) >> 16
    return faded(image, int(int(gray.sum()) / gray.size + 0.5), factor)


def faded(image: Pixels, gray: int, factor: float) -> Pixels:
    """`Image.blend` of a gray image with this one: all gray at 0, unchanged at 1. Pillow blends the table."""
    return _by_table(image, Image.blend(_uniform(gray), _EVERY_LEVEL, factor).tobytes())


def stretched(image: Pixels) -> Pixels:
    """`ImageOps.autocontrast`: each channel's darkest level becomes 0, its lightest 255."""
    planes_CN, scales, offsets = _planes(image), [], []
    for darkest, lightest in zip(planes_CN.min(axis=1).tolist(), planes_CN.max(axis=1).tolist(), strict=True):
        scales.append(255.0 / (lightest - darkest) if lightest > darkest else 1.0)
        offsets.append(-darkest * scales[-1] if lightest > darkest else 0.0)
    tables_CL = np.arange(256) * np.array(scales)[:, None] + np.array(offsets)[:, None]
    # Entries of levels that no pixel has may be outside 8 bits, and wrap around.
    return _by_tables(image, planes_CN, [table_L.tobytes() for table_L in tables_CL.astype(int).astype(np.uint8)])


def equalized(image: Pixels) -> Pixels:
    """`ImageOps.equalize`: each channel's levels are spread so that all are about equally frequent."""
    planes_CN = _planes(image)
    counts_CL = np.array([np.bincount(plane_N, minlength=256) for plane_N in planes_CN])
    darker_CL = counts_CL.cumsum(axis=1) - counts_CL
    tables = [bytes(range(256))] * len(planes_CN)
    for c, lightest in enumerate(planes_CN.max(axis=1).tolist()):
        if step := int(darker_CL[c, lightest]) // 255:
            tables[c] = np.minimum((step // 2 + darker_CL[c]) // step, 255).astype(np.uint8).tobytes()
    return _by_tables(image, planes_CN, tables)


@lru_cache(maxsize=256)
def _uniform(gray: int) -> Image.Image:
    return Image.new("L", _EVERY_LEVEL.size, gray)


@lru_cache
def _posterizing(bits: int) -> bytes:
    mask = ~(2 ** (8 - min(bits, 8)) - 1)
    return bytes(level & mask & 255 for level in range(256))


@lru_cache(maxsize=512)
def _solarizing(threshold: int) -> bytes:
    return bytes(level if level < threshold else 255 - level for level in range(256))


@lru_cache(maxsize=256)
def _brightening_below_half(added: int) -> bytes:
    return bytes(min(255, level + added) if level < 128 else level for level in range(256))


def _by_table(image: Pixels, table: bytes) -> Pixels:
    """Every level replaced by its entry of the table. (NumPy's indexing would convert pixels to 64 bits first.)"""
    levels = image.pixels_HWC.tobytes().translate(table)
    return Pixels(np.frombuffer(levels, np.uint8).reshape(image.pixels_HWC.shape))


def _planes(image: Pixels) -> np.ndarray:
    """uint8 [C, H * W]: contiguous channels, on which NumPy's reductions are many times as fast."""
    return np.ascontiguousarray(image.pixels_HWC.reshape(-1, image.pixels_HWC.shape[-1]).T)


def _by_tables(image: Pixels, planes_CN: np.ndarray, tables: Sequence[bytes]) -> Pixels:
    """The levels of each channel replaced by its own table. planes_CN: the channels of the image."""
    pixels_NC = np.empty(planes_CN.shape[::-1], np.uint8)
    for c, table in enumerate(tables):
        pixels_NC[:, c] = np.frombuffer(planes_CN[c].tobytes().translate(table), np.uint8)
    return Pixels(pixels_NC.reshape(image.pixels_HWC.shape))
