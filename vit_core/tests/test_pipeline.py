"""Images in batches, and what a pipeline makes of a twin's outputs; no twin is needed."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import special

from vit_core import Checkpoint, CheckpointConfig, InputError, ViTConfig, parity, streaming
from vit_core.pipeline import Pipeline, probabilities
from vit_core.preprocess import ImageSource, Preprocessing, load_image

SMALL = ViTConfig(image_size=8, patch_size=4, width=8, depth=1, heads=2, mlp_dim=8, num_classes=3)
PIXELS = Preprocessing(image_size=8, resize="squash")
LABELS = ("red", "green", "blue")


class Means:
    """Instead of a twin: the mean of each channel is the logit of a class."""

    hardware = "1 x counter"

    def __init__(self, devices: int = 1) -> None:
        self.devices = devices
        self.sizes: list[int] = []

    def start(self, pixels_BHWC: np.ndarray) -> Callable[[], np.ndarray]:
        self.sizes.append(len(pixels_BHWC))
        values_BC = pixels_BHWC.mean((1, 2), dtype=np.float64) / 64
        return lambda: values_BC


def checkpoint(**fields: object) -> Checkpoint:
    config = CheckpointConfig(**{"model": SMALL, "labels": LABELS, "preprocessing": PIXELS, **fields})
    return Checkpoint.of(config, parity.randomized(config.model, 0))


def pipeline(function: Means | None = None, weights: Checkpoint | None = None, **options: object) -> Pipeline:
    means = function or Means()
    return Pipeline(weights or checkpoint(), lambda _: means, **options)  # type: ignore[arg-type]


def plain(*levels: int) -> np.ndarray:
    """uint8 [10, 12, 3] of one color."""
    return np.full((10, 12, 3), levels, np.uint8)


@pytest.mark.parametrize("how", ["softmax", "sigmoid"])
def test_probabilities_are_scipys(how: str) -> None:
    """Both round the exponent, at most 40 here, which changes its exponential by 40 roundings, and 20 times more in the
    exponential, the sum and the quotient. Large logits do not overflow."""
    rng = np.random.default_rng(0)
    for logits_NC in (rng.normal(0, 5, (20, 7)), np.array([[1e4, -1e4, 0.0]])):
        expected_NC = special.softmax(logits_NC, axis=-1) if how == "softmax" else special.expit(logits_NC)
        np.testing.assert_allclose(probabilities(logits_NC, how), expected_NC, rtol=2 * 60 * 2.0**-53, atol=1e-300)


@pytest.mark.parametrize("how", ["softmax", "sigmoid"])
def test_the_most_probable_classes_come_first(how: str) -> None:
    weights = checkpoint(probabilities=how)
    found = pipeline(weights=weights)(plain(64, 192, 128))
    logits_C = np.array([1.0, 3.0, 2.0])
    expected_C = special.softmax(logits_C) if how == "softmax" else special.expit(logits_C)
    assert found.labels == ("green", "blue", "red")
    # As above, with exponents of order one.
    assert found.probabilities == pytest.approx(expected_C[[1, 2, 0]], rel=2 * 20 * 2.0**-53)
    assert (found.label, found.probability) == (found.labels[0], found.probabilities[0])
    assert str(pipeline(weights=weights, top_k=2)(plain(64, 192, 128))).startswith("green ")
    assert pipeline(weights=weights, top_k=2)(plain(64, 192, 128)).labels == ("green", "blue")


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("bit_depth", [8, 16])
def test_an_image_in_memory_is_the_image_of_its_file(channels: int, bit_depth: int, tmp_path: Path) -> None:
    made = Preprocessing(image_size=8, channels=channels, bit_depth=bit_depth)
    pixels_HWC = np.random.default_rng(0).integers(0, 256, (20, 31, channels), np.uint8)
    np.save(tmp_path / "pixels.npy", pixels_HWC)
    sources: list[ImageSource] = [tmp_path / "pixels.npy", pixels_HWC]
    if channels != 5:
        image = Image.fromarray(pixels_HWC.squeeze())
        image.save(tmp_path / "image.png")
        sources += [image, image.convert("RGBA")] if channels == 3 and bit_depth == 8 else [image]
        sources += [str(tmp_path / "image.png"), (tmp_path / "image.png").read_bytes()]
    first, *others = (load_image(source, made) for source in sources)
    for other in others:
        np.testing.assert_array_equal(first, other)


def test_pixels_of_other_channels_are_converted_as_in_a_file() -> None:
    gray_HW = np.random.default_rng(0).integers(0, 256, (20, 31), np.uint8)
    rgb = load_image(gray_HW, PIXELS)
    np.testing.assert_array_equal(rgb, load_image(np.stack([gray_HW] * 3, axis=-1), PIXELS))


def test_exif_rotation_and_transparency_leave_the_users_image_alone(tmp_path: Path) -> None:
    image = Image.new("P", (8, 4))
    image.info["transparency"] = 0
    image.getexif()[0x0112] = 6
    load_image(image, PIXELS.replace(exif_rotation=True))
    assert (image.size, image.mode, image.info["transparency"]) == ((8, 4), "P", 0)
    turned = Image.fromarray(np.arange(32, dtype=np.uint8).reshape(4, 8))
    turned.getexif()[0x0112] = 6
    made = PIXELS.replace(exif_rotation=True)
    turned.save(tmp_path / "turned.png", exif=turned.getexif())
    with Image.open(tmp_path / "turned.png") as opened:
        np.testing.assert_array_equal(load_image(opened, made), load_image(tmp_path / "turned.png", made))
    assert not np.array_equal(load_image(tmp_path / "turned.png", made), load_image(turned.copy(), PIXELS))


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (np.zeros((2, 8, 8, 3), np.uint8), r"its shape is \[2, 8, 8, 3\]; expected \[height, width, 3\]"),
        (np.zeros((3, 8, 8), np.uint8), r"its shape is \[3, 8, 8\]; expected \[height, width, 3\]"),
        (np.zeros((8, 8, 3)), "its pixels are float64; expected uint8 or uint16"),
        (Image.new("F", (8, 8)), "floating-point"),
        (3, "cannot use the image: it is of type int; expected a path, bytes, a PIL image or an array"),
        ("missing.png", "cannot read image 'missing.png': No such file"),
        (b"", "it is empty"),
    ],
)
def test_what_is_no_image(image: ImageSource, why: str) -> None:
    with pytest.raises(InputError, match=why):
        pipeline()([plain(0, 0, 0), image])


def test_a_batch_has_one_size_and_images_keep_their_order() -> None:
    levels = np.random.default_rng(0).integers(0, 256, (23, 3))
    images: list[ImageSource] = [plain(*level) for level in levels]
    images[7] = b"no image"
    means = Means(devices=3)
    found = list(pipeline(means, batch_size=4).stream(iter(images)))
    assert means.sizes == [6] * 4  # 4 is rounded up to a multiple of 3
    assert isinstance(found.pop(7), InputError)
    expected = [LABELS[level.argmax()] for level in np.delete(levels, 7, axis=0)]
    assert [each.label for each in found if not isinstance(each, InputError)] == expected


def test_few_images_are_a_small_batch() -> None:
    means = Means()
    classify = pipeline(means, batch_size=8)
    for count in (1, 2, 3, 5, 9):
        assert len(classify([plain(1, 2, 3)] * count)) == count
    assert classify([]) == []
    assert means.sizes == [1, 2, 4, 8, 8, 8]
    assert classify(plain(1, 2, 3)) == classify((plain(1, 2, 3),))[0]


def test_images_are_taken_as_they_are_needed_and_threads_end() -> None:
    taken = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal taken
        while True:
            taken += 1
            yield plain(0, 0, 9)

    before = threading.active_count()
    stream = pipeline(batch_size=4, threads=2).stream(endless())
    first = next(stream)
    assert not isinstance(first, InputError)
    assert first.label == "blue"
    assert taken <= 4 * (streaming.AHEAD + 3)
    stream.close()
    assert threading.active_count() == before


def test_what_a_checkpoint_lacks_is_said() -> None:
    with pytest.raises(InputError, match="has no head, so no classes to predict; fine-tune it first"):
        pipeline(weights=checkpoint(model=SMALL.replace(num_classes=0), labels=None))
    with pytest.raises(InputError, match="has no names for its 3 classes; give them in their order: labels="):
        pipeline(weights=checkpoint(labels=None))
    with pytest.raises(InputError, match="2 names of classes for its 3 outputs"):
        pipeline(labels=["a", "b"])
    assert pipeline(weights=checkpoint(labels=None), labels="abc")(plain(0, 9, 0)).label == "b"
    for name in ("top_k", "batch_size", "threads"):
        with pytest.raises(InputError, match=f"{name} 0: expected 1 or more"):
            pipeline(**{name: 0})
    with pytest.warns(UserWarning, match=r"does not record how its images were made; assumed mean=0.5,0.5,0.5"):
        pipeline(weights=checkpoint(preprocessing=None))
    assert pipeline(preprocessing={"mean": (0.0, 0.0, 0.0)}).preprocessing.mean == (0, 0, 0)
