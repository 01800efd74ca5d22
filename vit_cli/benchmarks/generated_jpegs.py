"""Generated JPEG files, of the size and with about the number of bytes of a photo in ImageNet."""

import io

import numpy as np
from PIL import Image

SIZE = 500, 375
"""Width and height, pixels."""


def jpegs(count: int, size: tuple[int, int] = SIZE) -> list[bytes]:
    """`count` different files: soft shapes with a little noise, at quality 90. size: width and height, pixels."""
    rng, files = np.random.default_rng(0), []
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
        noise = rng.normal(0, 8, (*size[::-1], 3))
        file = io.BytesIO()
        Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files
