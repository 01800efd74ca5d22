"""One file, one array: geometry, decoding and normalization."""

import math

import numpy as np
import pytest
from PIL import Image

from vit_core.errors import InputError
from vit_core.preprocess import (
    Preprocessing,
    crop_rounding_matters,
    crop_start,
    decode_image,
    load_image,
    normalize,
    offset_and_scale,
    resize_image,
)
from vit_core.tests.images import encoded, pixels_of, write_jpegs

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory):
    return write_jpegs(tmp_path_factory.mktemp("jpegs"))


# Geometry; held to torchvision's and timm's transforms in parity_tests/test_transforms.py.


def test_crop_rounds_half_to_even():
    """Margins of 1, 3, 5 pixels, halved: 0.5 -> 0, 1.5 -> 2, 2.5 -> 2 (torchvision's, by Python's round)."""
    lefts = []
    for margin in (1, 3, 5):
        ramp = Image.fromarray(np.tile(np.arange(8 + margin, dtype=np.uint8), (8, 1)))
        lefts.append(int(resize_image(ramp, Preprocessing(image_size=8, channels=1))[0, 0, 0]))
    assert lefts == [0, 2, 2]


def test_crop_rounds_down_where_said():
    """transformers': 0.5 -> 0, 1.5 -> 1, 2.5 -> 2, on both sides."""
    floor = Preprocessing(image_size=8, channels=1, crop_rounding="floor")
    starts = []
    for margin in (1, 3, 5):
        ramp = np.tile(np.arange(8 + margin, dtype=np.uint8), (8, 1))
        across, down = (int(resize_image(Image.fromarray(each), floor)[0, 0, 0]) for each in (ramp, ramp.T.copy()))
        starts.append((across, down))
    assert starts == [(0, 0), (1, 1), (2, 2)]


@pytest.mark.parametrize("margin", range(9))
def test_crop_start(margin):
    assert crop_start(margin, "floor") == [0, 0, 1, 1, 2, 2, 3, 3, 4][margin]
    assert crop_start(margin, "half_even") == [0, 0, 1, 2, 2, 2, 3, 4, 4][margin]


@pytest.mark.parametrize(
    ("fields", "matters"),
    [
        ({}, True),
        ({"resize": "border"}, True),
        ({"resize": "squash"}, False),  # a margin of 0
        ({"resize": "squash", "crop_fraction": 8 / 9}, False),  # 1: 0 either way
        ({"resize": "squash", "crop_fraction": 8 / 11}, True),  # 3: 1 or 2
        ({"resize": "squash", "image_size": (8, 16), "crop_fraction": 0.84}, True),  # 1 and 3
    ],
)
def test_where_crop_rounding_matters(fields, matters):
    assert crop_rounding_matters(Preprocessing(**{"image_size": 8, **fields})) == matters


def test_records_written_before_keep_their_pixels():
    """A config.json without crop_rounding means what it meant: half to even."""
    before = {
        name: value for name, value in Preprocessing(image_size=8).model_dump().items() if name != "crop_rounding"
    }
    assert Preprocessing(**before).crop_rounding == "half_even"


def test_crop_fraction_floors():
    """33 / 0.95 = 34.7 becomes 34."""
    ramp = Image.fromarray(np.tile(np.arange(34, dtype=np.uint8), (34, 1)))
    cropped = resize_image(ramp, Preprocessing(image_size=33, channels=1, crop_fraction=0.95))
    assert cropped[0, :, 0].tolist() == list(range(33))  # 34 x 34 already: untouched by the resize, cut at 0


def test_grayscale_keeps_a_channel_axis():
    image = Image.fromarray(pixels_of(40, 50, 1)[..., 0])
    array = resize_image(image, Preprocessing(image_size=40, channels=1))
    np.testing.assert_array_equal(array, np.asarray(image)[:, 5:45, None])


def test_squash_to_the_same_size_changes_nothing():
    pixels = pixels_of(24, 40)
    squashed = resize_image(Image.fromarray(pixels), Preprocessing(image_size=(24, 40), resize="squash"))
    np.testing.assert_array_equal(squashed, pixels)


def test_extreme_aspect_is_refused_before_memory_is_spent():
    sliver = Image.new("RGB", (60_000, 1))
    with pytest.raises(InputError, match="1 x 60000 pixels to 224 x 13440000"):
        resize_image(sliver, Preprocessing(image_size=224))
    assert resize_image(sliver, Preprocessing(image_size=8, resize="squash")).shape == (8, 8, 3)


def test_resize_wants_the_mode_of_its_channels():
    with pytest.raises(InputError, match="mode RGB: expected L"):
        resize_image(Image.new("RGB", (9, 9)), Preprocessing(image_size=8, channels=1))


