"""RandAugment equals timm's bit for bit on the same draws; big_vision's operations have the ranges of its source."""

from typing import Any, Literal

import numpy as np
import pytest
import timm.data.auto_augment as timm
from PIL import Image, ImageOps

from vit_core import InputError
from vit_core.pixels import Pixels
from vit_core.preprocess import Preprocessing
from vit_train.config import Augmentation, RandAugment
from vit_train.data.augmentation import augmented
from vit_train.data.rand_augment import LAYER_DRAWS, OPERATIONS, OperationSettings, rand_augmented
from vit_train.data.tests.fixed_draws import FEW_OR_MANY, PythonRandom, picture
from vit_train.tests.small_run import CONFIG

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
SETTINGS = {
    "rand-m9-mstd0.5-inc1": RandAugment(layers=2, deviation=0.5),
    "rand-m7-n3-p0.9": RandAugment(layers=3, operations="timm", magnitude=7.0, probability=0.9),
    "rand-m15-mmax20-inc1-p1.0": RandAugment(layers=2, magnitude=15.0, limit=20.0, probability=1.0),
    "rand-m15-n1-mstd2-p1.0": RandAugment(layers=1, operations="timm", magnitude=15.0, deviation=2.0, probability=1.0),
}
SIGNED = ("Rotate", "Shear", "Translate", "Increasing")


def timms(spelled: str, interpolation: str, draws: list[float], image: Image.Image, patch: pytest.MonkeyPatch) -> Any:
    """What timm makes of an image, with the same draws in the order in which timm asks for them."""
    hparams = {"img_mean": (124, 116, 104), "interpolation": Image.Resampling[interpolation.upper()]}
    theirs = timm.rand_augment_transform(spelled, hparams)
    layers = [draws[i : i + LAYER_DRAWS] for i in range(0, len(draws), LAYER_DRAWS)]
    chosen = [theirs.ops[int(layer[0] * len(theirs.ops))] for layer in layers]
    asked: list[float] = []
    for op, (_, whether, deviation, sign, *_place) in zip(chosen, layers, strict=True):
        asked += [whether] * (op.prob < 1)
        if whether <= op.prob:
            asked += [deviation] * (op.magnitude_std > 0)
            moved = op.name.startswith(SIGNED) or op.name in [f"{n}Increasing" for n in ENHANCING]
            asked += [sign] * moved
    fake = PythonRandom(asked)
    patch.setattr(timm, "random", fake)
    patch.setattr(ImageOps, "posterize", posterize)
    patch.setattr(np.random, "choice", lambda ops, count, replace, p: chosen)
    result = theirs(image)
    assert fake.draws == [], "timm asked for fewer draws"
    return result


ENHANCING = ("Color", "Contrast", "Brightness", "Sharpness")
pillows_posterize = ImageOps.posterize


def posterize(image: Image.Image, bits: int) -> Image.Image:
    """Pillow's, as it was when timm was written: newer ones refuse to keep no bit, where all is black."""
    return pillows_posterize(image, bits) if bits > 0 else image.point(lambda level: 0)


