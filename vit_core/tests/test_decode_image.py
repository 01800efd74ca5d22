"""Decoding: the pixels of every mode of every kind of file, and one line that names the file where it is broken."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from vit_core.errors import InputError
from vit_core.preprocess import decode_image
from vit_core.tests.images import decoded, encoded, pixels_of

# Decoding: every mode, with the pixels it must give.


def test_rgb_and_grayscale():
    pixels = np.uint8([[[255, 0, 0], [1, 2, 3]]])
    assert decoded(Image.fromarray(pixels), "PNG") == pixels.tolist()
    assert decoded(Image.fromarray(pixels), "PNG", channels=1) == [[76, 2]]  # 0.299 R + 0.587 G + 0.114 B
    gray = Image.fromarray(np.uint8([[7, 200]]))
    assert decoded(gray, "PNG") == [[[7, 7, 7], [200, 200, 200]]]
    assert decoded(gray, "PNG", channels=1) == [[7, 200]]


def test_alpha_is_dropped_not_composited():
    assert decoded(Image.fromarray(np.uint8([[[10, 20, 30, 0], [40, 50, 60, 128]]])), "PNG") == [
        [[10, 20, 30], [40, 50, 60]]
    ]
    assert decoded(Image.fromarray(np.uint8([[[9, 0], [80, 128]]])), "PNG") == [[[9, 9, 9], [80, 80, 80]]]


@pytest.mark.parametrize("options", [{}, {"transparency": 0}, {"transparency": b"\x00\x80"}])
@pytest.mark.filterwarnings("error")
def test_palette(options):
    image = Image.new("P", (2, 1))
    image.putpalette([200, 0, 0, 0, 150, 0])
    image.putpixel((1, 0), 1)
    assert decoded(image, "PNG", **options) == [[[200, 0, 0], [0, 150, 0]]]


def test_one_bit():
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    assert decoded(image, "PNG") == [[[0, 0, 0], [255, 255, 255]]]
    assert decoded(image, "PNG", channels=1) == [[0, 255]]


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_cmyk(kind):
    """Cyan, then half black. Pillow writes JPEG's CMYK inverted under Adobe's marker, and undoes it when reading."""
    for ink, expected in (((255, 0, 0, 0), [0, 255, 255]), ((0, 0, 0, 128), [127, 127, 127])):
        data = encoded(Image.new("CMYK", (16, 16), ink), kind)
        assert Image.open(io.BytesIO(data)).mode == "CMYK"
        color = np.asarray(decode_image(data)).reshape(-1, 3).astype(int)
        assert np.abs(color - expected).max() <= 1
        assert (kind == "JPEG") == (b"Adobe" in data)


LEVELS = [0, 128, 129, 257 * 100, 257 * 100 + 129, 65535]
LEVELS_IN_8_BITS = [0, 0, 1, 100, 101, 255]  # level / 257, to the nearest


def sixteen_bit_files() -> dict[str, bytes]:
    big = np.array([LEVELS], ">u2")
    small = Image.fromarray(big.astype(np.uint16))
    return {
        "PNG": encoded(small, "PNG"),
        "TIFF": encoded(small, "TIFF"),
        "big-endian TIFF": encoded(Image.frombytes("I;16B", big.shape[::-1], big.tobytes()), "TIFF"),
        "32-bit TIFF": encoded(Image.fromarray(big.astype(np.int32)), "TIFF"),
        "PGM": b"P5\n%d 1\n65535\n" % len(LEVELS) + big.tobytes(),
    }


@pytest.mark.parametrize("kind", sixteen_bit_files())
def test_sixteen_bits_are_scaled_not_clipped(kind):
    data = sixteen_bit_files()[kind]
    assert Image.open(io.BytesIO(data)).mode.startswith("I")
    assert np.asarray(decode_image(data, 1)).tolist() == [LEVELS_IN_8_BITS]
    assert np.asarray(decode_image(data)).tolist() == [[[level] * 3 for level in LEVELS_IN_8_BITS]]


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.array([[0.0, 1.0]], np.float32), "floating-point"),
        (np.array([[0, 65536]], np.int32), r"range over \[0, 65536\]"),
        (np.array([[-1, 7]], np.int32), r"range over \[-1, 7\]"),
    ],
)
def test_pixels_of_no_known_range_are_refused(pixels, reason, tmp_path):
    path = tmp_path / "unknown.tiff"
    Image.fromarray(pixels).save(path)
    with pytest.raises(InputError, match=reason) as caught:
        decode_image(path)
    assert str(path) in str(caught.value)


def test_first_frame_of_many():
    frames = [Image.new("L", (4, 4), level) for level in (10, 90, 170)]
    data = encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    assert set(decode_image(data, 1).get_flattened_data()) == {10}


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(kind, orientation):
    """A scene in four colors, stored as a camera would that was held so: rotated back, it is the scene again."""
    corners = np.uint8([[[200, 0, 0], [0, 200, 0]], [[0, 0, 200], [200, 200, 200]]])
    scene = corners.repeat(16, axis=0).repeat(24, axis=1)
    stored = {
        1: scene,
        2: scene[:, ::-1],
        3: scene[::-1, ::-1],
        4: scene[::-1],
        5: scene.swapaxes(0, 1),
        6: np.rot90(scene, 1),
        7: scene[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(scene, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif)
    for rotate, expected in ((True, scene), (False, stored)):
        pixels = np.asarray(decode_image(data, exif_rotation=rotate)).astype(int)
        assert pixels.shape == expected.shape
        middle = np.abs(pixels - expected)[4:-4, 4:-4]
        assert np.median(middle) <= 3  # JPEG blurs the edges between the colors, and nothing else
        assert (kind == "JPEG") or (middle.max() == 0)


# Broken input: one line that names the file.


def refusal(path, **options) -> str:
    with pytest.raises(InputError) as caught:
        decode_image(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert "expected a whole JPEG, PNG or the like" in message
    return message


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_truncated_file(kind, kept, tmp_path, monkeypatch):
    whole = encoded(Image.fromarray(pixels_of(96, 128)), kind)
    path = tmp_path / f"cut.{kind.lower()}"
    path.write_bytes(whole)
    assert decode_image(path).size == (128, 96)
    path.write_bytes(whole[: int(kept * len(whole))])
    # As other libraries set it. Pillow would hand back half an image then, without a word.
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    refusal(path)


def test_truncated_bytes_are_named_so():
    half = encoded(Image.fromarray(pixels_of(96, 128)), "JPEG")[:2000]
    with pytest.raises(InputError, match=r"^cannot decode image bytes: image file is truncated"):
        decode_image(half)


def test_what_is_no_image_file(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "notes.png").write_text("not an image\n")
    assert "it is empty" in refusal(tmp_path / "empty.jpg")
    assert "its 13 bytes begin no image format that Pillow knows" in refusal(tmp_path / "notes.png")
    for path, why in ((tmp_path, "Is a directory"), (tmp_path / "missing.jpg", "No such file or directory")):
        with pytest.raises(InputError) as caught:
            decode_image(path)
        assert str(caught.value) == f"cannot read image '{path}': {why}"
    assert "null" in refusal_of_odd_name("nul\0byte")
    assert "No such file" in refusal_of_odd_name("two\nlines.png")


def refusal_of_odd_name(name: str) -> str:
    with pytest.raises(InputError) as caught:
        decode_image(name)
    assert "\n" not in str(caught.value)
    assert repr(name) in str(caught.value)
    return str(caught.value)


def test_decompression_bomb(tmp_path):
    """A PNG header that claims 30000 x 30000 pixels."""
    path = tmp_path / "bomb.png"
    data = bytearray(encoded(Image.new("L", (1, 1)), "PNG"))
    struct.pack_into(">II", data, 16, 30_000, 30_000)
    struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    path.write_bytes(data)
    assert "900000000 pixels" in refusal(path)


def test_decoding_to_two_channels_is_refused():
    with pytest.raises(InputError, match="cannot decode to 2 channels"):
        decode_image(b"", channels=2)
