"""timm's evaluation transforms and torchvision's presets give our pixels, at image sizes of every remainder."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.data
import torch
from torchvision import models

from parity_tests.pixel_sweep import IMAGE_SIZES, levels, ours, picture
from vit_core import ViTConfig
from vit_core.checkpoints.formats.timm import config_json
from vit_core.preprocess import Preprocessing, resize_image

LEVEL = 1e-4
"""Bound of normalized values, in levels of 255. A value of at most 2.7 has four roundings of 2**-24 on each side, times
255 * 0.28: 9e-5."""
CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}


def preprocessing_of(pretrained: dict[str, Any], size: tuple[int, int], channels: int = 3) -> Preprocessing:
    """The preprocessing that we read from a hub folder's pretrained_cfg."""
    model = ViTConfig(
        image_size=size, patch_size=1, channels=channels, width=8, depth=1, heads=2, mlp_dim=8, num_classes=2
    )
    found, notes = config_json.checkpoint_config(model, {"pretrained_cfg": pretrained}, Path("folder"))
    assert found.preprocessing is not None
    assert notes == ()
    return found.preprocessing


def assert_same(theirs: Any, preprocessing: Preprocessing, sizes: list[tuple[int, int]], channels: int = 3) -> None:
    """Equal levels, and within LEVEL after normalization."""
    for height, width in sizes:
        image = picture(height, width, channels)
        pixels_HWC, normalized_HWC = ours(image, preprocessing)
        found_HWC = levels(theirs(image).numpy().transpose(1, 2, 0), preprocessing)
        np.testing.assert_array_equal(np.round(found_HWC), pixels_HWC, err_msg=f"{height} x {width}")
        assert np.abs(found_HWC - levels(normalized_HWC, preprocessing)).max() <= LEVEL


@pytest.mark.slow
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(16, 16), (17, 17), (12, 20), (21, 15)], ids=lambda size: "x".join(map(str, size)))
@pytest.mark.parametrize("crop_pct", [1.0, 0.95, 0.9, 0.84, 0.7])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_timms_modes(crop_mode: str, crop_pct: float, size: tuple[int, int], interpolation: str) -> None:
    pretrained = {"crop_mode": crop_mode, "crop_pct": crop_pct, "interpolation": interpolation, **CLIP}
    theirs = timm.data.create_transform((3, *size), is_training=False, **pretrained)
    assert_same(theirs, preprocessing_of(pretrained, size), IMAGE_SIZES)


@pytest.mark.parametrize("crop_mode", ["center", "border"])
def test_timms_modes_of_one_channel(crop_mode: str) -> None:
    pretrained = {"crop_mode": crop_mode, "crop_pct": 0.8, "interpolation": "bicubic", "mean": (0.3,), "std": (0.6,)}
    theirs = timm.data.create_transform((1, 16, 16), is_training=False, **pretrained)
    assert_same(theirs, preprocessing_of(pretrained, (16, 16), 1), [(40, 33), (23, 57), (9, 13)], 1)


def test_a_border_is_the_mean() -> None:
    """4 x 8 white pixels within 8 x 8: two rows of the mean above and below; the crop then cuts one row of each."""
    mean = (0.1, 0.5, 0.9)
    white = np.full((4, 8, 3), 255, np.uint8)
    image = picture(4, 8).copy()
    image.paste((255, 255, 255), (0, 0, 8, 4))
    found_HWC = resize_image(image, Preprocessing(image_size=8, resize="border", mean=mean))
    np.testing.assert_array_equal(found_HWC[2:6], white)
    assert {tuple(pixel) for row in (0, 1, 6, 7) for pixel in found_HWC[row].tolist()} == {(26, 128, 230)}


def test_a_sliver_keeps_one_pixel_in_borders() -> None:
    """100 to 1, within 16 x 16: timm asks for a height of no pixels, which Pillow refuses."""
    found_HWC = resize_image(picture(1, 100), Preprocessing(image_size=16, resize="border"))
    assert found_HWC.shape == (16, 16, 3)
    assert (found_HWC[[0, 6, 8, 15]] == 128).all()
    assert (found_HWC[7] != 128).any()


PRESETS = [
    weights
    for name in ("ViT_B_16", "ViT_B_32", "ViT_L_16", "ViT_L_32", "ViT_H_14")
    for weights in getattr(models, f"{name}_Weights")
]


@pytest.mark.parametrize("weights", PRESETS, ids=str)
def test_torchvisions_presets(weights: Any) -> None:
    """Those of every published ViT."""
    theirs = weights.transforms()
    (crop,), (whole,) = theirs.crop_size, theirs.resize_size
    preprocessing = Preprocessing(
        image_size=crop,
        mean=theirs.mean,
        std=theirs.std,
        interpolation=theirs.interpolation.value,
        crop_fraction=crop / whole,
    )
    assert_same(theirs, preprocessing, [(375, 500), (301, 227), (whole, whole + 3), (whole + 1, whole), (100, 133)])
    assert theirs(picture(40, 50)).dtype == torch.float32
