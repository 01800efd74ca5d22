"""Random erasing (arXiv:1708.04896): a rectangle of a training image is filled with the mean color or with noise.

Pixels are erased on the host, so both engines get the same values. timm fills the rectangle after normalization, with 0
or with standard normal noise; here the same values are rounded to pixels, and noise outside the range of pixels is
clipped.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from vit_core.planes import LEVELS, TYPES
from vit_core.preprocess import Preprocessing
from vit_train.config import Augmentation

TRIES = 10
"""Number of tries of a rectangle that fits, before the image is left unchanged; timm's and torchvision's value."""
ERASING_DRAWS = 1 + 4 * TRIES
"""Number of uniform draws."""
AREAS = 0.02, 1 / 3
"""Smallest and largest share of the area that is erased: timm's."""
RATIOS = 0.3, 1 / 0.3
"""Smallest and largest height over width: timm's."""


def erased(
    pixels_HWC: np.ndarray,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    draws: Sequence[float],
    rng: np.random.Generator,
) -> np.ndarray:
    """A copy of the pixels with a rectangle erased, or the pixels themselves, with the probability `erasing`.

    draws: ERASING_DRAWS, uniform in [0, 1). rng: draws the noise, one number for each value of the rectangle.
    """
    if draws[0] >= augmentation.erasing:
        return pixels_HWC
    found = rectangle(pixels_HWC.shape[0], pixels_HWC.shape[1], draws[1:])
    if found is None:
        return pixels_HWC
    top, left, height, width = found
    filling = _mean_color(preprocessing.mean, preprocessing.bit_depth)
    if augmentation.erasing_fill == "noise":
        white, noise_HWC = LEVELS[preprocessing.bit_depth], rng.standard_normal((height, width, preprocessing.channels))
        values_HWC = np.array(preprocessing.mean) + np.array(preprocessing.std) * noise_HWC
        filling = np.rint(values_HWC * white).clip(0, white)
    pixels_HWC = pixels_HWC.copy()
    pixels_HWC[top : top + height, left : left + width] = filling
    return pixels_HWC


@lru_cache
def _mean_color(mean: tuple[float, ...], bits: int) -> np.ndarray:
    """uint8 or uint16 [C]."""
    return np.rint(np.array(mean) * LEVELS[bits]).clip(0, LEVELS[bits]).astype(TYPES[bits])


def rectangle(height: int, width: int, draws: Sequence[float]) -> tuple[int, int, int, int] | None:
    """(top, left, height, width) of the rectangle to erase in an image of this size; None if no try fits.

    draws: for each try its area, its ratio, its top and its left. The area and the logarithm of the ratio are uniform,
    as in timm.
    """
    (smallest, largest), (flattest, steepest) = AREAS, map(math.log, RATIOS)
    for i in range(0, 4 * TRIES, 4):
        area = (smallest + (largest - smallest) * draws[i]) * height * width
        ratio = math.exp(flattest + (steepest - flattest) * draws[i + 1])
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if h < height and w < width:
            return int(draws[i + 2] * (height - h + 1)), int(draws[i + 3] * (width - w + 1)), h, w
    return None
