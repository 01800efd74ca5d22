"""Random changes of training images. Changes of one image are made here, on the host, in 8 bits by Pillow; mixtures of
two images are drawn here and made by the engines.

Uniform draws are taken as one array of fixed length and order, so switching one change on or off does not alter the
draws of another.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.special import betaincinv

from vit_core.pixels import Pixels
from vit_core.planes import Planes
from vit_core.preprocess import DecodedImage, Preprocessing, as_decoded, pixels_of, resized, uncropped
from vit_core.resampling import resize_crops
from vit_train.config import Augmentation
from vit_train.data.auto_augment import POLICY_DRAWS, auto_augmented
from vit_train.data.colors import JITTER_DRAWS, THREE_AUGMENT_DRAWS, jittered, three_augmented
from vit_train.data.erasing import ERASING_DRAWS, erased
from vit_train.data.rand_augment import LAYER_DRAWS, rand_augmented

CROP_TRIES = 10
"""Number of tries of a random crop before the central crop is used; torchvision's value."""
DRAWS = 4 * CROP_TRIES + 4
"""Number of uniform draws that every image takes."""
FEWEST_TOGETHER, LARGEST_TOGETHER = 8, 128
"""Smallest number of images, and largest side in pixels, for which images are made together: each length of a crop
needs its own tables."""
_DRAWS = (2, THREE_AUGMENT_DRAWS, JITTER_DRAWS, ERASING_DRAWS)
"""Number of uniform draws for the position of a crop, 3-Augment, color jitter and erasing; those of RandAugment or
AutoAugment come last."""
_STARTS = (0, *accumulate(_DRAWS))


def augmented(
    image: DecodedImage | Image.Image,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    rng: np.random.Generator,
) -> np.ndarray:
    """A training image, uint8 or uint16 [H, W, C], possibly read-only: crop or resize, then flip, then shift and
    rotate, then operations on colors, then erasing.

    image: from `decode` with the same preprocessing, or a Pillow image. Consumes `DRAWS` uniform draws; if random_crop,
    an operation on colors or erasing is on, also their draws, and those of the noise that fills erased pixels.
    Raises InputError as `resized` does, if there is no crop of random size.
    """
    draws = rng.random(DRAWS).tolist()
    place, three, jitter, erasing, operations = _later_draws(augmentation, rng)
    flip, *affine = draws[4 * CROP_TRIES :]
    image = as_decoded(image, preprocessing.channels)
    if augmentation.crop_area:
        image = _random_resized_crop(image, preprocessing, augmentation, draws[: 4 * CROP_TRIES])
    elif augmentation.random_crop:  # a run's config refuses it for images with sizes of their own
        image = _random_crop(image, preprocessing, augmentation.crop_padding, place)
    else:
        image = resized(image, preprocessing)
    if flip < augmentation.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if augmentation.rotation or augmentation.shift:
        image = _shifted_and_rotated(image, augmentation, *affine)
    if augmentation.colors:
        assert isinstance(image, Pixels), "a run's config refuses these changes for other images"
        if augmentation.auto_augment:
            image = auto_augmented(image, augmentation.auto_augment, preprocessing, operations)
        else:
            image = rand_augmented(image, augmentation.rand_augment, preprocessing, operations)
        if augmentation.three_augment:
            image = Pixels.of(three_augmented(image.image(), three))
        if any(augmentation.color_jitter):
            image = Pixels.of(jittered(image.image(), augmentation, jitter))
    pixels_HWC = pixels_of(image)
    return erased(pixels_HWC, preprocessing, augmentation, erasing, rng) if augmentation.erasing else pixels_HWC


def crops_only(preprocessing: Preprocessing, augmentation: Augmentation) -> bool:
    """Whether crops of random size and flips are the only changes, so that `augment_together` can make many images at
    once."""
    others = augmentation.rotation, augmentation.shift, augmentation.colors, augmentation.erasing
    return bool(augmentation.crop_area) and preprocessing.max_patches is None and not any(others)


def augment_together(
    images: Sequence[DecodedImage],
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    draws_BF: np.ndarray,
    result_BHWC: np.ndarray,
) -> bool:
    """Writes the images that `augmented` returns into the result, all at once, and returns True. Does nothing and
    returns False for images that are few or large, differ in size or do not have 8 bits, and without compiled loops.

    draws_BF: `DRAWS` uniform draws for each image. Only for configs for which `crops_only` is true.
    """
    pixels = [image.pixels_HWC for image in images if isinstance(image, Pixels)]
    if len(pixels) < len(images) or len({each.shape for each in pixels}) != 1:
        return False
    if len(pixels) < FEWEST_TOGETHER or max(pixels[0].shape) > LARGEST_TOGETHER:
        return False
    (H, W, _), flips_B = pixels[0].shape, draws_BF[:, 4 * CROP_TRIES] < augmentation.flip
    boxes_B4 = _crops(H, W, augmentation, draws_BF[:, : 4 * CROP_TRIES])
    return resize_crops(np.stack(pixels), boxes_B4, flips_B, preprocessing.interpolation, result_BHWC)


