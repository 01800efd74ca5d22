"""Random changes of colors by Pillow: 3-Augment (DeiT III) and color jitter, equal to their references."""

from collections.abc import Sequence
from itertools import permutations

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from vit_train.config import Augmentation

THREE_AUGMENT_DRAWS, JITTER_DRAWS = 2, 5
"""Number of uniform draws that each function always takes."""
BLUR_RADIUS = 0.1, 2.0
"""Smallest and largest radius of 3-Augment's Gaussian blur, pixels: DeiT III's and timm's."""
ORDERS = tuple(permutations(range(4)))
"""Every order of brightness, contrast, saturation and hue."""


def three_augmented(image: Image.Image, draws: Sequence[float]) -> Image.Image:
    """3-Augment (arXiv:2204.07118, section 3.2): gray, solarized or blurred, each with probability 1/3.

    draws: uniform in [0, 1): which, and the radius of the blur. Equal to facebookresearch/deit's augment.py, and to the
    operations of timm's policy "3a".
    """
    which, radius = draws
    if which < 1 / 3:
        return image.convert("L").convert(image.mode)
    if which < 2 / 3:
        return ImageOps.solarize(image)
    smallest, largest = BLUR_RADIUS
    return image.filter(ImageFilter.GaussianBlur(smallest + (largest - smallest) * radius))


def jittered(image: Image.Image, augmentation: Augmentation, draws: Sequence[float]) -> Image.Image:
    """Brightness, contrast, saturation and hue changed in a random order: torchvision's ColorJitter.

    draws: uniform in [0, 1): the order, then one for each of the four.
    """
    for change in ORDERS[int(draws[0] * len(ORDERS))]:
        largest, draw = augmentation.color_jitter[change], draws[1 + change]
        if not largest:
            continue
        if change == 3:
            image = _shift_hue(image, -largest + 2 * largest * draw)
            continue
        smallest = max(1 - largest, 0.0)
        enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[change]
        image = enhance(image).enhance(smallest + (1 + largest - smallest) * draw)
    return image


def _shift_hue(image: Image.Image, share: float) -> Image.Image:
    """Every hue rotated by a fraction of the color circle, in 8 bits."""
    if image.mode == "L":
        return image
    hue, saturation, value = image.convert("HSV").split()
    turned = np.asarray(hue).astype(np.int64) + int(share * 255)
    turned_hue = Image.fromarray((turned % 256).astype(np.uint8))
    return Image.merge("HSV", (turned_hue, saturation, value)).convert(image.mode)
