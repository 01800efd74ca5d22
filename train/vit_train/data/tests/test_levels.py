"""Every change of levels equals Pillow's, bit for bit, on noise, on few levels, and on images of one or two pixels."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from vit_core.pixels import Pixels
from vit_train.data import levels
from vit_train.data.tests.fixed_draws import picture


def images(channels: int) -> Iterator[Pixels]:
    """Smooth pictures; noise of any level, of levels so few or so close that tables degenerate, and of one level; of
    so few pixels that a histogram has no step, and more pixels than 255 for each level."""
    for seed in range(20):
        yield Pixels.of(picture(seed, channels))
    rng = np.random.default_rng(0)
    for height, width in ((1, 1), (1, 2), (15, 17), (16, 16), (32, 32), (300, 310)):
        for lowest, highest in ((0, 255), (0, 1), (254, 255), (7, 7), (0, 0), (255, 255), (100, 104), (127, 128)):
            yield Pixels(rng.integers(lowest, highest, (height, width, channels), np.uint8, endpoint=True))
    skewed_HWC = np.full((32, 32, channels), 9, np.uint8)
    skewed_HWC[0, 1:] = np.arange(31)[:, None]  # one level has nearly all pixels
    yield Pixels(skewed_HWC)
    yield Pixels(skewed_HWC[::-1, ::-1])  # not contiguous


FACTORS = (0.0, 0.1, 0.3, 0.95, 1.0, 1.3, 1.9, 2.8, -0.4)
Change = Callable[..., Pixels]
Pillows = Callable[..., Image.Image]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("ours", "pillows", "strengths"),
    [
        (levels.stretched, ImageOps.autocontrast, ()),
        (levels.equalized, ImageOps.equalize, ()),
        (levels.inverted, ImageOps.invert, ()),
        (levels.posterized, ImageOps.posterize, range(1, 9)),
        (levels.solarized, ImageOps.solarize, (0, 1, 128, 255, 256, 384)),
        (levels.brightened, lambda image, factor: ImageEnhance.Brightness(image).enhance(factor), FACTORS),
        (levels.contrasted, lambda image, factor: ImageEnhance.Contrast(image).enhance(factor), FACTORS),
    ],
    ids=lambda given: getattr(given, "__name__", ""),
)
def test_it_equals_pillows(ours: Change, pillows: Pillows, strengths: tuple[float, ...], channels: int) -> None:
    for image in images(channels):
        kept_HWC = image.pixels_HWC.copy()
        for given in [(strength,) for strength in strengths] or [()]:
            expected = Pixels.of(pillows(image.image(), *given)).pixels_HWC
            np.testing.assert_array_equal(ours(image, *given).pixels_HWC, expected, err_msg=str(given))
        np.testing.assert_array_equal(image.pixels_HWC, kept_HWC, err_msg="the image itself was changed")


@pytest.mark.parametrize("bits", [0, -1])
def test_with_no_bits_left_all_is_black(bits: int) -> None:
    assert not levels.posterized(Pixels.of(picture(0)), bits).pixels_HWC.any()


def test_the_dark_half_grows() -> None:
    """The formula of timm's solarize_add."""
    ramp = Pixels(np.arange(256, dtype=np.uint8).reshape(16, 16, 1))
    for added in (0, 60, 128, 165):
        expected = [min(255, level + added) if level < 128 else level for level in range(256)]
        assert levels.brightened_below_half(ramp, added).pixels_HWC.ravel().tolist() == expected
