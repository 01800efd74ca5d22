"""Features against timm's `forward_intermediates`, in both twins and through `vit features`, in float64."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

import vit_jax
import vit_torch
from parity_tests.timm_twin import AFTER, NO_TOKEN, SMALL, timm_twin
from parity_tests.twins import checkpoint
from vit_cli.application import run
from vit_core import CheckpointConfig, InputError, ViTConfig, parity, save_checkpoint
from vit_core.feature_files import read_features
from vit_core.features import Pool, features_shape
from vit_core.preprocess import Preprocessing, load_image

MODEL = SMALL.replace(registers=2, class_token_position=False)
POOLS: tuple[Pool, ...] = ("cls", "gap", "tokens")


def timm_features(config: ViTConfig, x_BHWC: np.ndarray, layer: int, norm: bool) -> dict[str, np.ndarray]:
    """By pool: the features of timm's model with the same weights after a block."""
    theirs = timm_twin(config).eval()
    theirs.load_state_dict(vit_torch.load(checkpoint(config)).state_dict(), strict=True)
    options: dict[str, Any] = {"output_fmt": "NLC", "return_prefix_tokens": True, "intermediates_only": True}
    x_BCHW = torch.from_numpy(x_BHWC).permute(0, 3, 1, 2).double()
    with torch.no_grad():
        (found,) = theirs.forward_intermediates(x_BCHW, indices=[layer], norm=norm, **options)
    patches_BND, prefix_BND = (part.numpy() for part in found) if config.prefix_tokens else (found.numpy(), None)
    if prefix_BND is None:
        return {"gap": patches_BND.mean(axis=1), "tokens": patches_BND}
    tokens_BND = np.concatenate([prefix_BND, patches_BND], axis=1)
    return {"cls": prefix_BND[:, 0], "gap": patches_BND.mean(axis=1), "tokens": tokens_BND}


def assert_equal(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert parity.difference(found, expected)[1] <= parity.FLOAT64_BOUND


@pytest.mark.parametrize(
    ("fields", "layer", "norm"),
    [({}, 0, False), ({"registers": 0, **AFTER}, 1, True), ({"registers": 0, "pooling": "gap", **NO_TOKEN}, -1, True)],
    ids=str,
)
def test_both_twins_give_timms_intermediates(fields: dict[str, Any], layer: int, norm: bool) -> None:
    config = MODEL.replace(**fields)
    x_BHWC = np.random.default_rng(3).normal(size=(2, *config.image_size, 3))
    expected = timm_features(config, x_BHWC, layer, norm)
    in_torch, in_jax = vit_torch.load(checkpoint(config)), vit_jax.load(checkpoint(config), scan=layer == 1)

    @jax.jit
    def all_pools(x_BHWC: jax.Array) -> dict[str, jax.Array]:
        return {pool: vit_jax.features(in_jax, x_BHWC, layer, pool, norm) for pool in POOLS if pool in expected}

    found = all_pools(jnp.asarray(x_BHWC))
    for pool in POOLS:
        if pool not in expected:
            with pytest.raises(InputError, match="pool cls: the model has no class token; use gap"):
                vit_torch.features(in_torch, torch.from_numpy(x_BHWC).movedim(-1, 1), layer, pool)
            continue
        with torch.no_grad():
            by_torch = vit_torch.features(in_torch, torch.from_numpy(x_BHWC).movedim(-1, 1), layer, pool, norm)
        assert_equal(by_torch.numpy(), expected[pool])
        assert_equal(np.asarray(found[pool]), expected[pool])
        assert by_torch.shape == (2, *features_shape(config, pool))


@pytest.mark.parametrize(
    ("framework", "suffix", "pool"),
    [("torch", ".npy", "cls"), ("jax", ".safetensors", "tokens"), ("torch", ".parquet", "gap")],
)
def test_the_command_writes_timms_intermediates(framework: str, suffix: str, pool: str, tmp_path: Path) -> None:
    """From image files: of three pictures in batches of two, the last one filled up."""
    made = Preprocessing(image_size=MODEL.image_size)
    save_checkpoint(
        tmp_path / "model", checkpoint(MODEL).with_config(CheckpointConfig(model=MODEL, preprocessing=made))
    )
    paths = [tmp_path / "photos" / name for name in ("a/0.png", "a/1.png", "b/0.png")]
    for i, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels_HWC = np.random.default_rng(i).integers(0, 256, (20 + i, 30, 3), np.uint8)
        Image.fromarray(pixels_HWC).save(path)
    out = tmp_path / f"found{suffix}"
    words = ["--layer", "1", "--pool", pool, "--norm", "--compute-dtype", "float64", "--batch-size", "2"]
    command = ["features", tmp_path / "model", tmp_path / "photos", "--out", out, "--framework", framework, *words]
    assert run([str(word) for word in command]) == 0
    x_BHWC = np.stack([load_image(path, made) for path in paths]).astype(np.float64)
    found = read_features(out)
    assert_equal(found.values_N, timm_features(MODEL, x_BHWC, 1, norm=True)[pool])
    assert found.images == tuple(map(str, paths))
    assert found.labels == ("a", "a", "b")
