"""AutoAugment (arXiv:1805.09501): the policies found for CIFAR-10 and ImageNet, equal to torchvision's."""

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from vit_core.pixels import Pixels
from vit_core.preprocess import Preprocessing
from vit_train.data.rand_augment import OPERATIONS, settings_of

POLICY_DRAWS = 5
"""Number of uniform draws for an image: the pair of operations, then for both whether it is applied, then their
signs."""

Step: TypeAlias = tuple[str, float, int]
"""An operation, the probability that it is applied, and its level, 0 to 9 (0 for operations without a level)."""

POLICIES: Mapping[str, Sequence[tuple[Step, Step]]] = {
    "cifar10": (
        (("Invert", 0.1, 0), ("Contrast", 0.2, 6)),
        (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
        (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
        (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
        (("AutoContrast", 0.5, 0), ("Equalize", 0.9, 0)),
        (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
        (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
        (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
        (("Equalize", 0.6, 0), ("Equalize", 0.5, 0)),
        (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
        (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
        (("Equalize", 0.3, 0), ("AutoContrast", 0.4, 0)),
        (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
        (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
        (("Solarize", 0.5, 2), ("Invert", 0.0, 0)),
        (("Equalize", 0.2, 0), ("AutoContrast", 0.6, 0)),
        (("Equalize", 0.2, 0), ("Equalize", 0.6, 0)),
        (("Color", 0.9, 9), ("Equalize", 0.6, 0)),
        (("AutoContrast", 0.8, 0), ("Solarize", 0.2, 8)),
        (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
        (("Solarize", 0.4, 5), ("AutoContrast", 0.9, 0)),
        (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
        (("AutoContrast", 0.9, 0), ("Solarize", 0.8, 3)),
        (("Equalize", 0.8, 0), ("Invert", 0.1, 0)),
        (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, 0)),
    ),
    "imagenet": (
        (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)),
        (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 0)),
        (("Equalize", 0.8, 0), ("Equalize", 0.6, 0)),
        (("Posterize", 0.6, 7), ("Posterize", 0.6, 6)),
        (("Equalize", 0.4, 0), ("Solarize", 0.2, 4)),
        (("Equalize", 0.4, 0), ("Rotate", 0.8, 8)),
        (("Solarize", 0.6, 3), ("Equalize", 0.6, 0)),
        (("Posterize", 0.8, 5), ("Equalize", 1.0, 0)),
        (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
        (("Equalize", 0.6, 0), ("Posterize", 0.4, 6)),
        (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
        (("Rotate", 0.4, 9), ("Equalize", 0.6, 0)),
        (("Equalize", 0.0, 0), ("Equalize", 0.8, 0)),
        (("Invert", 0.6, 0), ("Equalize", 1.0, 0)),
        (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
        (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
        (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
        (("Sharpness", 0.4, 7), ("Invert", 0.6, 0)),
        (("ShearX", 0.6, 5), ("Equalize", 1.0, 0)),
        (("Color", 0.4, 0), ("Equalize", 0.6, 0)),
        (("Equalize", 0.4, 0), ("Solarize", 0.2, 4)),
        (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 0)),
        (("Invert", 0.6, 0), ("Equalize", 1.0, 0)),
        (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
        (("Equalize", 0.8, 0), ("Equalize", 0.6, 0)),
    ),
}
"""The pairs of operations of each policy: tables 7 and 9 of the paper, with torchvision's deviations."""

_CHANGES = {name: change for name, (change, _) in OPERATIONS["timm"].items()}
_CHANGES |= {name: OPERATIONS["big_vision"][name][0] for name in ("TranslateX", "TranslateY")}  # these count in pixels
_LARGEST_TRANSLATION = 150 / 331
"""Largest translation as a fraction of a side: 150 pixels of 331, the image size of the paper's network for
ImageNet."""


def auto_augmented(image: Pixels, policy: str, preprocessing: Preprocessing, draws: Sequence[float]) -> Pixels:
    """The image after one of the policy's pairs of operations. Equal bit for bit to
    torchvision.transforms.AutoAugment with the mean of the preprocessing as `fill`, and with its interpolation. (The
    class of that name in transforms.v2 rounds thresholds, so that it solarizes from level 171 instead of 170.)

    draws: POLICY_DRAWS, uniform in [0, 1).
    """
    which, *rest = draws
    settings, pairs = settings_of(preprocessing), POLICIES[policy]
    for (name, probability, level), whether, sign in zip(
        pairs[int(which * len(pairs))], rest[:2], rest[2:], strict=True
    ):
        if whether <= probability:
            strength = _strength(name, level, -1 if sign < 0.5 else 1, (image.width, image.height))
            image = _CHANGES[name](image, strength, settings)
    return image


def _strength(name: str, level: int, sign: int, size: tuple[int, int]) -> float:
    """The argument of the operation for a level, for an image of (width, height)."""
    match name:
        case "ShearX" | "ShearY":
            return sign * _at(level, 0.0, 0.3)
        case "TranslateX" | "TranslateY":
            side = size[0] if name == "TranslateX" else size[1]
            return -sign * int(_at(level, 0.0, _LARGEST_TRANSLATION * side))  # positive: to the left, or up
        case "Rotate":
            return sign * _at(level, 0.0, 30.0)
        case "Brightness" | "Color" | "Contrast" | "Sharpness":
            return 1.0 + sign * _at(level, 0.0, 0.9)
        case "Posterize":
            return 8 - round(level * 4 / 9)
        case "Solarize":
            return math.ceil(_at(level, 255.0, 0.0))
        case _:
            return 0.0


def _at(level: int, first: float, last: float) -> float:
    """The value of a level, if ten levels from the first to the last are equally spaced; rounded to 32 bits as in
    torch.linspace, which starts at the nearer end."""
    begin, end = np.float32(first), np.float32(last)
    step = (end - begin) / np.float32(9)
    return float(begin + step * np.float32(level) if level < 5 else end - step * np.float32(9 - level))
