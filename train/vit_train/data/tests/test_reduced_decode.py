"""JPEG files that are decoded smaller than they are: the pixels of Pillow's draft mode, and the crop of the whole
image."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from vit_core import ViTConfig
from vit_core.errors import InputError
from vit_core.jpeg import decode_jpeg
from vit_core.preprocess import Preprocessing, decode
from vit_train.config import Augmentation, TrainConfig
from vit_train.data.augmentation import DRAWS, smallest_decoded
from vit_train.data.batches import Batches
from vit_train.data.sources import Split

PREPROCESSING = Preprocessing(image_size=32)
AUGMENTATION = Augmentation(crop_area=(0.2, 1.0), flip=0.5, reduced_decode=True)
HEIGHT, WIDTH = 480, 640


def photo(seed: int) -> bytes:
    """A JPEG file of smooth colors, of which a smaller image keeps everything."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(file, "JPEG", quality=95)
    return file.getvalue()


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_the_pixels_are_those_of_pillows_draft(scale: int) -> None:
    content = photo(0)
    image = Image.open(io.BytesIO(content))
    image.draft("RGB", (WIDTH // scale, HEIGHT // scale))
    found = decode_jpeg(content, lambda height, width: (height // scale, width // scale))
    assert found is not None
    np.testing.assert_array_equal(found, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("seed", range(20))
def test_the_reduced_image_is_just_large_enough_for_its_crop(seed: int) -> None:
    """The crop is that of torchvision's formula for the first two draws, where it fits into the image."""
    draws = np.random.default_rng(seed).random(DRAWS).tolist()
    area, ratio = HEIGHT * WIDTH * (0.2 + 0.8 * draws[0]), (3 / 4) ** (1 - 2 * draws[1])
    height, width = round((area / ratio) ** 0.5), round((area * ratio) ** 0.5)
    if height > HEIGHT or width > WIDTH:  # then other draws count
        assert smallest_decoded(HEIGHT, WIDTH, PREPROCESSING, AUGMENTATION, draws)[0] < HEIGHT
        return
    factor = min(height, width) / 32
    expected = math.ceil(HEIGHT / factor), math.ceil(WIDTH / factor)
    assert smallest_decoded(HEIGHT, WIDTH, PREPROCESSING, AUGMENTATION, draws) == expected
    assert smallest_decoded(32, 32, PREPROCESSING, AUGMENTATION, draws) == (32, 32)  # never enlarged


def config(reduced: bool) -> TrainConfig:
    model = ViTConfig(image_size=32, patch_size=8, width=16, depth=1, heads=2, mlp_dim=16, num_classes=2)
    augmentation = AUGMENTATION.replace(reduced_decode=reduced)
    return TrainConfig(model=model, preprocessing=PREPROCESSING, augmentation=augmentation, steps=20, batch_size=4)


def test_a_batch_shows_the_same_crops() -> None:
    """The mean difference is that of the two ways to make an image smaller, not of another place or size of the crop:
    against the batch of the next step it is more than ten times as large."""
    split = Split([{"image": photo(i), "label": i % 2} for i in range(4)], ("a", "b"), "photos")
    full, reduced = (Batches(split, config(reduced=one)) for one in (False, True))
    for step in range(5):
        a, b = full[step].images_BHWC.astype(int), reduced[step].images_BHWC.astype(int)
        assert 0 < np.abs(a - b).mean() < np.abs(full[step + 1].images_BHWC - b).mean() / 10
        np.testing.assert_array_equal(b, reduced[step].images_BHWC)  # whatever was made in between


def test_a_cached_image_of_full_size_is_not_used() -> None:
    split = Split([{"image": photo(i), "label": i % 2} for i in range(4)], ("a", "b"), "photos")
    batches = Batches(split, config(reduced=True))
    first = batches[0].images_BHWC
    assert batches.decoded.get(0) is None
    np.testing.assert_array_equal(first, batches[0].images_BHWC)


def test_other_files_are_decoded_in_full() -> None:
    file = io.BytesIO()
    Image.open(io.BytesIO(photo(0))).save(file, "PNG")
    image = decode(file.getvalue(), PREPROCESSING, lambda height, width: (10, 10))
    assert (image.height, image.width) == (HEIGHT, WIDTH)


def test_it_needs_random_crops() -> None:
    with pytest.raises(InputError, match="reduced_decode: is for random crops; set crop_area"):
        Augmentation.parse({"reduced_decode": True}, "--augmentation")


def test_it_is_for_ordinary_images_as_they_are_stored() -> None:
    with pytest.raises(InputError, match="reduced_decode: is for RGB images of 8 bits without exif_rotation"):
        config(reduced=True).replace(preprocessing=PREPROCESSING.replace(exif_rotation=True))
