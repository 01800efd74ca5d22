"""RandAugment (arXiv:1909.13719): with timm's operations, equal to timm's bit for bit, or with big_vision's.

Differences of big_vision's code (pp/archive/autoaugment.py) from timm's:
- every chosen operation is applied, and magnitudes above 10 are not limited (timm: `limit`);
- translations are in pixels, 100 at magnitude 10, independent of the image's size (timm: 45 % of a side);
- there is Cutout: a gray square of 80 pixels at magnitude 10, at a random position;
- Contrast blends with the gray level pixels / 256 instead of the mean of the image (its sum over a histogram is the
  number of pixels);
- pixels from outside the image are gray (128), and pixels are not interpolated (timm: the mean of the preprocessing,
  and its interpolation).
This module reproduces all of them, but not TensorFlow's rounding: AutoContrast and the gray levels of Color may differ
by one, and TensorFlow's affine maps count from corners of pixels, so an edge may differ by half a pixel.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

from PIL import Image, ImageEnhance
from scipy.special import ndtri

from vit_core.pixels import Pixels
from vit_core.preprocess import Preprocessing
from vit_train.config import RandAugment
from vit_train.data import levels

LAYER_DRAWS = 6
"""Number of uniform draws of a layer: the operation, whether it is applied, its magnitude, its sign, and the position
of Cutout."""


class OperationSettings(NamedTuple):
    """Settings of an operation on an image, apart from its strength."""

    fill: Any
    """Value of pixels that come from outside the image, as Pillow takes it."""
    resampling: Image.Resampling
    place: tuple[float, float] = (0.0, 0.0)
    """Two uniform draws, for a random position."""


Change: TypeAlias = Callable[[Pixels, float, OperationSettings], Pixels]
Strength: TypeAlias = Callable[[float, int], float]
"""Function from the magnitude over 10 and a random sign to the argument of an operation."""


def rand_augmented(
    image: Pixels, settings: RandAugment, preprocessing: Preprocessing, draws: Sequence[float]
) -> Pixels:
    """The image after `settings.layers` random operations.

    draws: LAYER_DRAWS for each layer, uniform in [0, 1).
    """
    operations, common = tuple(OPERATIONS[settings.operations].values()), settings_of(preprocessing)
    if settings.operations == "big_vision":
        common = OperationSettings(
            (128,) * preprocessing.channels if preprocessing.channels > 1 else 128, Image.Resampling.NEAREST
        )
    for i in range(0, LAYER_DRAWS * settings.layers, LAYER_DRAWS):
        which, whether, deviation, sign, *place = draws[i : i + LAYER_DRAWS]
        if whether > settings.probability:
            continue
        magnitude = settings.magnitude
        if settings.deviation:
            magnitude += settings.deviation * float(ndtri(deviation))
        magnitude = max(0.0, min(magnitude, settings.limit))
        change, strength = operations[int(which * len(operations))]
        placed = OperationSettings(common.fill, common.resampling, (place[0], place[1]))
        image = change(image, strength(magnitude / 10, -1 if sign > 0.5 else 1), placed)
    return image


def settings_of(preprocessing: Preprocessing) -> OperationSettings:
    """timm's settings: pixels from outside are the mean of the preprocessing, with its interpolation, but at most
    bicubic, because Pillow rotates and shears with no larger filter."""
    return _settings(preprocessing.mean, preprocessing.interpolation)


@lru_cache(maxsize=8)
def _settings(mean: tuple[float, ...], interpolation: str) -> OperationSettings:
    fill = tuple(min(255, round(255 * each)) for each in mean)
    name = "bicubic" if interpolation == "lanczos" else interpolation
    return OperationSettings(fill if len(fill) > 1 else fill[0], Image.Resampling[name.upper()])


def _affine(image: Pixels, matrix: tuple[float, ...], settings: OperationSettings) -> Pixels:
    size = image.width, image.height
    moved = image.image().transform(size, Image.Transform.AFFINE, matrix, settings.resampling, fillcolor=settings.fill)
    return Pixels.of(moved)


def _shear_x(image: Pixels, share: float, settings: OperationSettings) -> Pixels:
    return _affine(image, (1, share, 0, 0, 1, 0), settings)


def _shear_y(image: Pixels, share: float, settings: OperationSettings) -> Pixels:
    return _affine(image, (1, 0, 0, share, 1, 0), settings)


def _move_x(image: Pixels, pixels: float, settings: OperationSettings) -> Pixels:
    return _affine(image, (1, 0, pixels, 0, 1, 0), settings)


def _move_y(image: Pixels, pixels: float, settings: OperationSettings) -> Pixels:
    return _affine(image, (1, 0, 0, 0, 1, pixels), settings)


def _rotate(image: Pixels, degrees: float, settings: OperationSettings) -> Pixels:
    return Pixels.of(image.image().rotate(degrees, settings.resampling, fillcolor=settings.fill))


def _color(image: Pixels, factor: float, settings: OperationSettings) -> Pixels:
    return Pixels.of(ImageEnhance.Color(image.image()).enhance(factor))


def _sharpness(image: Pixels, factor: float, settings: OperationSettings) -> Pixels:
    return Pixels.of(ImageEnhance.Sharpness(image.image()).enhance(factor))


def _contrast_of_big_vision(image: Pixels, factor: float, settings: OperationSettings) -> Pixels:
    return levels.faded(image, min(image.width * image.height // 256, 255), factor)


def _cutout(image: Pixels, half: float, settings: OperationSettings) -> Pixels:
    """A gray square with sides of twice `half` pixels, cut off at the border of the image."""
    down, across = int(settings.place[0] * image.height), int(settings.place[1] * image.width)
    pixels_HWC = image.pixels_HWC.copy()
    pixels_HWC[max(0, down - int(half)) : down + int(half), max(0, across - int(half)) : across + int(half)] = (
        settings.fill
    )
    return Pixels(pixels_HWC)


def _none(share: float, sign: int) -> float:
    return 0.0


def _signed(largest: float) -> Strength:
    return lambda share, sign: sign * (share * largest)


def _enhanced(share: float, sign: int) -> float:
    return share * 1.8 + 0.1


def _enhanced_more(share: float, sign: int) -> float:
    return max(0.1, 1.0 + sign * (share * 0.9))


def _enhancing(strength: Strength) -> dict[str, tuple[Change, Strength]]:
    return {
        "Color": (_color, strength),
        "Contrast": (lambda image, factor, settings: levels.contrasted(image, factor), strength),
        "Brightness": (lambda image, factor, settings: levels.brightened(image, factor), strength),
        "Sharpness": (_sharpness, strength),
    }


def _levels(posterize: Strength, solarize: Strength, add: Strength) -> dict[str, tuple[Change, Strength]]:
    return {
        "Posterize": (lambda image, bits, settings: levels.posterized(image, int(bits)), posterize),
        "Solarize": (lambda image, level, settings: levels.solarized(image, int(level)), solarize),
        "SolarizeAdd": (lambda image, added, settings: levels.brightened_below_half(image, int(added)), add),
    }


_PLAIN: dict[str, tuple[Change, Strength]] = {
    "AutoContrast": (lambda image, _, settings: levels.stretched(image), _none),
    "Equalize": (lambda image, _, settings: levels.equalized(image), _none),
    "Invert": (lambda image, _, settings: levels.inverted(image), _none),
    "Rotate": (_rotate, _signed(30.0)),
}
_SHEARS: dict[str, tuple[Change, Strength]] = {"ShearX": (_shear_x, _signed(0.3)), "ShearY": (_shear_y, _signed(0.3))}
_MOVES: dict[str, tuple[Change, Strength]] = {
    "TranslateXRel": (lambda image, share, settings: _move_x(image, share * image.width, settings), _signed(0.45)),
    "TranslateYRel": (lambda image, share, settings: _move_y(image, share * image.height, settings), _signed(0.45)),
}

OPERATIONS: Mapping[str, Mapping[str, tuple[Change, Strength]]] = {
    "timm": {
        **_PLAIN,
        **_levels(
            lambda share, _: int(share * 4),
            lambda share, _: min(256, int(share * 256)),
            lambda share, _: min(128, int(share * 110)),
        ),
        **_enhancing(_enhanced),
        **_SHEARS,
        **_MOVES,
    },
    "timm_increasing": {
        **_PLAIN,
        **_levels(
            lambda share, _: 4 - int(share * 4),
            lambda share, _: 256 - min(256, int(share * 256)),
            lambda share, _: min(128, int(share * 110)),
        ),
        **_enhancing(_enhanced_more),
        **_SHEARS,
        **_MOVES,
    },
    "big_vision": {
        **_PLAIN,
        **_levels(
            lambda share, _: int(share * 4), lambda share, _: int(share * 256), lambda share, _: int(share * 110)
        ),
        **_enhancing(_enhanced),
        "Contrast": (_contrast_of_big_vision, _enhanced),
        **_SHEARS,
        "TranslateX": (_move_x, _signed(100.0)),
        "TranslateY": (_move_y, _signed(100.0)),
        "Cutout": (_cutout, lambda share, _: int(share * 40)),
    },
}
"""Set of operations -> name of each -> its function and strength; in timm's order."""
