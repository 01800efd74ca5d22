"""JPEG files by libjpeg-turbo without Pillow around it, where the pixels are Pillow's."""

import io
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, features

START = b"\xff\xd8\xff"
"""First bytes of a JPEG file."""
_SUBSAMPLINGS = {"444": 0, "422": 1, "420": 2}
"""simplejpeg's name of how much smaller the colors are stored -> Pillow's number; other ones Pillow decodes."""


Smallest = Callable[[int, int], tuple[int, int]]
"""(height, width) of an image -> the smallest (height, width) that is needed of it, in pixels."""


def decode_jpeg(content: bytes, smallest: Smallest | None = None) -> np.ndarray | None:
    """uint8 [H, W, 3] of an RGB or grayscale JPEG; None where Pillow has to decode it, or to say what is wrong with it.

    That is: without simplejpeg; for CMYK, rare kinds of subsampling, images beyond Pillow's limit, and files in which
    libjpeg finds anything to complain of. smallest: libjpeg may then compute an image of 1/2, 1/4 or 1/8 of
    the sides, rounded up, which is at least as large as this (a scaled inverse DCT).
    """
    if not content.startswith(START) or (simplejpeg := _simplejpeg_like_pillow()) is None:
        return None
    try:
        height, width, colors, subsampling = simplejpeg.decode_jpeg_header(content)
        if height * width > (Image.MAX_IMAGE_PIXELS or float("inf")):
            return None
        if colors != "Gray" and (colors != "YCbCr" or subsampling not in _SUBSAMPLINGS):
            return None
        scale = 1 if smallest is None else _scale((height, width), smallest(height, width))
        least = {"min_height": -(-height // scale), "min_width": -(-width // scale)} if scale > 1 else {}
        return np.asarray(simplejpeg.decode_jpeg(content, "RGB", **least))
    except ValueError:
        return None


def _scale(size: tuple[int, int], least: tuple[int, int]) -> int:
    """The largest divisor of both sides that leaves at least this size. Other fractions that libjpeg offers (7/8, 5/8)
    take longer than the whole image."""
    fits = (k for k in (8, 4, 2) if all(-(-side // k) >= need for side, need in zip(size, least, strict=True)))
    return next(fits, 1)


@cache
def _simplejpeg_like_pillow() -> Any:
    """The package simplejpeg; None if it is not installed, or does not give the pixels of Pillow's own libjpeg."""
    try:
        import simplejpeg
    except ImportError:
        return None
    if not features.check_feature("libjpeg_turbo"):
        return None
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (45, 61, 3), np.uint8))
    for subsampling in _SUBSAMPLINGS.values():
        for progressive in (False, True):
            file = io.BytesIO()
            image.save(file, "JPEG", subsampling=subsampling, progressive=progressive)
            ours = simplejpeg.decode_jpeg(file.getvalue(), "RGB")
            if not np.array_equal(ours, np.asarray(Image.open(file).convert("RGB"))):
                return None
    return simplejpeg
