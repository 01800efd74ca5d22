"""The geometry of preprocessing as array operations: the bits of Pillow, for every kind of geometry and any size."""

from itertools import product

import numpy as np
import pytest
from PIL import Image

from vit_core.preprocess import MODES, Preprocessing, resize_image
from vit_core.traced_pixels import resized_pixels, why_not_traceable

SIZES = ((30, 47), (61, 20), (48, 48), (3, 5), (150, 40), (1, 9), (64, 24))
"""Height and width of images, larger and smaller than what is made of them; of (61, 20), (150, 40) and (64, 24) Pillow
resamples the columns first."""
GEOMETRIES = [
    {"resize": "crop"},
    {"resize": "crop", "crop_fraction": 0.875, "interpolation": "bilinear"},
    {"resize": "crop", "crop_fraction": 0.9, "crop_rounding": "floor", "interpolation": "lanczos"},
    {"resize": "crop", "image_size": (24, 40), "crop_fraction": 0.95},
    {"resize": "squash", "channels": 1},
    {"resize": "squash", "image_size": (40, 24), "crop_fraction": 0.8, "interpolation": "lanczos"},
    {"resize": "border", "mean": (0.2, 0.5, 0.9), "interpolation": "bilinear"},
    {"resize": "border", "image_size": (24, 36), "crop_fraction": 0.7, "channels": 1},
]


@pytest.mark.parametrize("fields", GEOMETRIES)
def test_the_bits_of_pillow(fields: dict[str, object]) -> None:
    preprocessing, rng = Preprocessing(**{"image_size": 32, **fields}), np.random.default_rng(0)
    for height, width in (*SIZES, *rng.integers(1, 200, (10, 2)).tolist()):
        pixels_HWC = rng.integers(0, 256, (height, width, preprocessing.channels), np.uint8)
        image = Image.fromarray(pixels_HWC[..., 0] if preprocessing.channels == 1 else pixels_HWC)
        assert image.mode == MODES[preprocessing.channels]
        (found_HWC,) = resized_pixels(pixels_HWC[None].astype(np.float64), preprocessing, np)
        assert np.array_equal(found_HWC, resize_image(image, preprocessing)), (height, width)


@pytest.mark.parametrize(("height", "width"), [*product((57, 58, 59, 60, 61, 88), (38, 39, 40, 41))])
def test_which_axis_is_resampled_first(height: int, width: int) -> None:
    """At 32 pixels the order changes where height - 32 is 2 (width - 32)."""
    preprocessing = Preprocessing(image_size=32, resize="squash")
    pixels_HWC = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    (found_HWC,) = resized_pixels(pixels_HWC[None].astype(np.float64), preprocessing, np)
    assert np.array_equal(found_HWC, resize_image(Image.fromarray(pixels_HWC), preprocessing))


def test_what_cannot_be_expressed_has_a_reason() -> None:
    assert why_not_traceable(Preprocessing(image_size=8)) is None
    for fields in ({"interpolation": "nearest"}, {"bit_depth": 16}, {"channels": 5}):
        assert why_not_traceable(Preprocessing(**{"image_size": 8, **fields}))
