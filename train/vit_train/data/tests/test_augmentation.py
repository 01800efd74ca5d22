"""Crops and boxes equal torchvision's, weights follow scipy's Beta; changes do not alter each other's draws."""

from typing import Any

import numpy as np
import pytest
import scipy.stats
import timm.data
import torch
import torchvision
from PIL import Image
from torchvision.transforms import v2

from vit_core.planes import Planes
from vit_core.preprocess import Preprocessing, resize_image
from vit_train.config import Augmentation
from vit_train.data.augmentation import Mix, augmented, draw_mix
from vit_train.data.tests.fixed_draws import FEW_OR_MANY, noise

EVERYTHING = Augmentation(crop_area=(0.1, 1.0), flip=0.5, rotation=20, shift=0.2, mixup=0.2, cutmix=1.0)
CROP = Augmentation(crop_area=(0.1, 1.0))
SMALL = Preprocessing(image_size=(9, 12))


class FixedDraws:
    """A generator whose last uniform draws are the given ones; all before them are 0.5."""

    def __init__(self, *last: float) -> None:
        self.last = last

    def random(self, count: int) -> np.ndarray:
        return np.array([0.5] * (count - len(self.last)) + [*self.last])


class TorchOf:
    """The part of torch that torchvision's RandomResizedCrop uses, in float64, with draws from rows of (area, ratio, i,
    j)."""

    log, exp, tensor = np.log, np.exp, np.array

    def __init__(self, draws_N4: np.ndarray) -> None:
        self.draws, self.next = draws_N4.ravel(), 0

    def draw(self) -> np.float64:
        self.next += 1
        return self.draws[self.next - 1]

    def empty(self, _: int) -> "TorchOf":
        return self

    def uniform_(self, low: float, high: float) -> np.float64:
        if self.next % 4 == 2:  # the last try did not fit, and did not use the draws of its position
            self.next += 2
        return low + (high - low) * self.draw()

    def randint(self, low: int, high: int, size: tuple[int]) -> Any:
        return np.int64(low + np.floor((high - low) * self.draw()))


def white(height: int, width: int) -> Image.Image:
    return Image.new("RGB", (width, height), "white")


