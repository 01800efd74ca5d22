"""float32 and bfloat16 of each twin compared with float64, and each attention kernel compared with plain attention."""

from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import vit_jax.rope
import vit_torch.arrays
import vit_torch.rope
from parity_tests.twins import checkpoint
from vit_core import ViTConfig, parity, rotations, variants
from vit_core.rope import PUBLISHED

MODEL = ViTConfig(image_size=32, patch_size=8, width=64, depth=4, heads=4, mlp_dim=256, num_classes=10)
SCANNED = {"scan": True}


def output(twin: ModuleType, config: ViTConfig, dtype: str, **options: object) -> np.ndarray:
    """Logits of random images from random weights, by one twin."""
    model, (x_BHWC, _) = twin.load(checkpoint(config), dtype=dtype, **options), parity.probe(config, 1)
    if twin is vit_jax:
        return np.asarray(model(jnp.asarray(x_BHWC)))
    with torch.inference_mode():
        return vit_torch.arrays.to_numpy(model(torch.as_tensor(x_BHWC).permute(0, 3, 1, 2)))


def errors(config: ViTConfig, dtype: str) -> tuple[float, float, float]:
    """Relative errors of the logits: JAX and PyTorch against the float64 oracle, and JAX against PyTorch."""
    oracle = output(vit_torch, config, "float64")
    in_jax, in_torch = output(vit_jax, config, dtype, **SCANNED), output(vit_torch, config, dtype)
    pairs = (in_jax, oracle), (in_torch, oracle), (in_jax, in_torch)
    a, b, apart = (parity.difference(x, y)[1] for x, y in pairs)
    return a, b, apart


@pytest.mark.parametrize("fields", [{}, {"pooling": "map"}, {"pooling": "gap", "activation": "gelu"}])
def test_float32(fields: dict[str, str]) -> None:
    a, b, apart = errors(MODEL.replace(**fields), "float32")
    assert max(a, b, apart) <= parity.FLOAT32_BOUND
    assert min(a, b) > 0, "float32 was not used"


@pytest.mark.release
@pytest.mark.parametrize("variant", ["Ti/16", "B/16", "L/16"])
def test_float32_published_sizes(variant: str) -> None:
    config = variants.variant(variant, image_size=224, num_classes=1000)
    in_jax, in_torch = output(vit_jax, config, "float32", **SCANNED), output(vit_torch, config, "float32")
    assert parity.difference(in_jax, in_torch)[1] <= parity.FLOAT32_BOUND


def bfloat16_bound(config: ViTConfig) -> float:
    """One ulp is 2**-8; four roundings a block add up as a random walk; four for the model's own gain."""
    return float(4 * 2**-8 * np.sqrt(4 * config.depth))


ROTARY: dict[str, dict[str, Any]] = {
    "DINOv3, as Meta trains it": {"periods": "bfloat16"},
    "far from the origin": {"coordinates": "grid", "pairs": "neighbours", "offset": 256.0},
    "learned frequencies": PUBLISHED["mixed"],
}
"""Rotary positions. From 256 on, bfloat16 has every second whole number: angles in it would be off by up to a radian,
where those in float32 are off by 256 times 2**-24."""


@pytest.mark.parametrize(
    "rope",
    [
        None,
        "far from the origin",
        pytest.param("DINOv3, as Meta trains it", marks=pytest.mark.slow),
        pytest.param("learned frequencies", marks=pytest.mark.slow),
    ],
)
def test_bfloat16_errors_are_comparable(rope: str | None) -> None:
    # Both twins round at the same places, up to where a kernel keeps float32 inside: two draws of the same size.
    config = MODEL if rope is None else MODEL.replace(rope=ROTARY[rope], position_embedding="none", registers=2)
    a, b, _ = errors(config, "bfloat16")
    assert 2**-12 < a < bfloat16_bound(config)
    assert 2**-12 < b < bfloat16_bound(config)
    assert max(a, b) <= parity.COMPARABLE * min(a, b)


@pytest.mark.parametrize("rope", ["DINOv3, as Meta trains it", "far from the origin"])
def test_bfloat16_has_the_tables_of_float32(rope: str) -> None:
    """Cosine and sine of every token, in both twins: those of float64, rounded once to float32."""
    config = MODEL.replace(rope=ROTARY[rope], position_embedding="none", registers=2)
    prefix, like = config.prefix_tokens, torch.zeros(1, dtype=torch.bfloat16)
    assert config.rope is not None
    expected = rotations.axial_rotation(config.rope, config.grid, config.attention_dim, prefix, config.registers)
    in_torch = vit_torch.rope.places(config, config.grid, like, None, False)
    in_jax = vit_jax.rope.places(config, config.grid, jnp.bfloat16, None, False)
    for name, table in zip(("cos", "sin"), expected, strict=True):
        np.testing.assert_array_equal(in_torch[name].numpy(), table.astype(np.float32))
        np.testing.assert_array_equal(np.asarray(in_jax[name]), table.astype(np.float32))


@pytest.mark.parametrize("twin", [vit_jax, vit_torch])
@pytest.mark.parametrize("dtype", [pytest.param("float64", marks=pytest.mark.slow), "float32", "bfloat16"])
@pytest.mark.parametrize("pooling", ["cls", pytest.param("map", marks=pytest.mark.slow)])
def test_fused_attention_is_the_plain_path(twin: ModuleType, dtype: str, pooling: str) -> None:
    config = MODEL.replace(pooling=pooling)
    plain, fused = (output(twin, config, dtype, attention=attention) for attention in ("plain", "fused"))
    bound = {
        # jax.nn.dot_product_attention has a float32 softmax whatever its input; torch's kernel is true float64.
        "float64": parity.FLOAT32_BOUND if twin is vit_jax else parity.FLOAT64_BOUND,
        "float32": parity.FLOAT32_BOUND,
        "bfloat16": bfloat16_bound(config),
    }[dtype]
    assert parity.difference(fused, plain)[1] <= bound
    if (twin, dtype) == (vit_jax, "float64"):
        assert parity.difference(fused, plain)[1] > parity.FLOAT64_BOUND, "use it in comparisons: it has become exact"