@pytest.mark.parametrize("count", FEW_OR_MANY)
@pytest.mark.parametrize("spelled", SETTINGS)
def test_it_equals_timms(spelled: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, seen = SETTINGS[spelled], set()
    for seed in range(count // len(SETTINGS)):
        interpolation: Any = ("bicubic", "bilinear", "nearest")[seed % 3]
        preprocessing = Preprocessing(image_size=8, interpolation=interpolation, **IMAGENET)  # type: ignore[arg-type]
        draws = np.random.default_rng(seed).random(LAYER_DRAWS * settings.layers).tolist()
        image = picture(seed)
        ours = rand_augmented(Pixels.of(image), settings, preprocessing, draws).pixels_HWC
        theirs = timms(spelled, interpolation, draws, image, monkeypatch)
        np.testing.assert_array_equal(ours, np.asarray(theirs), err_msg=f"seed {seed}")
        seen |= {int(15 * draw) for draw in draws[::LAYER_DRAWS]}
    assert seen == set(range(15)), "some operation was never drawn"


def test_the_operations_are_timms_in_its_order() -> None:
    def plain(names: Any) -> list[str]:
        return [name.replace("Increasing", "") for name in names]

    assert list(OPERATIONS["timm"]) == timm._RAND_TRANSFORMS
    assert list(OPERATIONS["timm_increasing"]) == plain(timm._RAND_INCREASING_TRANSFORMS)


@pytest.mark.parametrize(
    ("name", "magnitude", "value"),
    [
        # big_vision, pp/archive/autoaugment.py: level_to_arg, with translate_const=100 and cutout_const=40.
        ("Rotate", 15, 45.0),
        ("Posterize", 15, 6),
        ("Solarize", 15, 384),
        ("SolarizeAdd", 15, 165),
        ("Color", 15, 2.8),
        ("Contrast", 10, 1.9),
        ("Brightness", 0, 0.1),
        ("Sharpness", 20, 3.7),
        ("ShearX", 15, 0.45),
        ("ShearY", 10, 0.3),
        ("TranslateX", 15, 150.0),
        ("TranslateY", 10, 100.0),
        ("Cutout", 15, 60),
    ],
)
def test_big_visions_ranges(name: str, magnitude: float, value: float) -> None:
    _, strength = OPERATIONS["big_vision"][name]
    assert abs(strength(magnitude / 10, 1)) == pytest.approx(value, rel=1e-15)
    signed = name in ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
    assert strength(magnitude / 10, -1) == pytest.approx(-value if signed else value, rel=1e-15)


def test_big_visions_sixteen_operations() -> None:
    assert set(OPERATIONS["big_vision"]) == {
        *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "Color", "Contrast", "Brightness"),
        *("Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY", "Cutout", "SolarizeAdd"),
    }


def test_big_visions_cutout_and_contrast() -> None:
    """Formulas of its source: a square of twice the size about a pixel, and gray of pixels / 256 in place of a mean."""
    pixels_HWC = np.array(picture(3))
    image, kept_HWC = Pixels(pixels_HWC), pixels_HWC.copy()
    height, width = pixels_HWC.shape[:2]
    settings = OperationSettings((128, 128, 128), Image.Resampling.NEAREST, (0.5, 0.25))
    change, _ = OPERATIONS["big_vision"]["Cutout"]
    expected = pixels_HWC.copy()
    y, x = height // 2, width // 4
    expected[max(0, y - 3) : y + 3, max(0, x - 3) : x + 3] = 128
    np.testing.assert_array_equal(change(image, 3, settings).pixels_HWC, expected)
    np.testing.assert_array_equal(pixels_HWC, kept_HWC, err_msg="the image itself was changed")
    change, _ = OPERATIONS["big_vision"]["Contrast"]
    gray = height * width // 256
    for factor in (0.25, 1.5):
        expected = np.trunc(gray + np.float32(factor) * (pixels_HWC.astype(np.float32) - gray)).clip(0, 255)
        np.testing.assert_array_equal(change(image, factor, settings).pixels_HWC, expected)


@pytest.mark.parametrize("operations", OPERATIONS)
def test_grayscale_is_augmented_too(operations: Literal["timm", "timm_increasing", "big_vision"]) -> None:
    settings = RandAugment(layers=1, operations=operations, probability=1.0)
    preprocessing = Preprocessing(image_size=12, channels=1)
    for i in range(len(OPERATIONS[operations])):
        image = Pixels.of(picture(i, channels=1))
        draws = [(i + 0.5) / len(OPERATIONS[operations]), 0.0, 0.5, 0.7, 0.4, 0.6]
        changed = rand_augmented(image, settings, preprocessing, draws)
        assert changed.pixels_HWC.shape == image.pixels_HWC.shape


def test_where_no_operation_is_chosen_nothing_changes() -> None:
    preprocessing = Preprocessing(image_size=12)
    plain, never = Augmentation(), Augmentation(rand_augment=RandAugment(layers=3, probability=0.0))
    for seed in range(20):
        results = [
            augmented(picture(seed), preprocessing, each, np.random.default_rng(seed)) for each in (plain, never)
        ]
        np.testing.assert_array_equal(*results)


def test_images_of_five_channels_are_refused() -> None:
    augmentation = Augmentation(rand_augment=RandAugment(layers=1))
    with pytest.raises(InputError, match="auto_augment, three_augment and color_jitter are for images of 1 or 3"):
        CONFIG.replace(model=CONFIG.model.replace(channels=5), preprocessing=None, augmentation=augmentation)
