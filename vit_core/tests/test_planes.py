"""Images of any number of channels: read as tifffile and NumPy write them, resampled as torch resamples in float64."""

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from vit_core import Checkpoint, CheckpointConfig, InputError, open_checkpoint, save_checkpoint, variant
from vit_core.parameters import initial_value, parameters
from vit_core.planes import MAX_VALUES, Planes, read_pixels
from vit_core.preprocess import Preprocessing, decode, load_image, resize_image


def noise(height: int, width: int, channels: int, dtype: type, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, (height, width, channels), dtype, endpoint=True)


def tiff(pixels: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def npy(array: np.ndarray, **options: bool) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
def test_pixels_are_those_that_were_written(channels: int, dtype: type) -> None:
    pixels = noise(7, 5, channels, dtype)
    planes = np.moveaxis(pixels, -1, 0)
    files = [
        tiff(pixels, photometric="minisblack", planarconfig="contig" if channels > 1 else None),
        tiff(pixels, photometric="minisblack", planarconfig="contig" if channels > 1 else None, compression="zlib"),
        tiff(planes, photometric="minisblack", planarconfig="separate" if channels > 1 else None, byteorder=">"),
        tiff(planes, photometric="minisblack", bigtiff=True),
        npy(pixels), npy(np.asfortranarray(pixels)), npy(pixels.astype(np.dtype(dtype).newbyteorder(">"))),
    ]  # fmt: skip
    for content in files:
        found = read_pixels(content, channels)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, pixels)


def test_what_pillow_reads_with_so_many_channels() -> None:
    pixels = noise(6, 6, 4, np.uint8)
    file, gray = io.BytesIO(), io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(file, "PNG")
    np.testing.assert_array_equal(read_pixels(file.getvalue(), 4), pixels)
    levels = noise(6, 6, 1, np.uint16)
    Image.fromarray(levels[..., 0]).save(gray, "PNG")
    sixteen = Preprocessing(image_size=6, channels=1, bit_depth=16)
    np.testing.assert_array_equal(resize_image(decode(gray.getvalue(), sixteen), sixteen), levels)


@pytest.mark.parametrize(("interpolation", "mode"), [("bicubic", "bicubic"), ("bilinear", "bilinear")])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("size", "target"), [((40, 56), (24, 24)), ((9, 7), (24, 32)), ((31, 33), (16, 16))])
def test_channels_are_resampled_as_in_float64(
    interpolation: str, mode: str, dtype: type, size: tuple[int, int], target: tuple[int, int]
) -> None:
    """By torch, whose antialiased filters are Pillow's. Half a level is the last rounding; Pillow keeps float32 between
    the two directions and after them (each half an ulp of the largest value, which filters add up to at most twice)."""
    bits = 8 * np.dtype(dtype).itemsize
    preprocessing = Preprocessing(
        image_size=target, channels=5, bit_depth=bits, resize="squash", interpolation=interpolation
    )
    pixels = noise(*size, 5, dtype)
    found = resize_image(decode(npy(pixels), preprocessing), preprocessing)
    assert found.dtype == dtype
    x_1CHW = torch.from_numpy(np.moveaxis(pixels.astype(np.float64), -1, 0))[None]
    resampled = torch.nn.functional.interpolate(x_1CHW, target, mode=mode, antialias=True, align_corners=False)
    expected = np.moveaxis(resampled[0].numpy(), 0, -1).clip(0, np.iinfo(dtype).max)
    bound = 0.5 + 4 * np.iinfo(dtype).max * 2.0**-24
    assert np.abs(found - expected).max() <= bound


