"""One file, one array: equal to torchvision's and timm's transforms, and the same from NumPy, PyTorch and JAX."""

import io
import math
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from vit_core.errors import InputError
from vit_core.preprocess import (
    Preprocessing,
    decode_image,
    load_image,
    normalise,
    offset_and_scale,
    resize_image,
)

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
SHAPES = [  # (height, width)
    (64, 64),
    (97, 64),
    (64, 97),
    (31, 200),
    (200, 31),
    (333, 251),
    (251, 334),
    (20, 17),
    (17, 20),
    (5, 400),
    (400, 5),
    (1, 1),
    (1, 60),
    (60, 1),
    (63, 65),
    (65, 63),
    (224, 225),
    (128, 256),
]


def pixels_of(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Noise over a gradient: edges and slopes at every place, so that a shift by a pixel shows."""
    slope = np.linspace(0, 128, height)[:, None, None] + np.linspace(0, 64, width)[None, :, None]
    noise = np.random.default_rng(height * 1000 + width).integers(0, 64, (height, width, channels))
    return (slope + noise).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(image: Image.Image, kind: str, channels: int = 3, **options: object) -> list:
    return np.asarray(decode_image(encoded(image, kind, **options), channels)).tolist()


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("jpegs")
    for height, width in SHAPES:
        Image.fromarray(pixels_of(height, width)).save(folder / f"{height}x{width}.jpg", quality=92)
    return {shape: folder / "{}x{}.jpg".format(*shape) for shape in SHAPES}


# Geometry: equal to the field's transforms, bit for bit.


@pytest.mark.parametrize("crop_fraction", [1.0, 0.95, 0.9, 0.875])
@pytest.mark.parametrize("size", [32, 37, 64])
def test_crop_is_torchvisions(jpegs, size, crop_fraction):
    transforms = pytest.importorskip("torchvision.transforms")
    theirs = transforms.Compose(
        [
            transforms.Resize(int(size / crop_fraction), transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(size),
        ]
    )
    preprocessing = Preprocessing(image_size=size, crop_fraction=crop_fraction)
    for shape, path in jpegs.items():
        ours = resize_image(decode_image(path), preprocessing)
        assert (ours.shape, ours.dtype) == ((size, size, 3), np.uint8)
        expected = np.asarray(theirs(Image.open(path).convert("RGB")))
        np.testing.assert_array_equal(ours, expected, err_msg=str(shape))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(("mode", "size"), [("crop", 48), ("crop", (32, 48)), ("crop", (51, 20)), ("squash", 48)])
@pytest.mark.parametrize("crop_fraction", [1.0, 0.9, 0.77])
def test_geometry_is_timms(jpegs, interpolation, mode, size, crop_fraction):
    data = pytest.importorskip("timm.data")
    preprocessing = Preprocessing(
        image_size=size, interpolation=interpolation, resize=mode, crop_fraction=crop_fraction
    )
    theirs = data.create_transform(
        (3, *preprocessing.image_size),
        is_training=False,
        use_prefetcher=True,  # stops at uint8, before normalisation
        crop_pct=crop_fraction,
        crop_mode={"crop": "center", "squash": "squash"}[mode],
        interpolation=interpolation,
    )
    for shape, path in jpegs.items():
        expected = np.asarray(theirs(Image.open(path).convert("RGB"))).transpose(1, 2, 0)
        np.testing.assert_array_equal(resize_image(decode_image(path), preprocessing), expected, err_msg=str(shape))


def test_crop_rounds_half_to_even():
    """Margins of 1, 3, 5 pixels, halved: 0.5 -> 0, 1.5 -> 2, 2.5 -> 2 (torchvision's, by Python's round)."""
    lefts = []
    for margin in (1, 3, 5):
        ramp = Image.fromarray(np.tile(np.arange(8 + margin, dtype=np.uint8), (8, 1)))
        lefts.append(int(resize_image(ramp, Preprocessing(image_size=8, channels=1))[0, 0, 0]))
    assert lefts == [0, 2, 2]


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


# Normalisation: the same bits from NumPy, PyTorch and JAX.


@pytest.mark.parametrize("constants", [{}, IMAGENET, CLIP, {"mean": (0.1, 0.2, 0.3), "std": (1.0, 0.3, 0.7)}])
def test_normalise_is_the_same_in_both_frameworks(constants):
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")
    preprocessing = Preprocessing(image_size=32, **constants)
    every_value = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None], (256, 3))
    pixels = np.random.default_rng(0).permuted(every_value, axis=0).reshape(4, 8, 8, 3)
    ours = normalise(pixels, preprocessing)
    assert (ours.shape, ours.dtype) == ((4, 8, 8, 3), np.float32)

    offset, scale = offset_and_scale(preprocessing)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    in_torch = (torch.tensor(pixels, device=device).float() - torch.tensor(offset, device=device)) * torch.tensor(
        scale, device=device
    )
    np.testing.assert_array_equal(in_torch.cpu().numpy().view(np.uint32), ours.view(np.uint32))

    def closed_over(x):
        return (x.astype(np.float32) - offset) * scale

    def as_arguments(x, offset, scale):
        return (x.astype(np.float32) - offset) * scale

    for in_jax in (jax.jit(closed_over)(pixels), jax.jit(as_arguments)(pixels, offset, scale)):
        np.testing.assert_array_equal(np.asarray(in_jax).view(np.uint32), ours.view(np.uint32))


def test_normalise_values():
    """Against the textbook formula in float64; black and white of the default are exactly -1 and 1."""
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=-1)
    ours = normalise(pixels, Preprocessing(image_size=16, **IMAGENET))
    expected = (pixels / 255 - np.array(IMAGENET["mean"])) / np.array(IMAGENET["std"])
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=2e-7)
    assert normalise(np.uint8([[[0], [255]]]), Preprocessing(image_size=1, channels=1)).tolist() == [[[-1.0], [1.0]]]


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
def test_normalise_refuses_other_arrays(pixels):
    with pytest.raises(InputError, match=r"expected uint8 \[\.\.\., 3\]"):
        normalise(pixels, Preprocessing(image_size=4))


def test_load_image_is_the_composition(jpegs):
    preprocessing = Preprocessing(image_size=30, crop_fraction=0.9, **CLIP)
    path = jpegs[97, 64]
    array = load_image(path, preprocessing)
    assert (array.shape, array.dtype) == ((30, 30, 3), np.float32)
    np.testing.assert_array_equal(array, normalise(resize_image(decode_image(path), preprocessing), preprocessing))
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
        colour = np.asarray(decode_image(data)).reshape(-1, 3).astype(int)
        assert np.abs(colour - expected).max() <= 1
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
    """A scene in four colours, stored as a camera would that was held so: rotated back, it is the scene again."""
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
        assert np.median(middle) <= 3  # JPEG blurs the edges between the colours, and nothing else
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
    # As other libraries set it. Pillow would hand back half a picture then, without a word.
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
    assert "': Is a directory; " in refusal(tmp_path)
    assert refusal(tmp_path / "missing.jpg") == (
        f"cannot decode image '{tmp_path / 'missing.jpg'}': No such file or directory; "
        "expected a whole JPEG, PNG or the like"
    )
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


# The record itself.


def test_defaults():
    record = Preprocessing(image_size=224)
    assert record.image_size == (224, 224)
    assert record.mean == record.std == (0.5, 0.5, 0.5)
    assert Preprocessing(image_size=(28, 14), channels=1).mean == (0.5,)
    assert (record.channels, record.interpolation, record.resize) == (3, "bicubic", "crop")
    assert (record.crop_fraction, record.exif_rotation) == (1.0, False)


def test_json_round_trip():
    record = Preprocessing(image_size=(28, 14), channels=1, mean=(0.1307,), std=(0.3081,), resize="squash")
    assert Preprocessing.model_validate_json(record.model_dump_json()) == record


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_size": 0},
        {"image_size": (8, 8, 8)},
        {"channels": 2},
        {"channels": 4},
        {"mean": (0.5,)},
        {"std": (0.5, 0.5)},
        {"std": (0.5, 0.5, 0.0)},
        {"std": (0.5, 0.5, -1.0)},
        {"mean": (0.5, 0.5, math.nan)},
        {"std": (0.5, 0.5, math.inf)},
        {"channels": 1, "mean": (0.5, 0.5, 0.5)},
        {"interpolation": "area"},
        {"resize": "pad"},
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
