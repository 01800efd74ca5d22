"""Images that the tests of preprocessing make, and their files."""

import io

import numpy as np
from PIL import Image

from vit_core.preprocess import decode_image


def pixels_of(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Noise over a gradient: edges and slopes at every place, so that a shift by a pixel shows."""
    slope = np.linspace(0, 128, height)[:, None, None] + np.linspace(0, 64, width)[None, :, None]
    noise = np.random.default_rng(height * 1000 + width).integers(0, 64, (height, width, channels))
    return (slope + noise).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(image: Image.Image, kind: str, channels: int = 3, **options: object) -> list:
    return np.asarray(decode_image(encoded(image, kind, **options), channels)).tolist()
