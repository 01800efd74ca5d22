"""Random erasing equals timm's, rounded to pixels; the random crop equals torchvision's."""

from typing import Any

import numpy as np
import pytest
import timm.data.random_erasing as timm
import torch
import torchvision

from vit_core.preprocess import Preprocessing, decode, offset_and_scale
from vit_train.config import Augmentation
from vit_train.data.augmentation import augmented
from vit_train.data.erasing import ERASING_DRAWS, erased, rectangle
from vit_train.data.tests.fixed_draws import FEW_OR_MANY, PythonRandom, picture

PREPROCESSING = Preprocessing(image_size=16, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def asked_by_timm(height: int, width: int, draws: list[float]) -> list[float]:
    """The draws in the order in which timm asks for them: a try that does not fit asks for no place."""
    asked = [draws[0]]
    for i in range(1, ERASING_DRAWS, 4):
        asked += draws[i : i + 2]
        alone = [*draws[i : i + 4], *[1.0, 1.0, 0.0, 0.0] * 9]  # an area of 1/3 three times as high as wide
        if (found := rectangle(height, width, alone)) is not None and found[2] < height:
            area = (0.02 + (1 / 3 - 0.02) * draws[i]) * height * width
            ratio = np.exp(np.log(0.3) + (np.log(1 / 0.3) - np.log(0.3)) * draws[i + 1])
            if round(np.sqrt(area * ratio)) < height and round(np.sqrt(area / ratio)) < width:
                return asked + draws[i + 2 : i + 4]
    return asked


@pytest.mark.parametrize("count", FEW_OR_MANY)
@pytest.mark.parametrize("fill", ["mean", "noise"])
def test_erasing_equals_timms(fill: Any, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its normalized image as pixels; within half a level, which is what 8 bits can say."""
    theirs = timm.RandomErasing(0.6, mode={"mean": "const", "noise": "pixel"}[fill], device="cpu")
    offset, scale = offset_and_scale(PREPROCESSING)
    changed = 0
    for seed in range(count // 2):
        pixels_HWC = np.asarray(picture(seed))
        height, width = pixels_HWC.shape[:2]
        draws = np.random.default_rng(seed).random(ERASING_DRAWS).tolist()
        ours = erased(
            pixels_HWC, PREPROCESSING, Augmentation(erasing=0.6, erasing_fill=fill), draws, np.random.default_rng(seed)
        )
        found, rng = rectangle(height, width, draws[1:]), np.random.default_rng(seed)

        def same_noise(per_pixel: bool, color: bool, size: Any, rng: Any = rng, **_: Any) -> torch.Tensor:
            channels, h, w = size
            values_HWC = rng.standard_normal((h, w, channels)) if per_pixel else np.zeros((h, w, channels))
            return torch.tensor(values_HWC).permute(2, 0, 1)

        monkeypatch.setattr(timm, "random", PythonRandom(asked_by_timm(height, width, draws)))
        monkeypatch.setattr(timm, "_get_pixels", same_noise)
        normalized = (pixels_HWC.astype(np.float64) - offset) * scale
        expected = theirs(torch.tensor(normalized).permute(2, 0, 1)).permute(1, 2, 0).numpy() / scale + offset
        if draws[0] < 0.6 and found is not None:
            changed += 1
        # Levels are rounded (0.5); offset and scale are float32 (1e-7 of 255, twice).
        assert np.abs(ours - expected.clip(0, 255)).max() <= 0.5 + 1e-4, f"seed {seed}"
        assert (ours is pixels_HWC) == (draws[0] >= 0.6 or found is None)
    assert changed > 0.4 * count / 2


def test_the_image_is_not_erased_in_place_and_noise_is_of_the_seed() -> None:
    image, erasing = picture(0), Augmentation(erasing=1.0, erasing_fill="noise")
    runs = [augmented(image, PREPROCESSING, erasing, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[0] != runs[2]).any()
    plain = augmented(image, PREPROCESSING, Augmentation(), np.random.default_rng(0))
    assert 0 < (runs[0] != plain).any(axis=-1).mean() < 0.4


@pytest.mark.parametrize("count", FEW_OR_MANY)
@pytest.mark.parametrize("padding", [0, 4])
@pytest.mark.parametrize("fraction", [1.0, 0.75])
def test_random_crops_equal_torchvisions(
    padding: int, fraction: float, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resize, then RandomCrop with mirrored borders: DeiT III's simple random crop, and big_vision's resmall_crop."""
    size = (12, 12)
    preprocessing = Preprocessing(image_size=size, crop_fraction=fraction)
    resize = torchvision.transforms.Resize(int(12 / fraction), torchvision.transforms.InterpolationMode.BICUBIC)
    crop = torchvision.transforms.RandomCrop(size, padding or None, padding_mode="reflect")
    for seed in range(count // 4):
        image = picture(seed)
        place = iter(np.random.default_rng(seed).random(46)[44:])

        def drawn(low: int, high: int, size: Any, place: Any = place) -> torch.Tensor:
            return torch.tensor([low + int((high - low) * next(place))])

        monkeypatch.setattr(torch, "randint", drawn)
        expected = np.asarray(crop(resize(image)))
        wanted = Augmentation(random_crop=True, crop_padding=padding)
        ours = augmented(image, preprocessing, wanted, np.random.default_rng(seed))
        np.testing.assert_array_equal(ours, expected, err_msg=f"seed {seed}")


@pytest.mark.parametrize(("height", "width", "padding"), [(12, 9, 4), (5, 7, 23), (1, 6, 3), (2, 1, 40)])
@pytest.mark.parametrize("bits", [8, 16])
def test_borders_are_mirrored_as_numpys(height: int, width: int, padding: int, bits: Any) -> None:
    """Again and again where they are wider than the image."""
    preprocessing = Preprocessing(image_size=(height, width), bit_depth=bits)
    wanted, pixels_HWC = Augmentation(random_crop=True, crop_padding=padding), np.arange(height * width * 3)
    pixels_HWC = pixels_HWC.reshape(height, width, 3).astype(preprocessing.pixel_type)
    mirrored_HWC = np.pad(pixels_HWC, [(padding, padding)] * 2 + [(0, 0)], mode="reflect")
    for seed in range(20):
        down, across = (int(draw * (2 * padding + 1)) for draw in np.random.default_rng(seed).random(46)[44:])
        found = augmented(decode(pixels_HWC, preprocessing), preprocessing, wanted, np.random.default_rng(seed))
        np.testing.assert_array_equal(found, mirrored_HWC[down : down + height, across : across + width])
