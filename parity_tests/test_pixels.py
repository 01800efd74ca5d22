"""Preprocessing of a JPEG: equal bit for bit for both twins, and to torchvision's Resize + CenterCrop on Pillow."""

from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from vit_core import ViTConfig
from vit_core.preprocess import Preprocessing, load_image, resize_image
from vit_train.config import TrainConfig
from vit_train.engines.jax.engine import JaxEngine
from vit_train.engines.torch.engine import TorchEngine

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
MODEL = ViTConfig(image_size=32, patch_size=16, width=8, depth=1, heads=2, mlp_dim=8, num_classes=2)


@pytest.fixture
def jpeg(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows, columns = np.indices((75, 118))
    noise = rng.integers(-40, 40, (75, 118, 3))
    waves = np.stack([rows * 3, columns * 2, rows + columns], axis=-1) + noise
    Image.fromarray(waves.clip(0, 255).astype(np.uint8)).save(tmp_path / "image.jpg", quality=90)
    return tmp_path / "image.jpg"


@pytest.mark.parametrize("statistics", [{}, IMAGENET])
def test_one_file_one_array(jpeg: Path, statistics: dict[str, tuple[float, ...]]) -> None:
    preprocessing = Preprocessing(image_size=32, crop_fraction=0.9, **statistics)
    expected_HWC = load_image(jpeg, preprocessing)

    image = Image.open(jpeg).convert("RGB")
    cropped = v2.CenterCrop(32)(v2.Resize(int(32 / 0.9), v2.InterpolationMode.BICUBIC)(image))
    pixels_BHWC = np.asarray(cropped)[None]
    np.testing.assert_array_equal(resize_image(image, preprocessing), pixels_BHWC[0])

    # The engines normalize on the device, from uint8; float32 first, whatever the model's type.
    with jax.enable_x64(False):
        run = TrainConfig(model=MODEL, preprocessing=preprocessing, steps=1, batch_size=1)
        in_jax = np.asarray(jax.jit(JaxEngine(run).step.forward.normalize)(pixels_BHWC))
        in_torch = TorchEngine(run).network.normalize(torch.tensor(pixels_BHWC)).permute(0, 2, 3, 1).cpu().numpy()
    np.testing.assert_array_equal(in_jax[0], expected_HWC)
    np.testing.assert_array_equal(in_torch[0], expected_HWC)
    assert in_jax.dtype == in_torch.dtype == expected_HWC.dtype == np.float32


def test_every_level_of_every_channel_in_float64_too() -> None:
    preprocessing = Preprocessing(image_size=16, **IMAGENET)
    levels_BHWC = np.repeat(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1), 3, axis=-1)
    model = MODEL.replace(image_size=16)
    run = TrainConfig(model=model, preprocessing=preprocessing, steps=1, batch_size=1, dtype="float64")
    in_jax = np.asarray(jax.jit(JaxEngine(run).step.forward.normalize)(levels_BHWC))
    in_torch = TorchEngine(run).network.normalize(torch.tensor(levels_BHWC))
    assert in_torch.dtype == torch.float64
    np.testing.assert_array_equal(in_jax, in_torch.permute(0, 2, 3, 1).cpu().numpy())
    np.testing.assert_allclose(
        in_jax[0].reshape(256, 3),
        (np.arange(256)[:, None] / 255 - IMAGENET["mean"]) / IMAGENET["std"],
        rtol=0,
        atol=(2.2 + 2.7) * 2.0**-24,
    )  # float32 constants: the offset, which is up to 2.2 standard deviations, and the factor of values up to 2.7
