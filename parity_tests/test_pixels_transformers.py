"""Every image processor of transformers gives our pixels with its PIL backend, at image sizes of every remainder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers as hf
from PIL import Image

from parity_tests.pixel_sweep import (
    IMAGE_SIZES,
    PROCESSORS,
    PUBLISHED,
    SIDE,
    Processor,
    distances,
    levels,
    ours,
    picture,
    read,
    square,
)
from vit_core import ViTConfig
from vit_core.arrays import LazyArrays
from vit_core.checkpoints.formats.interface import Source
from vit_core.checkpoints.formats.transformers.image_processors import (
    FILE,
    preprocessor_texts,
    read_preprocessing,
)
from vit_core.preprocess import Preprocessing, resize_image

LEVEL = 1e-4
"""Bound of normalized values, in levels of 255. A value of at most 2.7 has four roundings of 2**-24 on each side, times
255 * 0.28: 9e-5."""


def assert_same_pixels(theirs: Any, preprocessing: Preprocessing, image: Image.Image) -> None:
    """Equal bit for bit before normalization, and within LEVEL after it."""
    pixels_HWC, normalized_HWC = ours(image, preprocessing)
    unnormalized_CHW = theirs(image, return_tensors="np", do_rescale=False, do_normalize=False)["pixel_values"][0]
    assert unnormalized_CHW.dtype == np.uint8
    np.testing.assert_array_equal(unnormalized_CHW.transpose(1, 2, 0), pixels_HWC, err_msg=str(image.size))
    theirs_CHW = np.asarray(theirs(image, return_tensors="np")["pixel_values"][0])
    apart_HWC = levels(theirs_CHW.transpose(1, 2, 0), preprocessing) - levels(normalized_HWC, preprocessing)
    assert np.abs(apart_HWC).max() <= LEVEL


@pytest.mark.parametrize("processor", PROCESSORS, ids=str)
def test_processors_give_our_pixels(processor: Processor) -> None:
    """By the file that the processor saves, and by the file that is written from it here."""
    theirs, preprocessing = processor.build("pil"), processor.preprocessing()
    for height, width in IMAGE_SIZES:
        assert_same_pixels(theirs, preprocessing, picture(height, width))
    texts, notes = preprocessor_texts(preprocessing)
    assert notes == []
    assert read(json.loads(texts[FILE]), processor.model_type) == preprocessing


@pytest.mark.parametrize("processor", PUBLISHED, ids=lambda processor: processor.model)
def test_published_sizes(processor: Processor) -> None:
    theirs, preprocessing = processor.build("pil"), processor.preprocessing(224)
    assert preprocessing.image_size == (224, 224)
    for height, width in ((375, 500), (500, 333), (227, 301), (224, 225), (100, 131)):
        assert_same_pixels(theirs, preprocessing, picture(height, width))


def test_one_channel_gives_our_pixels() -> None:
    theirs = hf.ViTImageProcessorPil(size=square(SIDE), image_mean=[0.2], image_std=[0.7])
    preprocessing = read(theirs.to_dict() | {"size": square(SIDE)}, channels=1)
    assert (preprocessing.mean, preprocessing.std) == ((0.2,), (0.7,))
    for height, width in IMAGE_SIZES:
        assert_same_pixels(theirs, preprocessing, picture(height, width, 1))


def test_the_other_rounding_shows() -> None:
    """Rounded as torchvision does, crops of CLIP and DINOv2 are one pixel off on a quarter of all image sizes."""
    clip = next(each for each in PROCESSORS if str(each) == "CLIP-size=18-crop_size=16x16")
    preprocessing = clip.preprocessing()
    assert preprocessing.crop_rounding == "floor"
    other = preprocessing.replace(crop_rounding="half_even")
    widths = range(18, 58)  # margins of 2 to 41 pixels
    images = [picture(18, width) for width in widths]
    differing = [bool((resize_image(each, preprocessing) != resize_image(each, other)).any()) for each in images]
    assert differing == [(width - SIDE) % 4 == 3 for width in widths]


def test_distance_to_the_torchvision_backend_is_measured() -> None:
    """The distance has no bound; the measurement gives 0 for the PIL backend, and rounding for the other."""
    dinov2 = next(each for each in PROCESSORS if each.model == "DINOv2")
    assert distances(dinov2, "pil") == (0, 0.0, 0)
    other, mean, largest = distances(dinov2, "torchvision")
    assert 0 < other <= len(IMAGE_SIZES)
    assert 0 < mean < largest


def fields_of(kind: str = "ViT", **changes: Any) -> dict[str, Any]:
    """A file of transformers with some fields changed."""
    return {"image_processor_type": f"{kind}ImageProcessor", "size": square(SIDE), **changes}


@pytest.mark.parametrize(
    ("said", "name"),
    [
        (0, "nearest"),
        (1, "lanczos"),
        (2, "bilinear"),
        (3, "bicubic"),
        ("bicubic", "bicubic"),
        ("BILINEAR", "bilinear"),
        ("PILImageResampling.LANCZOS", "lanczos"),
        ("Resampling.NEAREST", "nearest"),
        ("InterpolationMode.BICUBIC", "bicubic"),
    ],
)
def test_filters_by_number_and_by_name(said: object, name: str) -> None:
    assert read(fields_of(resample=said)).interpolation == name


@pytest.mark.parametrize("crop_size", [SIDE, [SIDE, SIDE], {"height": SIDE, "width": SIDE}])
@pytest.mark.parametrize("size", [20, {"shortest_edge": 20}])
def test_forms_of_sizes(size: object, crop_size: object) -> None:
    """A single number is the shortest edge in Bit and CLIP, and both sides of a crop."""
    found = read(fields_of("Bit", size=size, crop_size=crop_size, do_center_crop=True), "dinov2")
    assert (found.resize, found.crop_fraction, found.crop_rounding) == ("crop", 0.8, "floor")


@pytest.mark.parametrize("size", [20, [20, 20], {"height": 20, "width": 20}])
def test_forms_of_sizes_of_what_stretches(size: object) -> None:
    found = read(fields_of("DeiT", size=size, crop_size=SIDE, do_center_crop=True), "deit")
    assert (found.resize, found.crop_fraction, found.crop_rounding) == ("squash", 0.8, "floor")


def test_default_to_square_is_heeded() -> None:
    crop = {"do_center_crop": True, "crop_size": SIDE}
    assert read(fields_of("CLIP", size=20, default_to_square=True, **crop)).resize == "squash"
    assert read(fields_of("ViT", size=20, default_to_square=False, **crop)).resize == "crop"


def notes_of(fields: dict[str, Any], channels: int = 3) -> tuple[Preprocessing | None, list[str]]:
    model = ViTConfig(
        image_size=SIDE, patch_size=4, channels=channels, width=8, depth=1, heads=2, mlp_dim=8, num_classes=2
    )
    return read_preprocessing(Source(Path("folder"), LazyArrays({}), preprocessor=fields), model, "vit", None)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"do_pad": True, "pad_size": square(32)}, "images are padded (do_pad)"),
        ({"resample": "hamming"}, "resample hamming"),
        ({"resample": "nearest-exact"}, "resample nearest-exact"),
        ({"resample": True}, "resample True"),
        ({"size": [16, 16, 16]}, "size [16, 16, 16]"),
        ({"size": {"max_height": 16, "max_width": 16}}, "size {'max_height': 16, 'max_width': 16}"),
        ({"size": {"shortest_edge": 16, "longest_edge": 32}}, "size {'shortest_edge': 16, 'longest_edge': 32}"),
    ],
)
def test_left_out_with_a_reason(change: dict[str, Any], reason: str) -> None:
    assert notes_of(fields_of(**change)) == (None, [f"{FILE} left out: {reason}"])


def test_means_for_one_channel() -> None:
    """Three equal ones are one; different ones cost the preprocessing only."""
    equal = fields_of(image_mean=[0.4, 0.4, 0.4], image_std=[0.25, 0.25, 0.25])
    found, notes = notes_of(equal, channels=1)
    assert found is not None
    assert (found.mean, found.std) == ((0.4,), (0.25,))
    assert notes == [f"{FILE}: image_mean and image_std: three equal values, used as one value for one channel"]
    found, notes = notes_of(fields_of(image_mean=[0.4, 0.5, 0.6]), channels=1)
    assert found is None
    assert len(notes) == 1
    assert "mean has 3 values, expected one for each of 1 channels" in notes[0]


def test_an_unknown_key_is_named() -> None:
    found, notes = notes_of(fields_of(crop_pct=0.9, do_flip_channel_order=True, nothing=None))
    assert found is not None
    assert notes == [f"{FILE}: unknown keys, which may change the pixels: crop_pct, do_flip_channel_order"]


def test_writing_another_rounding_is_noted() -> None:
    """Only where it changes pixels; and timm's border is in no processor."""
    half_even = Preprocessing(image_size=SIDE, crop_fraction=0.8)
    texts, notes = preprocessor_texts(half_even)
    assert list(texts) == [FILE]
    assert len(notes) == 1
    assert "(this model: crop_rounding half_even)" in notes[0]
    for fine in (half_even.replace(crop_rounding="floor"), half_even.replace(resize="squash")):
        assert preprocessor_texts(fine)[1] == []  # a margin of 4 pixels: 2 either way
    odd = half_even.replace(resize="squash", crop_fraction=16 / 19)
    assert len(preprocessor_texts(odd)[1]) == 1
    assert preprocessor_texts(half_even.replace(resize="border")) == (
        {},
        [f"no {FILE}: no processor of transformers pads images with the mean"],
    )
