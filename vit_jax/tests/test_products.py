"""Products of layers in bfloat16 on CPUs: the values, the gradients, and where the result is asked for in float32."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import Array

from vit_jax import linear as module

ROUNDING = 2.0**-8  # rounding to bfloat16, which has 8 significant bits, changes a value relatively by at most this


def wide(x_BND: Array, kernel_DF: Array) -> Array:
    layer = module.linear(8, 24, use_bias=False)
    layer.kernel = nnx.Param(kernel_DF)
    return module.to_hidden(layer, x_BND)


def narrow(x_BND: Array, kernel_DF: Array) -> Array:
    layer = module.linear(8, 4, use_bias=False)
    layer.kernel = nnx.Param(kernel_DF)
    return module.to_width(layer, x_BND, "mlp")


LAYERS: list[tuple[Callable[[Array, Array], Array], int]] = [(wide, 24), (narrow, 4)]


@pytest.mark.parametrize(("layer", "outputs"), LAYERS)
def test_results_and_gradients_are_rounded_once(
    layer: Callable[[Array, Array], Array], outputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compared with NumPy in float64: a sum of at most 24 products in float32 is off by far less than its rounding."""
    monkeypatch.setattr(module, "cpu_multiplies_bfloat16", lambda: True)
    rng = np.random.default_rng(0)
    x, kernel, grad = (
        jnp.asarray(rng.uniform(0.5, 1, shape), jnp.bfloat16) for shape in ((2, 6, 8), (8, outputs), (2, 6, outputs))
    )
    found, pull = jax.vjp(layer, x, kernel)
    exact_x, exact_kernel, exact_grad = (np.asarray(a, np.float64) for a in (x, kernel, grad))
    grad_kernel = np.tensordot(exact_x, exact_grad, ((0, 1), (0, 1)))
    expected = exact_x @ exact_kernel, exact_grad @ exact_kernel.T, grad_kernel
    for ours, theirs in zip((found, *pull(grad)), expected, strict=True):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(ours, np.float64), theirs, rtol=1.01 * ROUNDING, atol=0)


@pytest.mark.parametrize(("layer", "outputs"), LAYERS)
@pytest.mark.parametrize(
    ("dtype", "platform", "has_instructions", "in_float32"),
    [
        ("bfloat16", "cpu", True, True),
        ("bfloat16", "cpu", False, False),
        ("bfloat16", "tpu", True, False),
        ("float16", "cpu", True, False),
    ],
)
def test_where_results_are_in_float32(
    layer: Callable[[Array, Array], Array],
    outputs: int,
    dtype: str,
    platform: str,
    has_instructions: bool,
    in_float32: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All three products of a layer, forward and backward, have factors of the layer's type."""
    monkeypatch.setattr(module, "cpu_multiplies_bfloat16", lambda: has_instructions)
    monkeypatch.setattr(module, "platform", lambda: platform)
    x, kernel = jnp.ones((2, 6, 8), dtype), jnp.ones((8, outputs), dtype)

    def total(x: Array, kernel: Array) -> Array:
        return layer(x, kernel).astype("float32").sum()

    text = str(jax.make_jaxpr(jax.value_and_grad(total, (0, 1)))(x, kernel))
    products = [line for line in text.splitlines() if "= dot_general[" in line]
    assert len(products) == 3
    short = {"bfloat16": "bf16", "float16": "f16"}[dtype]
    assert all((":f32" in line) == in_float32 and (f":{short}" in line) != in_float32 for line in products)


def test_the_processors_features(monkeypatch: pytest.MonkeyPatch) -> None:
    for features, expected in ({"avx512_bf16"}, True), ({"amx_bf16"}, True), ({"avx512f", "avx2"}, False):
        monkeypatch.setattr(module, "processor_lists", features.__contains__)
        assert module.cpu_multiplies_bfloat16() == expected
