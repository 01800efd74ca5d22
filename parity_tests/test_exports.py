"""The exports of one checkpoint by JAX and by PyTorch: they agree with each other, with the twins and with Pillow."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vit_jax
import vit_torch
from vit_core import Checkpoint, CheckpointConfig, ViTConfig, parity
from vit_core.deployment import Deployment
from vit_core.preprocess import Preprocessing, load_image
from vit_jax.deployed import open_jax_export, open_stablehlo, write_jax_export, write_stablehlo
from vit_torch.deployed import open_torch_export, write_torch_export

MODEL = ViTConfig(
    image_size=(16, 24),
    patch_size=8,
    width=16,
    depth=2,
    heads=2,
    mlp_dim=32,
    num_classes=5,
    position_resampling="bicubic",
)
PREPROCESSING = Preprocessing(image_size=(16, 24), crop_fraction=0.9, mean=(0.4, 0.5, 0.6))


def checkpoint_of(model: ViTConfig) -> Checkpoint:
    arrays = {name: array.astype(np.float32) for name, array in parity.randomized(model, 0).items()}
    return Checkpoint.of(CheckpointConfig(model=model, preprocessing=PREPROCESSING), arrays)


def assert_close(found_BC: np.ndarray, expected_BC: np.ndarray) -> None:
    assert found_BC.dtype == np.float32
    assert parity.difference(found_BC, expected_BC)[1] <= parity.FLOAT32_BOUND


@pytest.mark.slow
def test_both_frameworks_give_the_logits_of_image_files(tmp_path: Path) -> None:
    """One program of each framework, for files of several sizes; the expected pixels are Pillow's."""
    checkpoint, rng = checkpoint_of(MODEL), np.random.default_rng(0)
    programs = []
    for target, write, open_ in (
        ("torch-export", write_torch_export, open_torch_export),
        ("jax-export", write_jax_export, open_jax_export),
    ):
        deployment = Deployment.of(checkpoint, PREPROCESSING, target=target, input="image")
        write(tmp_path / target, checkpoint, deployment)
        programs.append(open_(tmp_path / target))
    twins = [(twin, twin.load(checkpoint)) for twin in (vit_torch, vit_jax)]
    for height, width in ((40, 30), (90, 21)):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        image.save(tmp_path / "image.png")
        x_BHWC = load_image(tmp_path / "image.png", PREPROCESSING)[None]
        expected = [twin.predict(model, x_BHWC) for twin, model in twins]
        found = [program(np.asarray(image)[None]) for program in programs]
        assert_close(found[0], found[1])
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other)


@pytest.mark.slow
def test_both_frameworks_at_any_size(tmp_path: Path) -> None:
    checkpoint, rng = checkpoint_of(MODEL), np.random.default_rng(0)
    made = [
        Deployment.of(checkpoint, PREPROCESSING, target=target, input="normalised", any_size=True)
        for target in ("torch-export", "jax-export")
    ]
    write_torch_export(tmp_path / "a.pt2", checkpoint, made[0])
    write_jax_export(tmp_path / "a.jaxexport", checkpoint, made[1])
    programs = open_torch_export(tmp_path / "a.pt2"), open_jax_export(tmp_path / "a.jaxexport")
    model = vit_torch.load(checkpoint)
    for batch, size in ((1, (16, 24)), (3, (40, 16))):
        pixels_BHWC = rng.integers(0, 256, (batch, *size, 3), np.uint8)
        x_BHWC = Deployment.of(checkpoint, PREPROCESSING, target="jax-export", input="normalised").input_of_pixels(
            pixels_BHWC
        )
        expected = vit_torch.predict(model, x_BHWC, interpolate=True)
        for program, deployment in zip(programs, made, strict=True):
            assert_close(program(np.ascontiguousarray(deployment.input_of_pixels(pixels_BHWC))), expected)


def test_stablehlo(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(MODEL.replace(pooling="map", class_token=False))
    deployment = Deployment.of(checkpoint, PREPROCESSING, target="stablehlo", input="pixels", batch=3)
    write_stablehlo(tmp_path / "a.mlirbc", checkpoint, deployment)
    pixels_BHWC = np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), np.uint8)
    normalized = deployment.replace(input="normalised").input_of_pixels(pixels_BHWC)
    expected = vit_torch.predict(vit_torch.load(checkpoint), normalized)
    assert_close(open_stablehlo(tmp_path / "a.mlirbc", deployment)(pixels_BHWC), expected)
