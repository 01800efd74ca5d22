"""ViT-5 (arXiv:2602.08071) in both twins, against a forward pass in NumPy that was written from the paper and the
authors' code, which no package installs: complex numbers turn the pairs, and registers stand after the patches."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy.special import erf, softmax

import vit_jax
import vit_torch
from parity_tests.twins import checkpoint
from vit_core import ViTConfig, parity, variant
from vit_core.errors import InputError
from vit_core.parameters import count

SMALL = variant("vit5-S/16", (48, 80), 5).replace(width=48, depth=2, heads=3, mlp_dim=64)


def rms(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * weight
    return scaled


def turns(down: int, across: int, head_dim: int, base: float) -> np.ndarray:
    """Complex numbers [down * across, K / 2] that multiply the pairs of values of a grid, row by row."""
    quarter = head_dim // 4
    frequencies = np.array([base ** -(i / quarter) for i in range(quarter)])
    rows = [[np.concatenate([y * frequencies, x * frequencies]) for x in range(across)] for y in range(down)]
    return np.exp(1j * np.array(rows).reshape(down * across, 2 * quarter))


def vit5(p: dict[str, np.ndarray], image_HWC: np.ndarray, heads: int, depth: int) -> np.ndarray:
    """Logits [classes] of an image, float64."""
    H, W, C = image_HWC.shape
    patches = image_HWC.reshape(H // 16, 16, W // 16, 16, C).transpose(0, 2, 4, 1, 3).reshape(-1, C * 256)
    kernel = p["patch_embed.proj.weight"].reshape(-1, C * 256)
    x = patches @ kernel.T + p["patch_embed.proj.bias"] + p["pos_embed"][0]
    x = np.concatenate([p["cls_token"][0], x, p["reg_token"][0]])
    (N, D), R = x.shape, p["reg_token"].shape[1]
    K, side = D // heads, math.isqrt(R)
    own, of_registers = turns(H // 16, W // 16, K, 10_000.0), turns(side, side, K, 100.0)
    turn = np.concatenate([np.ones((1, K // 2)), own, of_registers])[:, None]

    def rotated(z: np.ndarray) -> np.ndarray:
        pairs = (z[..., ::2] + 1j * z[..., 1::2]) * turn
        return np.stack([pairs.real, pairs.imag], -1).reshape(z.shape)

    for i in range(depth):
        b = {name.removeprefix(f"blocks.{i}."): array for name, array in p.items() if name.startswith(f"blocks.{i}.")}
        q, k, v = (rms(x, b["norm1.weight"]) @ b["attn.qkv.weight"].T).reshape(N, 3, heads, K).transpose(1, 0, 2, 3)
        q, k = rotated(rms(q, b["attn.q_norm.weight"])), rotated(rms(k, b["attn.k_norm.weight"]))
        weights = softmax(np.einsum("nhk,mhk->hnm", q, k) / math.sqrt(K), axis=-1)
        attended = np.einsum("hnm,mhk->nhk", weights, v).reshape(N, D) @ b["attn.proj.weight"].T + b["attn.proj.bias"]
        x = x + b["ls1.gamma"] * attended
        hidden = rms(x, b["norm2.weight"]) @ b["mlp.fc1.weight"].T + b["mlp.fc1.bias"]
        hidden = hidden * (1 + erf(hidden / math.sqrt(2))) / 2
        x = x + b["ls2.gamma"] * (hidden @ b["mlp.fc2.weight"].T + b["mlp.fc2.bias"])
    logits: np.ndarray = rms(x, p["norm.weight"])[0] @ p["head.weight"].T + p["head.bias"]
    return logits


def test_both_twins() -> None:
    weights = checkpoint(SMALL)
    arrays = {name: weights.arrays[name] for name in weights.arrays}
    images_BHWC = np.random.default_rng(1).standard_normal((2, 48, 80, 3))
    expected = np.stack([vit5(arrays, image_HWC, SMALL.heads, SMALL.depth) for image_HWC in images_BHWC])
    with torch.no_grad():
        of_torch = vit_torch.load(weights, dtype="float64")(torch.from_numpy(images_BHWC).permute(0, 3, 1, 2)).numpy()
    of_jax = np.asarray(vit_jax.load(weights, dtype="float64")(jnp.asarray(images_BHWC)))
    for found in (of_torch, of_jax):
        assert parity.difference(found, expected)[1] < parity.FLOAT64_BOUND


@pytest.mark.parametrize("change", [{"register_base": None}, {"register_base": 50.0}, {"base": 100.0}, {"axes": "xy"}])
def test_another_rotation_is_red(change: dict[str, object]) -> None:
    assert SMALL.rope is not None
    weights, x_BCHW = checkpoint(SMALL), torch.randn(1, 3, 48, 80, dtype=torch.float64)
    mutant = weights.with_model(rope=SMALL.rope.replace(**change))
    with torch.no_grad():
        expected, found = (vit_torch.load(each, dtype="float64")(x_BCHW).numpy() for each in (weights, mutant))
    assert parity.difference(found, expected)[1] > 1e-6


def test_another_resolution_and_drawn_coordinates_rotate_registers_alike() -> None:
    """The ways by which angles are computed within the program leave the registers where they are."""
    assert SMALL.rope is not None
    weights, x_BCHW = checkpoint(SMALL), torch.randn(1, 3, 48, 80, dtype=torch.float64)
    model = vit_torch.load(weights, dtype="float64")
    nothing = {"rope": torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)}
    with torch.no_grad():
        expected, found = model(x_BCHW).numpy(), model(x_BCHW, nothing).numpy()
    assert parity.difference(found, expected)[1] < parity.FLOAT64_BOUND


@pytest.mark.parametrize(("size", "millions"), [("S", 22), ("B", 87), ("L", 304)])
def test_published_sizes(size: str, millions: int) -> None:
    """As in the table of the authors' README."""
    assert round(count(variant(f"vit5-{size}/16", 224, 1000)) / 1e6) == millions


def test_registers_need_a_grid() -> None:
    with pytest.raises(InputError, match="3 registers do not form a square grid; use 4"):
        ViTConfig(**{**SMALL.model_dump(), "registers": 3})
