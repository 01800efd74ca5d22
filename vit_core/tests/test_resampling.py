"""Resampling and mirroring have Pillow's bits, by the compiled loops and without them."""

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vit_core import compiled_resampling, resampling
from vit_core.pixels import Pixels

SIZES = [1, 2, 3, 7, 16, 31, 32, 63, 64, 65, 97, 150, 224, 375]
ODD_SHAPES = [
    (404, 61, 32, 180),
    (61, 404, 180, 32),
    (1, 300, 40, 3),
    (300, 1, 3, 40),
    (64, 64, 64, 20),
    (64, 64, 20, 64),
]
"""(height, width, new height, new width): far smaller on one side, where the order of the passes changes; one side the
same."""


@pytest.fixture(params=["compiled", "pillow"])
def loops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resampling._compiled_like_pillow() is compiled_resampling
    if request.param == "pillow":
        monkeypatch.setattr(resampling, "_compiled_like_pillow", lambda: None)


def by_pillow(pixels_HWC: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    image = Image.fromarray(pixels_HWC[..., 0] if pixels_HWC.shape[-1] == 1 else pixels_HWC)
    return np.asarray(image.resize((width, height), Image.Resampling[interpolation.upper()])).reshape(height, width, -1)


def noise(rng: np.random.Generator, height: int, width: int, channels: int) -> np.ndarray:
    """All levels, or only the extremes, whose weighted sums go furthest beyond 8 bits."""
    levels = rng.integers(0, 256, (height, width, channels)).astype(np.uint8)
    return levels if rng.random() < 0.5 else np.where(levels > 127, 255, 0).astype(np.uint8)


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("channels", [1, 3])
def test_resize_equals_pillows(interpolation: str, channels: int) -> None:
    rng = np.random.default_rng(channels)
    shapes = [*ODD_SHAPES, *map(tuple, rng.choice(SIZES, (60, 4)).tolist())]
    for height, width, new_height, new_width in shapes:
        pixels_HWC = noise(rng, height, width, channels)
        found = resampling.resize(pixels_HWC, new_height, new_width, interpolation)
        np.testing.assert_array_equal(found, by_pillow(pixels_HWC, new_height, new_width, interpolation))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("new_size", [32, 224])
def test_every_size_of_a_crop(interpolation: str, new_size: int) -> None:
    """The weights of every side from 1 to 500; the image is as narrow as is quick."""
    rng = np.random.default_rng(0)
    for size in range(1, 501):
        pixels_HWC = noise(rng, size, 2, 1)
        found = resampling.resize(pixels_HWC, new_size, 2, interpolation)
        np.testing.assert_array_equal(found, by_pillow(pixels_HWC, new_size, 2, interpolation), err_msg=str(size))


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("channels", [1, 3])
def test_crops_of_an_image_are_resized_and_mirrored_as_pillows(channels: int) -> None:
    """A crop is a view with gaps between its rows, and Pillow's pixels are read-only."""
    pixels_HWC = noise(np.random.default_rng(0), 61, 53, channels)
    image = Image.fromarray(pixels_HWC[..., 0] if channels == 1 else pixels_HWC)
    for box in ((3, 5, 40, 60), (0, 0, 53, 61), (-2, -3, 55, 70)):  # the last: black outside
        ours, theirs = Pixels.of(image).crop(box), image.crop(box)
        assert (ours.width, ours.height) == theirs.size
        ours = ours.resize((24, 20), Image.Resampling.BICUBIC).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        theirs = theirs.resize((24, 20), Image.Resampling.BICUBIC).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        np.testing.assert_array_equal(ours.pixels_HWC, np.asarray(theirs).reshape(20, 24, channels))


def test_loops_that_differ_from_pillows_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def off_by_one(*arguments: Any) -> None:
        compiled_resampling.resample(*arguments)
        arguments[-1][-1, -1, -1] ^= 1

    find = resampling._compiled_like_pillow.__wrapped__
    monkeypatch.setattr("vit_core.compiled_resampling", SimpleNamespace(resample=off_by_one))
    assert find() is None


def test_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("vit_core.compiled_resampling")
    monkeypatch.delitem(sys.modules, "vit_core.compiled_resampling")
    monkeypatch.setitem(sys.modules, "numba", None)
    assert resampling._compiled_like_pillow.__wrapped__() is None
