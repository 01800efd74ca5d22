"""JPEG files have the pixels that Pillow decodes, and where the quick decoder does not, it leaves them to Pillow."""

import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vit_core import jpeg
from vit_core.errors import InputError
from vit_core.jpeg import decode_jpeg
from vit_core.preprocess import Preprocessing, decode, decode_image, pixels_of
from vit_core.tests.images import encoded
from vit_core.tests.images import pixels_of as noise

SIZES = [(1, 1), (7, 5), (8, 8), (16, 17), (33, 15), (97, 131), (375, 500)]
RGB = Preprocessing(image_size=8)


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize(
    "options", [{"quality": 30}, {"quality": 95}, {"quality": 85, "restart_marker_rows": 1}], ids=str
)
def test_colors(subsampling: str, progressive: bool, options: dict[str, int]) -> None:
    for height, width in SIZES:
        image = Image.fromarray(noise(height, width))
        content = encoded(image, "JPEG", subsampling=subsampling, progressive=progressive, **options)
        expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        found = decode_jpeg(content)
        assert found is not None
        np.testing.assert_array_equal(found, expected)


def test_grayscale() -> None:
    content = encoded(Image.fromarray(noise(37, 41)[..., 0]), "JPEG")
    np.testing.assert_array_equal(decode_jpeg(content), np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))


def test_extras_around_the_image() -> None:
    """EXIF data, a comment, an ICC profile, and bytes after the end change nothing."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(noise(37, 41))
    plain = encoded(image, "JPEG")
    content = encoded(image, "JPEG", exif=exif, comment=b"words", icc_profile=b"profile") + b"\xff\xd8\xffand more"
    np.testing.assert_array_equal(decode_jpeg(content), decode_jpeg(plain))
    np.testing.assert_array_equal(decode_jpeg(content), np.asarray(decode_image(content)))
    turned = decode(content, RGB.replace(exif_rotation=True))
    np.testing.assert_array_equal(pixels_of(turned), np.asarray(decode_image(content, exif_rotation=True)))


@pytest.mark.parametrize("mode", ["CMYK", "RGB, kept"])
def test_other_colors_are_left_to_pillow(mode: str) -> None:
    image = Image.fromarray(noise(20, 24))
    content = encoded(image.convert("CMYK"), "JPEG") if mode == "CMYK" else encoded(image, "JPEG", keep_rgb=True)
    assert decode_jpeg(content) is None
    np.testing.assert_array_equal(
        pixels_of(decode(content, RGB)), np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    )


def test_rows_of_half_the_colors_are_left_to_pillow() -> None:
    """4:4:0: what a 4:2:2 file becomes when it is turned without decoding; here by exchanging the factors."""
    content = bytearray(encoded(Image.fromarray(noise(32, 32)), "JPEG", subsampling="4:2:2"))
    factors = content.index(b"\xff\xc0") + 11
    assert content[factors] == 0x21
    content[factors] = 0x12
    assert decode_jpeg(bytes(content)) is None


@pytest.mark.parametrize("channels", [1, 3])
def test_damaged_files_have_the_answer_of_pillow(channels: int, tmp_path: Path) -> None:
    """The same pixels, or the same words, whatever is cut off or changed."""
    whole, rng = encoded(Image.fromarray(noise(64, 80)), "JPEG"), np.random.default_rng(0)
    broken = [whole[:length] for length in (0, 2, 3, 20, 700, len(whole) - 2, len(whole) - 1)]
    for position in rng.integers(2, len(whole), 100).tolist():
        changed = bytearray(whole)
        changed[position] ^= int(rng.integers(1, 256))
        broken.append(bytes(changed))
    path = tmp_path / "broken.jpg"
    preprocessing = Preprocessing(image_size=8, channels=channels)
    for content in broken:
        path.write_bytes(content)
        ours = answer(lambda: pixels_of(decode(path, preprocessing)))
        assert ours == answer(lambda: np.asarray(decode_image(path, channels)))


def answer(call: Callable[[], np.ndarray]) -> bytes | str:
    try:
        return call().tobytes()
    except InputError as error:
        return str(error)


def test_images_beyond_pillows_limit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(Image.fromarray(noise(64, 80)), "JPEG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 80 // 2 - 1)
    assert decode_jpeg(content) is None
    with pytest.raises(InputError, match="5120 pixels"):
        decode(content, RGB)


def test_without_simplejpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    assert jpeg._simplejpeg_like_pillow.__wrapped__() is None


def test_another_libjpeg_than_pillows_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import simplejpeg

    true = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda content, colors: true(content, colors, fastupsample=True))
    assert jpeg._simplejpeg_like_pillow.__wrapped__() is None
