"""Changes of an image's levels, each by a table of 256 entries: the bits of Pillow's ImageOps and ImageEnhance.

Pillow fills its tables in loops of Python, which take longer than all else that is done to a small image.
"""

import numpy as np
from PIL import Image

from vit_core.pixels import Pixels

_LEVELS = np.arange(256, dtype=np.uint8)
"""Every level."""
_GREY_WEIGHTS = 19595, 38470, 7471
"""Shares of red, green and blue in Pillow's grey (ITU-R 601-2), in units of 1 / 65536."""


def posterized(image: Pixels, bits: int) -> Pixels:
    """`ImageOps.posterize`; with no bits left, or less than none, all is black (Pillow refuses that)."""
    return _by_table(image, _LEVELS & (~(2 ** (8 - min(bits, 8)) - 1) & 255))


def solarized(image: Pixels, threshold: int) -> Pixels:
    """`ImageOps.solarize`: levels from the threshold on are inverted."""
    return _by_table(image, np.where(threshold > _LEVELS, _LEVELS, 255 - _LEVELS))


def brightened_below_half(image: Pixels, added: int) -> Pixels:
    """timm's solarize_add: levels below 128 grow by so much, to 255 at most."""
    return _by_table(image, np.where(_LEVELS < 128, np.minimum(_LEVELS.astype(int) + added, 255), _LEVELS))


def inverted(image: Pixels) -> Pixels:
    """`ImageOps.invert`."""
    return Pixels(255 - image.pixels_HWC)


def brightened(image: Pixels, factor: float) -> Pixels:
    """`ImageEnhance.Brightness`: black at 0, unchanged at 1."""
    return faded(image, 0, factor)


def contrasted(image: Pixels, factor: float) -> Pixels:
    """`ImageEnhance.Contrast`: all of the mean grey level at 0, unchanged at 1."""
    grey_CN = planes_CN = _planes(image)
    if len(planes_CN) == 3:
        weighted_CN = planes_CN * np.array(_GREY_WEIGHTS, np.uint32)[:, None]
        grey_CN = (weighted_CN[0] + weighted_CN[1] + weighted_CN[2] + np.uint32(2**15)) >> np.uint32(16)
    return faded(image, int(int(grey_CN.sum()) / planes_CN.shape[1] + 0.5), factor)


def faded(image: Pixels, grey: int, factor: float) -> Pixels:
    """`Image.blend` of a grey image with this one: all grey at 0, unchanged at 1. The table is blended by Pillow."""
    ramp = Image.fromarray(_LEVELS[None])
    return _by_table(image, np.asarray(Image.blend(Image.new("L", ramp.size, grey), ramp, factor)))


def stretched(image: Pixels) -> Pixels:
    """`ImageOps.autocontrast`: each channel's darkest level becomes 0, its lightest 255."""
    planes_CN = _planes(image)
    darkest_C1, lightest_C1 = planes_CN.min(axis=1).astype(int)[:, None], planes_CN.max(axis=1).astype(int)[:, None]
    scale_C1 = 255.0 / np.maximum(lightest_C1 - darkest_C1, 1)
    tables_CL = (_LEVELS * scale_C1 + -darkest_C1 * scale_C1).clip(0, 255)
    return _by_tables(image, planes_CN, np.where(lightest_C1 > darkest_C1, tables_CL, _LEVELS))


def equalized(image: Pixels) -> Pixels:
    """`ImageOps.equalize`: each channel's levels are spread so that all are about equally frequent."""
    planes_CN = _planes(image)
    counts_CL = np.stack([np.bincount(plane_N, minlength=256) for plane_N in planes_CN])
    darker_CL = counts_CL.cumsum(axis=1) - counts_CL
    step_C1 = np.where(counts_CL > 0, darker_CL, 0).max(axis=1, keepdims=True) // 255
    tables_CL = np.minimum((step_C1 // 2 + darker_CL) // np.maximum(step_C1, 1), 255)
    return _by_tables(image, planes_CN, np.where(step_C1 > 0, tables_CL, _LEVELS))


def _planes(image: Pixels) -> np.ndarray:
    """uint8 [C, H * W]: each channel by itself, contiguous: NumPy's reductions are many times as fast on it."""
    return np.ascontiguousarray(image.pixels_HWC.reshape(-1, image.pixels_HWC.shape[-1]).T)


def _by_table(image: Pixels, table_L: np.ndarray) -> Pixels:
    """All channels by one table. (Indexing by pixels would turn them to 64 bits before.)"""
    levels = image.pixels_HWC.tobytes().translate(table_L.astype(np.uint8).tobytes())
    return Pixels(np.frombuffer(levels, np.uint8).reshape(image.pixels_HWC.shape))


def _by_tables(image: Pixels, planes_CN: np.ndarray, tables_CL: np.ndarray) -> Pixels:
    """Each channel by its own table."""
    pairs = zip(planes_CN, tables_CL.astype(np.uint8), strict=True)
    levels = b"".join(plane_N.tobytes().translate(table_L.tobytes()) for plane_N, table_L in pairs)
    mapped_CN = np.frombuffer(levels, np.uint8).reshape(planes_CN.shape)
    return Pixels(np.ascontiguousarray(mapped_CN.T).reshape(image.pixels_HWC.shape))