# Normalization.


def test_normalize_values():
    """Against the textbook formula in float64; black and white of the default are exactly -1 and 1. In float32, the
    offset is rounded, then the difference, the factor and the product."""
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=-1)
    ours = normalize(pixels, Preprocessing(image_size=16, **IMAGENET))
    expected = (pixels / 255 - np.array(IMAGENET["mean"])) / np.array(IMAGENET["std"])
    offset = (np.array(IMAGENET["mean"]) / np.array(IMAGENET["std"])).max()
    np.testing.assert_allclose(ours, expected, rtol=3 * 2.0**-24, atol=offset * 2.0**-24)
    assert normalize(np.uint8([[[0], [255]]]), Preprocessing(image_size=1, channels=1)).tolist() == [[[-1.0], [1.0]]]


def test_constants_are_rounded_once():
    """Rounding the mean or the deviation before the product, too, would give another float32 for these."""
    mean, std = (0.3, 0.406, 0.065), (0.229, 0.224, 0.1)
    offset, scale = offset_and_scale(Preprocessing(image_size=8, mean=mean, std=std))
    assert offset.tolist() == [float(np.float32(255 * m)) for m in mean]
    assert scale.tolist() == [float(np.float32(1 / (255 * s))) for s in std]
    assert offset.dtype == scale.dtype == np.float32
    assert any(255 * np.array(mean, np.float32) != offset)
    assert any(1 / (255 * np.array(std, np.float32)) != scale)


@pytest.mark.parametrize("pixels", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 1), np.uint8), np.uint8(3)])
def test_normalize_refuses_other_arrays(pixels):
    with pytest.raises(InputError, match=r"expected uint8 \[\.\.\., 3\]"):
        normalize(pixels, Preprocessing(image_size=4))


def test_load_image_is_the_composition(jpegs):
    preprocessing = Preprocessing(image_size=30, crop_fraction=0.9, **CLIP)
    path = jpegs[97, 64]
    array = load_image(path, preprocessing)
    assert (array.shape, array.dtype) == ((30, 30, 3), np.float32)
    np.testing.assert_array_equal(array, normalize(resize_image(decode_image(path), preprocessing), preprocessing))
    for other in (str(path), path.read_bytes()):
        np.testing.assert_array_equal(load_image(other, preprocessing), array)


def test_load_image_passes_channels_and_rotation_on():
    """2 x 1, black above white, orientation 6: turned clockwise, white stands left of black."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(np.uint8([[0], [255]])), "PNG", exif=exif)
    turned = load_image(data, Preprocessing(image_size=(1, 2), channels=1, exif_rotation=True))
    assert turned.tolist() == [[[1.0], [-1.0]]]
    upright = load_image(data, Preprocessing(image_size=(2, 1), channels=1))
    assert upright.tolist() == [[[-1.0]], [[1.0]]]


# The record itself.


def test_defaults():
    record = Preprocessing(image_size=224)
    assert record.image_size == (224, 224)
    assert record.mean == record.std == (0.5, 0.5, 0.5)
    assert Preprocessing(image_size=(28, 14), channels=1).mean == (0.5,)
    assert (record.channels, record.interpolation, record.resize) == (3, "bicubic", "crop")
    assert (record.crop_fraction, record.crop_rounding, record.exif_rotation) == (1.0, "half_even", False)


def test_json_round_trip():
    record = Preprocessing(image_size=(28, 14), channels=1, mean=(0.1307,), std=(0.3081,), resize="squash")
    assert Preprocessing.model_validate_json(record.model_dump_json()) == record


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_size": 0},
        {"image_size": (8, 8, 8)},
        {"channels": 0},
        {"bit_depth": 12},
        {"mean": (0.5,)},
        {"std": (0.5, 0.5)},
        {"std": (0.5, 0.5, 0.0)},
        {"std": (0.5, 0.5, -1.0)},
        {"mean": (0.5, 0.5, math.nan)},
        {"std": (0.5, 0.5, math.inf)},
        {"channels": 1, "mean": (0.5, 0.5, 0.5)},
        {"interpolation": "area"},
        {"resize": "pad"},
        {"crop_rounding": "up"},
        {"crop_fraction": 0.0},
        {"crop_fraction": 1.01},
        {"crop_pct": 0.9},
    ],
)
def test_bad_values_are_refused(wrong):
    with pytest.raises(ValueError, match=next(reversed(wrong))):
        Preprocessing(**{"image_size": 8, **wrong})


def test_record_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Preprocessing(image_size=8).image_size = (9, 9)
