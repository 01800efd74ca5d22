"""Images that the tests of preprocessing make, and their files."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from vit_core.preprocess import decode_image

SHAPES = [  # (height, width)
    *((64, 64), (97, 64), (64, 97), (31, 200), (200, 31), (333, 251), (251, 334), (20, 17), (17, 20)),
    *((5, 400), (400, 5), (1, 1), (1, 60), (60, 1), (63, 65), (65, 63), (224, 225), (128, 256)),
]
Jpegs = dict[tuple[int, int], Path]
"""Files by the height and width of their image."""


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


def write_jpegs(folder: Path) -> Jpegs:
    """An image of each of `SHAPES` as a JPEG file in the folder."""
    files = {(height, width): folder / f"{height}x{width}.jpg" for height, width in SHAPES}
    for (height, width), path in files.items():
        Image.fromarray(pixels_of(height, width)).save(path, quality=92)
    return files
