"""float32 and bfloat16 against a float64 oracle, twin by twin; and each attention kernel against the plain path."""

from types import ModuleType

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import vit_jax
import vit_torch.arrays
from parity_tests.twins import checkpoint
from vit_core import ViTConfig, parity, variants

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


def test_bfloat16_errors_are_comparable() -> None:
    # Both twins round at the same places, up to where a kernel keeps float32 inside: two draws of the same size.
    a, b, _ = errors(MODEL, "bfloat16")
    assert 2**-12 < a < bfloat16_bound(MODEL)
    assert 2**-12 < b < bfloat16_bound(MODEL)
    assert max(a, b) <= parity.COMPARABLE * min(a, b)


@pytest.mark.parametrize("twin", [vit_jax, vit_torch])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("pooling", ["cls", "map"])
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
        assert parity.difference(fused, plain)[1] > parity.FLOAT64_BOUND, "use it in proofs: it has become exact"