def _crops(height: int, width: int, augmentation: Augmentation, draws_BF: np.ndarray) -> np.ndarray:
    """int64 [B, 4]: `_crop` for the draws of many images of one size. The first try fits in almost all cases."""
    smallest, largest = augmentation.crop_area or (1.0, 1.0)
    log_narrowest, log_widest = map(math.log, augmentation.crop_ratio)
    area_B = height * width * (smallest + (largest - smallest) * draws_BF[:, 0])
    # NumPy's exp may differ from math.exp in the last bit.
    ratio_B = np.array([math.exp(x) for x in (log_narrowest + (log_widest - log_narrowest) * draws_BF[:, 1]).tolist()])
    w_B, h_B = np.rint(np.sqrt(area_B * ratio_B)), np.rint(np.sqrt(area_B / ratio_B))
    top_B, left_B = np.floor(draws_BF[:, 2] * (height - h_B + 1)), np.floor(draws_BF[:, 3] * (width - w_B + 1))
    found_B4 = np.stack((top_B, left_B, h_B, w_B), axis=1).astype(np.int64)
    fits_B = (w_B > 0) & (w_B <= width) & (h_B > 0) & (h_B <= height)
    for b in np.flatnonzero(~fits_B):
        found_B4[b] = _crop(height, width, augmentation, draws_BF[b].tolist(), None)
    return found_B4


def _later_draws(augmentation: Augmentation, rng: np.random.Generator) -> list[list[float]]:
    """Uniform draws for the position of a crop, 3-Augment, color jitter, erasing, and RandAugment or AutoAugment. They
    are the last draws of an image, so they are left out if none of these is on."""
    if not (augmentation.random_crop or augmentation.colors or augmentation.erasing):
        return [[]] * (len(_DRAWS) + 1)
    operations = POLICY_DRAWS if augmentation.auto_augment else LAYER_DRAWS * augmentation.rand_augment.layers
    draws = rng.random(_STARTS[-1] + operations).tolist()
    return [draws[begin:end] for begin, end in pairwise((*_STARTS, len(draws)))]


def _random_crop(
    image: DecodedImage, preprocessing: Preprocessing, padding: int, place: Sequence[float]
) -> DecodedImage:
    """The image resized as for evaluation, padded by reflection, and cropped at a random position: torchvision's Resize
    and RandomCrop with padding_mode "reflect".

    place: uniform in [0, 1): top and left.
    """
    image, (height, width) = uncropped(image, preprocessing), preprocessing.image_size
    top, left = (
        int(place[0] * (image.height + 2 * padding - height + 1)),
        int(place[1] * (image.width + 2 * padding - width + 1)),
    )
    if not padding:
        return image.crop((left, top, left + width, top + height))
    rows = _mirrored(image.height, padding)[top : top + height]
    columns = _mirrored(image.width, padding)[left : left + width]
    if isinstance(image, Planes):
        return image.each(lambda plane: Image.fromarray(np.asarray(plane).take(rows, axis=0).take(columns, axis=1)))
    return Pixels(image.pixels_HWC.take(rows, axis=0).take(columns, axis=1))


@lru_cache(maxsize=1024)
def _mirrored(size: int, padding: int) -> np.ndarray:
    """int64 [padding + size + padding]: the index of the source pixel at each position, with reflection at both
    ends."""
    return np.pad(np.arange(size), padding, mode="reflect")


def _random_resized_crop(
    image: DecodedImage, preprocessing: Preprocessing, augmentation: Augmentation, draws: Sequence[float]
) -> DecodedImage:
    """An image of image_size: torchvision's RandomResizedCrop (arXiv:1409.4842), equal bit for bit for the same draws.
    With max_patches the size of the result varies, and the ratio of the crop is relative to that of the image.

    draws: uniform in [0, 1), for each try its area, ratio, top and left.
    """
    top, left, height, width = _crop(image.height, image.width, augmentation, draws, preprocessing)
    rows, columns = preprocessing.fitted(height, width).image_size
    # The `box` argument of resize is not used: its filter reads pixels outside the crop; torchvision's does not.
    image = image.crop((left, top, left + width, top + height))
    return image.resize((columns, rows), Image.Resampling[preprocessing.interpolation.upper()])


def smallest_decoded(
    height: int, width: int, preprocessing: Preprocessing, augmentation: Augmentation, draws: Sequence[float]
) -> tuple[int, int]:
    """The smallest (height, width) to which an image of height x width may be reduced before `augmented` crops it, so
    that the crop is not enlarged. Only for configs with a crop_area.

    draws: the first `DRAWS` uniform draws of the image. The reduced image has the same crop, relative to its size, up
    to a pixel; for about two of a thousand images another of the tries is the first that fits.
    """
    *_, h, w = _crop(height, width, augmentation, draws[: 4 * CROP_TRIES], preprocessing)
    rows, columns = preprocessing.fitted(h, w).image_size
    factor = max(1.0, min(h / rows, w / columns))
    return math.ceil(height / factor), math.ceil(width / factor)