@pytest.mark.parametrize("geometry", [{}, {"resize": "border", "crop_fraction": 0.8}, {"crop_fraction": 0.9}])
def test_the_geometry_is_that_of_ordinary_images(geometry: dict) -> None:
    """Each channel as a grayscale image of 8 bits, whose levels Pillow rounds twice; smooth, so that nothing is clipped
    in between."""
    y_H1, x_1W = np.mgrid[:30, :44]
    pixels = np.stack([20 + 4 * y_H1 + x_1W, 200 - x_1W * 3, 100 + y_H1, 30 + y_H1 * x_1W // 9], -1).astype(np.uint8)
    mean = (0.1, 0.5, 0.5, 0.9)
    four = Preprocessing(image_size=(16, 24), channels=4, mean=mean, **geometry)
    found = resize_image(decode(npy(pixels), four), four).astype(int)
    for c in range(4):
        one = Preprocessing(image_size=(16, 24), channels=1, mean=mean[c : c + 1], **geometry)
        alone = resize_image(Image.fromarray(pixels[..., c]), one)[..., 0].astype(int)
        assert np.abs(found[..., c] - alone).max() <= 1


def test_eight_and_sixteen_bits() -> None:
    eight, sixteen = (Preprocessing(image_size=4, channels=2, bit_depth=bits) for bits in (8, 16))
    pixels = noise(4, 4, 2, np.uint8)
    np.testing.assert_array_equal(resize_image(decode(npy(pixels), sixteen), sixteen), pixels.astype(np.uint16) * 257)
    wide = noise(4, 4, 2, np.uint16)
    nearest = np.rint(wide / 257).astype(np.uint8)
    np.testing.assert_array_equal(resize_image(decode(npy(wide), eight), eight), nearest)
    expected = (wide / 65535 - 0.5) / 0.5  # float64; float32 rounds the difference and the product: two half ulps of 1
    np.testing.assert_allclose(load_image(npy(wide), sixteen), expected, rtol=0, atol=2 * 2.0**-24 + 65535 * 2.0**-40)


def test_grayscale_becomes_three_channels() -> None:
    """As Pillow converts it with 8 bits, and as the same image with three channels in its file."""
    levels = noise(20, 12, 1, np.uint16)
    file = io.BytesIO()
    Image.fromarray(levels[..., 0]).save(file, "PNG")
    for bits in (8, 16):
        preprocessing = Preprocessing(image_size=9, bit_depth=bits)
        expected = resize_image(decode(npy(np.repeat(levels, 3, axis=-1)), preprocessing), preprocessing)
        assert len(np.unique(expected)) > 9
        for content in (file.getvalue(), npy(levels), npy(levels[..., 0])):
            np.testing.assert_array_equal(resize_image(decode(content, preprocessing), preprocessing), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_numpy_file_of_an_ordinary_image_is_that_image(channels: int) -> None:
    pixels = noise(20, 20, channels, np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(file, "PNG")
    preprocessing = Preprocessing(image_size=9, channels=channels)
    np.testing.assert_array_equal(load_image(npy(pixels), preprocessing), load_image(file.getvalue(), preprocessing))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(np.zeros((4, 4, 3), np.uint8)), r"its shape is \[4, 4, 3\]; expected \[height, width, 4\]"),
        (npy(np.zeros((4, 4, 4), np.float32)), "its pixels are float32; expected uint8 or uint16"),
        (b"\x93NUMPY\1\0", "cannot decode image bytes"),
        (tiff(np.zeros((2, 3, 4, 4), np.uint8), photometric="minisblack"), "expected one image of height, width"),
        (tiff(np.zeros((4, 4, 4), np.uint16))[:60], "cannot decode image bytes"),
        (b"", "cannot decode image bytes"),
    ],
)
def test_images_that_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        decode(content, Preprocessing(image_size=8, channels=4))
    assert "\n" not in str(caught.value)


def test_pickles_and_false_sizes_are_refused_before_they_are_read() -> None:
    four = Preprocessing(image_size=8, channels=4)
    content = npy(np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="its header says object"):
        decode(content, four)
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (9999999, 9999999, 4), }\n"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64)
    with pytest.raises(InputError, match=r"its header says uint8 \[9999999, 9999999, 4\], which its \d+ bytes cannot"):
        decode(content, four)
    assert MAX_VALUES < 9999999**2 * 4


def test_changes_are_made_to_every_channel_alike() -> None:
    pixels = noise(8, 6, 5, np.uint16)
    planes = Planes.of(pixels, 16)
    assert (planes.width, planes.height) == (6, 8)
    np.testing.assert_array_equal(planes.crop((1, 2, 5, 7)).pixels(), pixels[2:7, 1:5])
    np.testing.assert_array_equal(planes.transpose(Image.Transpose.FLIP_LEFT_RIGHT).pixels(), pixels[:, ::-1])


@pytest.mark.parametrize("format", ["timm", "transformers"])
def test_formats_without_sixteen_bits_say_so(format: str, tmp_path: Path) -> None:
    model = variant("mu/4", 8, 4)
    preprocessing = Preprocessing(image_size=8, bit_depth=16)
    arrays = {row.name: initial_value(row, 0).astype(np.float32) for row in parameters(model).values()}
    checkpoint = Checkpoint.of(CheckpointConfig(model=model, preprocessing=preprocessing), arrays)
    assert any("16" in note for note in save_checkpoint(tmp_path / "x", checkpoint, format=format))
    save_checkpoint(tmp_path / "own", checkpoint)
    assert open_checkpoint(tmp_path / "own").config.preprocessing == preprocessing