RANGES = [((0.08, 1.0), (3 / 4, 4 / 3)), ((0.5, 1.0), (0.2, 6.0)), ((1.0, 1.0), (3 / 4, 4 / 3))]
"""Ranges of area and ratio. The last hardly ever fits, even where the whole image would."""
SIZES = [(32, 32), (50, 40), (20, 120), (7, 5), (90, 1), (1, 90), (1, 1)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("channels", "interpolation"), [(3, "bicubic"), (1, "bilinear"), (3, "nearest")])
def test_crops_equal_torchvisions(
    size: tuple[int, int], channels: int, interpolation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same draws give the same pixels: where the first try fits, a later one, or none."""
    preprocessing = Preprocessing(image_size=(24, 17), channels=channels, interpolation=interpolation)  # type: ignore[arg-type]
    image = noise(*size, channels)
    misses = {assert_torchvisions_crop(image, preprocessing, seed, monkeypatch) for seed in range(45)}
    if size in [(20, 120), (50, 40)]:
        assert {0, 1, 9} <= misses


@pytest.mark.release
def test_ten_thousand_crops_equal_torchvisions(monkeypatch: pytest.MonkeyPatch) -> None:
    images = [noise(*size) for size in SIZES]
    for seed in range(10_000):
        assert_torchvisions_crop(images[seed % len(SIZES)], Preprocessing(image_size=(24, 17)), seed, monkeypatch)


def assert_torchvisions_crop(
    image: Image.Image, preprocessing: Preprocessing, seed: int, monkeypatch: pytest.MonkeyPatch
) -> int:
    """Compares a crop with torchvision's on the same draws; returns how many tries did not fit."""
    area, ratio = RANGES[seed % len(RANGES)]
    fake = TorchOf(np.random.default_rng(seed).random(44)[:40])
    monkeypatch.setattr(torchvision.transforms.transforms, "torch", fake)
    interpolation = torchvision.transforms.InterpolationMode(preprocessing.interpolation)
    reference = torchvision.transforms.RandomResizedCrop(preprocessing.image_size, area, ratio, interpolation)
    expected = np.asarray(reference(image)).reshape(*preprocessing.image_size, preprocessing.channels)
    wanted = Augmentation(crop_area=area, crop_ratio=ratio)
    np.testing.assert_array_equal(augmented(image, preprocessing, wanted, np.random.default_rng(seed)), expected)
    return (fake.next - 1) // 4


@pytest.mark.parametrize("ratio", [(3.0, 4.0), (0.1, 0.2)])
def test_crop_of_one_pixel_with_another_ratio(ratio: tuple[float, float]) -> None:
    """torchvision crops nothing here, and fails."""
    wanted = Augmentation(crop_area=(0.5, 1.0), crop_ratio=ratio)
    assert (augmented(white(1, 1), SMALL, wanted, np.random.default_rng(0)) == 255).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_without_augmentation_it_is_the_evaluation_transform(channels: int) -> None:
    preprocessing = Preprocessing(image_size=(9, 12), channels=channels, crop_fraction=0.9)  # type: ignore[arg-type]
    image = noise(30, 23, channels)
    ours = augmented(image, preprocessing, Augmentation(), np.random.default_rng(0))
    np.testing.assert_array_equal(ours, resize_image(image, preprocessing))


@pytest.mark.parametrize("channels", [1, 3])
def test_flip_equals_numpys(channels: int) -> None:
    preprocessing = Preprocessing(image_size=(9, 12), channels=channels)  # type: ignore[arg-type]
    image = noise(30, 23, channels)
    ours = augmented(image, preprocessing, Augmentation(flip=1.0), np.random.default_rng(0))
    np.testing.assert_array_equal(ours, np.fliplr(resize_image(image, preprocessing)))


def test_flips_have_the_asked_probability() -> None:
    rng, image = np.random.default_rng(0), noise(9, 12)
    count = sum(bool((augmented(image, SMALL, Augmentation(flip=0.3), rng) != image).any()) for _ in range(1000))
    assert abs(count - 300) < 5 * np.sqrt(1000 * 0.3 * 0.7)  # five standard deviations


@pytest.mark.parametrize(("draw", "turns"), [(1.0, -1), (0.0, 1)])
def test_rotation_by_90_degrees_equals_numpys(draw: float, turns: int) -> None:
    """The pixels are shifted first, then rotated. Bicubic at pixel centers, up to rounding: one level at most."""
    image = noise(8, 8)
    preprocessing, both = Preprocessing(image_size=8), Augmentation(rotation=90, shift=0.5)
    turned = augmented(image, preprocessing, both, FixedDraws(draw, 0.75, 0.5))  # type: ignore[arg-type]
    shifted = np.zeros((8, 8, 3), int)
    shifted[:6] = np.asarray(image)[2:]
    # Except the outermost pixels and those beside the black: there rounding decides whether a point is outside.
    expected = np.rot90(shifted, turns)
    inner = np.rot90(np.pad(np.ones((4, 6), bool), ((1, 3), (1, 1))), turns)
    np.testing.assert_allclose(turned[inner].astype(int), expected[inner], rtol=0, atol=1)


@pytest.mark.parametrize("degrees", [-30.0, 7.0])
def test_rotation_equals_pillows(degrees: float) -> None:
    image, preprocessing = noise(24, 17), Preprocessing(image_size=(24, 17))
    turned = augmented(image, preprocessing, Augmentation(rotation=60), FixedDraws(0.5 + degrees / 120, 0.5, 0.5))  # type: ignore[arg-type]
    expected = np.asarray(image.rotate(-degrees, Image.Resampling.BICUBIC))
    assert np.abs(turned.astype(int) - expected).max() <= 1  # Pillow rounds its matrix at 15 digits


@pytest.mark.parametrize("channels", [1, 3])
def test_shift_by_whole_pixels_is_exact(channels: int) -> None:
    image = noise(8, 8, channels)
    preprocessing = Preprocessing(image_size=8, channels=channels)  # type: ignore[arg-type]
    moved = augmented(image, preprocessing, Augmentation(shift=0.5), FixedDraws(0.9, 0.75, 0.25))  # type: ignore[arg-type]
    expected = np.zeros_like(moved)
    expected[:6, 2:] = np.asarray(image).reshape(8, 8, channels)[2:, :6]
    np.testing.assert_array_equal(moved, expected)


def test_flip_comes_before_shift_and_rotation() -> None:
    image, affine = noise(9, 12), Augmentation(rotation=20, shift=0.2)
    both = augmented(image, SMALL, affine.replace(flip=1.0), np.random.default_rng(0))
    mirrored = Image.fromarray(np.fliplr(image))
    np.testing.assert_array_equal(both, augmented(mirrored, SMALL, affine, np.random.default_rng(0)))


def test_the_seed_determines_the_result() -> None:
    first, again, other = (
        augmented(noise(30, 40), SMALL, EVERYTHING, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("seed", range(10))
def test_changes_do_not_alter_each_others_draws(seed: int) -> None:
    def of(image: Image.Image, augmentation: Augmentation) -> np.ndarray:
        return augmented(image, SMALL, augmentation, np.random.default_rng(seed))

    image, affine = noise(30, 40), Augmentation(rotation=20, shift=0.2)
    np.testing.assert_array_equal(of(image, CROP.replace(flip=1.0)), np.fliplr(of(image, CROP)))
    # In a white image only the black border is visible, which comes from shift and rotation alone.
    np.testing.assert_array_equal(
        of(white(30, 40), EVERYTHING.replace(rotation=affine.rotation)), of(white(30, 40), affine)
    )
    flipped = (of(image, Augmentation(flip=0.5)) != of(image, Augmentation())).any()
    assert flipped == (of(image, CROP.replace(flip=0.5)) != of(image, CROP)).any()


def test_the_number_of_draws_is_fixed() -> None:
    states = []
    for augmentation in (Augmentation(), CROP, Augmentation(mixup=0.2), Augmentation(cutmix=2.0), EVERYTHING):
        for image in (noise(30, 40), noise(40, 1)):
            rng = np.random.default_rng(0)
            augmented(image, SMALL, augmentation, rng)
            draw_mix(augmentation, (9, 12), rng)
            states.append(rng.random())
    assert len(set(states)) == 1


@pytest.mark.parametrize("count", FEW_OR_MANY)
@pytest.mark.parametrize("size", [(32, 32), (31, 45), (1, 7)])
def test_cutmix_boxes_equal_torchvisions(size: tuple[int, int], count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = v2.CutMix(num_classes=2)
    for seed in range(count // 2):
        mix = draw_mix(Augmentation(cutmix=1.0), size, np.random.default_rng(seed))
        _, lam, down, across = np.random.default_rng(seed).random(4)  # Beta(1, 1) is uniform
        drawn = iter((across, down))
        monkeypatch.setattr(reference._dist, "sample", lambda _, lam=lam: torch.tensor(lam, dtype=torch.float64))
        monkeypatch.setattr(torch, "randint", lambda n, size, drawn=drawn: torch.tensor([int(n * next(drawn))]))
        expected = reference.make_params([torch.zeros(2, 3, *size)])
        left, top, right, bottom = expected["box"]
        assert mix == (1.0, (top, left, bottom, right))
        assert mix.share(size) == expected["lam_adjusted"]


@pytest.mark.parametrize("mix", [Mix(), Mix(weight=0.3), Mix(box=(2, 0, 5, 12)), Mix(box=(0, 0, 9, 12))])
def test_share_is_the_mean_of_w(mix: Mix) -> None:
    w = np.full((9, 12), mix.weight)
    top, left, bottom, right = mix.box
    w[top:bottom, left:right] = 0
    assert mix.share((9, 12)) == pytest.approx(w.mean(), abs=1e-15)


@pytest.mark.parametrize("alpha", [0.2, 0.8, 3.0])
def test_weights_follow_the_beta_distribution(alpha: float) -> None:
    """Mixup's weights; and CutMix's, from boxes in the middle of an image so large that rounding to pixels is small."""
    rng, size = np.random.default_rng(0), (10**6, 10**6)
    weights = [draw_mix(Augmentation(mixup=alpha), (8, 8), rng).weight for _ in range(1000)]
    quantiles = rng.random(1000)
    fixed = [FixedDraws(quantile, 0.5, 0.5) for quantile in quantiles]
    shares = [draw_mix(Augmentation(cutmix=alpha), size, one).share(size) for one in fixed]  # type: ignore[arg-type]
    for found in (weights, shares):  # seeds are fixed: a correct sampler falls below 0.001 for one seed in a thousand
        assert scipy.stats.kstest(found, scipy.stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_only_what_is_switched_on_is_drawn() -> None:
    def drawn(**alphas: float) -> list[Mix]:
        rng = np.random.default_rng(0)
        return [draw_mix(Augmentation(**alphas), (32, 32), rng) for _ in range(1000)]

    mixup, cutmix, both = drawn(mixup=0.2), drawn(cutmix=3.0), drawn(mixup=0.2, cutmix=3.0)
    assert set(drawn()) == {Mix(1.0, (0, 0, 0, 0))}
    assert {mix.box for mix in mixup} == {(0, 0, 0, 0)}
    assert {mix.weight for mix in cutmix} == {1.0}
    assert all(mix in pair for mix, pair in zip(both, zip(mixup, cutmix, strict=True), strict=True))
    assert abs(sum(map(Mix.__eq__, both, mixup)) - 500) < 5 * np.sqrt(1000 / 4)  # five standard deviations


def test_a_part_of_the_pairs_is_mixed_as_by_timm() -> None:
    """The shares of pairs left as they are, mixed and cut, beside those that timm draws with the same probabilities."""
    count, options = 4000, {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "prob": 0.3}
    rng, augmentation = np.random.default_rng(0), Augmentation(mixup=0.8, cutmix=1.0, mix_probability=0.3)
    mixes = [draw_mix(augmentation, (32, 32), rng) for _ in range(count)]
    np.random.seed(0)
    weights, cut = timm.data.Mixup(**options)._params_per_elem(count)
    found = sum(mix == Mix() for mix in mixes), sum(mix.weight < 1 for mix in mixes)
    expected = int((weights == 1).sum()), int(((weights < 1) & ~cut).sum())
    assert np.abs(np.subtract(found, expected)).max() < 5 * np.sqrt(2 * count / 4)  # five standard deviations
    assert {mix.box for mix in mixes if mix.weight < 1} == {(0, 0, 0, 0)}


@pytest.mark.parametrize("seed", range(4))
def test_any_number_of_channels_is_augmented_as_grayscale_is(seed: int) -> None:
    """Each channel as an image of its own, by the same draws; Pillow rounds 8-bit images after each of three steps."""
    changes = Augmentation(crop_area=(0.5, 1.0), flip=0.5, rotation=20, shift=0.1)
    y_H1, x_1W = np.mgrid[:40, :50]
    pixels = np.stack([20 + 4 * y_H1 + x_1W, 200 - x_1W * 3, 100 + y_H1, 30 + y_H1 * x_1W // 9, y_H1], -1)
    five, one = (Preprocessing(image_size=(24, 32), channels=channels) for channels in (5, 1))
    found = augmented(Planes.of(pixels.astype(np.uint8), 8), five, changes, np.random.default_rng(seed)).astype(int)
    for c in range(5):
        image = Image.fromarray(pixels[..., c].astype(np.uint8))
        alone = augmented(image, one, changes, np.random.default_rng(seed))[..., 0].astype(int)
        assert np.abs(found[..., c] - alone).max() <= 3