def _crop(
    height: int, width: int, augmentation: Augmentation, draws: Sequence[float], preprocessing: Preprocessing | None
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a crop in an image of height x width, in pixels: the first try that fits into it.

    The area and the logarithm of the ratio are uniform, computed as in torchvision, but in float64. With max_patches
    the ratios are relative to that of the image.
    """
    aspect = 1.0 if preprocessing is None or preprocessing.max_patches is None else width / height
    smallest, largest = augmentation.crop_area or (1.0, 1.0)
    narrowest, widest = (ratio * aspect for ratio in augmentation.crop_ratio)
    log_narrowest, log_widest = math.log(narrowest), math.log(widest)
    for i in range(0, len(draws), 4):
        area = height * width * (smallest + (largest - smallest) * draws[i])
        ratio = math.exp(log_narrowest + (log_widest - log_narrowest) * draws[i + 1])
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(draws[i + 2] * (height - h + 1)), int(draws[i + 3] * (width - w + 1)), h, w
    # The largest central crop of an allowed ratio; never empty (torchvision's may be, for an image one pixel thin).
    h, w = height, width
    if width / height < narrowest:
        h = max(1, round(width / narrowest))
    elif width / height > widest:
        w = max(1, round(height * widest))
    return (height - h) // 2, (width - w) // 2, h, w


def _shifted_and_rotated(
    image: DecodedImage, augmentation: Augmentation, angle: float, down: float, across: float
) -> DecodedImage:
    """The image shifted, then rotated about its center, bicubic, black outside the border; the draws 0 and 1 give the
    largest changes."""
    width, height = image.width, image.height
    radians = math.radians(augmentation.rotation) * (2 * angle - 1)
    cos, sin = math.cos(radians), math.sin(radians)
    x, y = width / 2, height / 2
    right, below = (2 * across - 1) * augmentation.shift * width, (2 * down - 1) * augmentation.shift * height
    # Pillow expects the map from target to source positions: rotate back, then shift back.
    inverse = (cos, sin, x - cos * x - sin * y + right, -sin, cos, y + sin * x - cos * y + below)
    return image.transform((width, height), Image.Transform.AFFINE, inverse, Image.Resampling.BICUBIC)


class Mix(NamedTuple):
    """A mixture of two images a and b: w a + (1 - w) b at each pixel; w = 0 inside `box`, `weight` elsewhere."""

    weight: float = 1.0
    box: tuple[int, int, int, int] = (0, 0, 0, 0)
    """(top, left, bottom, right), pixels, the last two exclusive; may be empty."""

    def share(self, image_size: tuple[int, int]) -> float:
        """Weight of image a in the target of the mixture, for images of (height, width): the mean of w."""
        top, left, bottom, right = self.box
        return self.weight * (1 - (bottom - top) * (right - left) / (image_size[0] * image_size[1]))


def draw_mixes(augmentation: Augmentation, image_size: tuple[int, int], draws_P4: np.ndarray) -> list[Mix]:
    """A mixture for each of P pairs of images, by four uniform draws each; see `draw_mix`."""
    if augmentation.cutmix:
        return [mix_of(augmentation, image_size, draws) for draws in draws_P4.tolist()]
    weights_P = betaincinv(augmentation.mixup, augmentation.mixup, draws_P4[:, 1])
    mixed_P = draws_P4[:, 0] < augmentation.mix_probability
    return [Mix(weight) for weight in np.where(mixed_P, weights_P, 1.0).tolist()]


def draw_mix(augmentation: Augmentation, image_size: tuple[int, int], rng: np.random.Generator) -> Mix:
    """Draws Mixup (arXiv:1710.09412), CutMix (arXiv:1905.04899), one of both with equal probability, or nothing,
    depending on the config; also nothing for the pairs that mix_probability leaves unmixed.

    CutMix's box is that of the paper's code and of torchvision: sides sqrt(1 - lambda) times the image's, centered on
    any pixel, cut off at the border. (timm's differs by one pixel where a side is odd.) Consumes 4 uniform draws.
    """
    return mix_of(augmentation, image_size, rng.random(4).tolist())


def mix_of(augmentation: Augmentation, image_size: tuple[int, int], draws: Sequence[float]) -> Mix:
    """The mixture that `draw_mix` computes from its four uniform draws."""
    which, quantile, down, across = draws
    if which >= augmentation.mix_probability:
        return Mix()
    cut = augmentation.cutmix > 0 and (not augmentation.mixup or which < augmentation.mix_probability / 2)
    alpha = augmentation.cutmix if cut else augmentation.mixup
    if not alpha:
        return Mix()
    # The quantile function is used because NumPy's own Beta consumes a varying number of draws.
    lam = float(betaincinv(alpha, alpha, quantile))
    if not cut:
        return Mix(weight=lam)
    (height, width), ratio = image_size, math.sqrt(1 - lam)
    y, x = int(down * height), int(across * width)
    half_height, half_width = int(height * ratio) // 2, int(width * ratio) // 2
    top, bottom = max(0, y - half_height), min(height, y + half_height)
    left, right = max(0, x - half_width), min(width, x + half_width)
    return Mix(box=(top, left, bottom, right))
