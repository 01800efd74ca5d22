"""JPEG files by libjpeg-turbo without Pillow around it, where the pixels are Pillow's."""

import io
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, features

START = b"\xff\xd8\xff"
"""First bytes of a JPEG file."""
_SUBSAMPLINGS = {"444": 0, "422": 1, "420": 2}
"""simplejpeg's name of how much smaller the colours are stored -> Pillow's number; other ones Pillow decodes."""


def decode_jpeg(content: bytes) -> np.ndarray | None:
    """uint8 [H, W, 3] of an RGB or grayscale JPEG; None where Pillow has to decode it, or to say what is wrong with it.

    That is: without simplejpeg; for CMYK, rare kinds of subsampling, images beyond Pillow's limit, and files in which
    libjpeg finds anything to complain of.
    """
    if not content.startswith(START) or (simplejpeg := _simplejpeg_like_pillow()) is None:
        return None
    try:
        height, width, colours, subsampling = simplejpeg.decode_jpeg_header(content)
        if height * width > (Image.MAX_IMAGE_PIXELS or float("inf")):
            return None
        if colours != "Gray" and (colours != "YCbCr" or subsampling not in _SUBSAMPLINGS):
            return None
        return np.asarray(simplejpeg.decode_jpeg(content, "RGB"))
    except ValueError:
        return None


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
