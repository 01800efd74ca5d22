"""A model for images of any aspect (preprocessing.max_patches) in `vit export`, `vit show` and `vit probe`."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vit_jax
import vit_torch
from vit_cli.tests.printed import Vit
from vit_core import Checkpoint, CheckpointConfig, ViTConfig, open_checkpoint, parity, save_checkpoint
from vit_core.attention_maps import attention_distances
from vit_core.preprocess import Preprocessing, load_image

MODEL = ViTConfig(
    image_size=16, patch_size=4, width=16, depth=2, heads=2, mlp_dim=16, num_classes=2, class_token=False, pooling="map"
)
MADE = Preprocessing(image_size=16, max_patches=12, patch_size=4, interpolation="bilinear")
SIZES = ((20, 40), (41, 19), (30, 30), (9, 30))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    arrays = {name: array.astype(np.float32) for name, array in parity.randomized(MODEL, 0).items()}
    folder = tmp_path_factory.mktemp("any") / "aspect"
    config = CheckpointConfig(model=MODEL, labels=("wide", "tall"), preprocessing=MADE)
    save_checkpoint(folder, Checkpoint.of(config, arrays))
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(8):
        path = folder / ("wide", "tall")[i % 2] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*SIZES[i % 4], 3), np.uint8)).save(path)
    return folder


@pytest.mark.parametrize(
    "target",
    [
        pytest.param("a.pt2", marks=pytest.mark.release),
        pytest.param("a.onnx", marks=pytest.mark.release),
        pytest.param("a.jaxexport", marks=pytest.mark.release),  # compiled for each size of images, twice
    ],
)
def test_an_exported_program_takes_images_as_they_are_resized(
    vit: Vit, checkpoint: Path, photos: Path, tmp_path: Path, target: str
) -> None:
    """From each file to its label: the predictions of the twin, which gets padded batches of patches."""
    out = vit("export", checkpoint, tmp_path / target, "--any-size", "--data", f"{photos}/")
    assert "8 images, from file to label" in out
    (line,) = (line.split() for line in out.splitlines() if line.startswith(f" {target}"))
    assert line[2] == "0", "no prediction changes"
    assert float(line[3]) <= parity.FLOAT32_BOUND


def test_what_a_program_cannot_express(refused: Vit, vit: Vit, checkpoint: Path, tmp_path: Path) -> None:
    line = refused("export", checkpoint, tmp_path / "a.jaxexport")
    assert "max_patches: 12 gives each image its own size, but this program has one; add --any-size" in line
    assert "--preprocessing max_patches=none (all are resized to 16x16)" in line
    assert "stablehlo: a dynamic shape" in refused("export", checkpoint, tmp_path / "a.mlirbc", "--any-size")
    assert not list(tmp_path.iterdir())
    squashed = ("--preprocessing", "max_patches=none", "--input", "pixels", "--no-check")
    assert "images uint8 [1, 16, 16, 3]" in vit("export", checkpoint, tmp_path / "a.mlirbc", *squashed)


@pytest.mark.slow
def test_a_page_is_drawn(vit: Vit, checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    wide = photos / "wide" / "0.png"
    out = vit("show", checkpoint, wide, "--data", f"{photos}/", "--out", tmp_path / "figures", "--images", 8)
    assert "not drawn" not in out
    assert {path.name for path in (tmp_path / "figures").iterdir()} > {"attention.png", "rollout.png", "worst.png"}


def test_attention_is_that_of_the_images_own_grid(checkpoint: Path, photos: Path) -> None:
    """Of 2 x 4 patches, in both twins."""
    x_1HWC = load_image(photos / "wide" / "0.png", MADE)[None]
    assert x_1HWC.shape == (1, 8, 16, 3)
    opened = open_checkpoint(checkpoint)
    in_torch, in_jax = (
        twin.attention_weights(twin.load(opened, dtype="float32"), x_1HWC, interpolate=True)
        for twin in (vit_torch, vit_jax)
    )
    for one, other in zip(in_torch, in_jax, strict=True):
        assert one.shape == (1, 2, 8, 8)
        assert parity.difference(one, other)[1] <= parity.FLOAT32_BOUND
    assert (attention_distances(in_torch[0][0], (2, 4), (4, 4), 0) < 4 * np.hypot(1, 3)).all()


def test_a_probe_has_a_feature_for_each_channel(vit: Vit, checkpoint: Path, photos: Path) -> None:
    out = vit("probe", checkpoint, "--data", f"{photos}/", "--neighbours", 3, "--held-out", 0.5)
    assert "probes of 16 features" in out
