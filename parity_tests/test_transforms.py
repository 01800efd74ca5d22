"""Resizing and cropping are torchvision's and timm's transforms on Pillow, and normalization has the same bits from
NumPy, PyTorch and JAX."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import timm.data
import torch
import transformers.image_utils
from datasets import Image as HubImage
from PIL import ExifTags, Image
from timm.data.transforms_factory import create_transform
from torchvision import datasets, transforms

from vit_core.preprocess import Preprocessing, decode_image, normalize, offset_and_scale, resize_image
from vit_core.tests.images import Jpegs, pixels_of, write_jpegs

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory: pytest.TempPathFactory) -> Jpegs:
    return write_jpegs(tmp_path_factory.mktemp("jpegs"))


@pytest.mark.parametrize("crop_fraction", [1.0, 0.95, 0.9, 0.875])
@pytest.mark.parametrize("size", [32, 37, 64])
def test_crop_is_torchvisions(jpegs: Jpegs, size: int, crop_fraction: float) -> None:
    theirs = transforms.Compose(
        [
            transforms.Resize(int(size / crop_fraction), transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(size),
        ]
    )
    preprocessing = Preprocessing(image_size=size, crop_fraction=crop_fraction)
    for shape, path in jpegs.items():
        ours = resize_image(decode_image(path), preprocessing)
        assert ours.shape == (size, size, 3)
        assert ours.dtype == np.uint8
        expected = np.asarray(theirs(Image.open(path).convert("RGB")))
        np.testing.assert_array_equal(ours, expected, err_msg=str(shape))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(
    ("mode", "size"),
    [("crop", 48), ("crop", (32, 48)), ("crop", (51, 20)), ("squash", 48), ("border", 48), ("border", (51, 48))],
)
@pytest.mark.parametrize("crop_fraction", [1.0, 0.9, 0.77])
def test_geometry_is_timms(jpegs: Jpegs, interpolation: Any, mode: Any, size: Any, crop_fraction: float) -> None:
    preprocessing = Preprocessing(
        image_size=size, interpolation=interpolation, resize=mode, crop_fraction=crop_fraction
    )
    theirs = create_transform(
        (3, *preprocessing.image_size),
        is_training=False,
        use_prefetcher=True,  # stops at uint8, before normalization
        crop_pct=crop_fraction,
        crop_mode={"crop": "center"}.get(mode, mode),
        mean=preprocessing.mean,
        interpolation=interpolation,
    )
    for shape, path in jpegs.items():
        expected = np.asarray(theirs(Image.open(path).convert("RGB"))).transpose(1, 2, 0)
        np.testing.assert_array_equal(resize_image(decode_image(path), preprocessing), expected, err_msg=str(shape))


def test_who_turns_images_by_their_exif_data(tmp_path: Path) -> None:
    """Training code reads the stored pixels; transformers' pipelines and Hugging Face datasets turn them."""
    upright = Image.fromarray(pixels_of(40, 24))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned by a quarter, clockwise
    path = tmp_path / "class" / "turned.png"
    path.parent.mkdir()
    upright.save(path, exif=exif)
    stored, turned = np.asarray(upright), np.rot90(np.asarray(upright), -1)
    np.testing.assert_array_equal(np.asarray(decode_image(path)), stored)
    np.testing.assert_array_equal(np.asarray(datasets.ImageFolder(tmp_path)[0][0]), stored)
    np.testing.assert_array_equal(np.asarray(timm.data.create_dataset("", str(tmp_path))[0][0]), stored)
    np.testing.assert_array_equal(np.asarray(decode_image(path, exif_rotation=True)), turned)
    np.testing.assert_array_equal(np.asarray(transformers.image_utils.load_image(str(path))), turned)
    np.testing.assert_array_equal(np.asarray(HubImage().decode_example({"path": str(path), "bytes": None})), turned)


@pytest.mark.parametrize("constants", [{}, IMAGENET, CLIP, {"mean": (0.1, 0.2, 0.3), "std": (1.0, 0.3, 0.7)}])
def test_normalize_is_the_same_in_both_frameworks(constants: Any) -> None:
    preprocessing = Preprocessing(image_size=32, **constants)
    every_value = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None], (256, 3))
    pixels = np.random.default_rng(0).permuted(every_value, axis=0).reshape(4, 8, 8, 3)
    ours = normalize(pixels, preprocessing)
    assert ours.shape == (4, 8, 8, 3)
    assert ours.dtype == np.float32

    offset, scale = offset_and_scale(preprocessing)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    in_torch = (torch.tensor(pixels, device=device).float() - torch.tensor(offset, device=device)) * torch.tensor(
        scale, device=device
    )
    np.testing.assert_array_equal(in_torch.cpu().numpy().view(np.uint32), ours.view(np.uint32))

    def closed_over(x: jax.Array) -> jax.Array:
        return (x.astype(np.float32) - offset) * scale

    def as_arguments(x: jax.Array, offset: jax.Array, scale: jax.Array) -> jax.Array:
        return (x.astype(np.float32) - offset) * scale

    for in_jax in (jax.jit(closed_over)(pixels), jax.jit(as_arguments)(pixels, offset, scale)):
        np.testing.assert_array_equal(np.asarray(in_jax).view(np.uint32), ours.view(np.uint32))
