"""Splash attention: when it is used, and its numbers, which XLA computes here as the kernel would on a TPU."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from vit_jax import fused, sharding
from vit_jax.attention import attend
from vit_jax.layers import padding_bias

SHARED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, Mesh
from vit_jax import sharding
from vit_jax.fused import splash_attention

def attention(*arrays):
    return splash_attention(*arrays, interpret=True)

def of_parts(*arrays):
    with sharding.within_shard():
        parts = (x.reshape(2, 2, *x.shape[1:]) for x in arrays)
        return jax.vmap(attention, spmd_axis_name=sharding.BATCH_AXES)(*parts).reshape(arrays[0].shape)

q, k, v = (jax.random.normal(key, (4, 140, 2, 64), jnp.bfloat16) for key in jax.random.split(jax.random.key(0), 3))
valid = jnp.arange(140) < jnp.array([[140], [90], [120], [60]])
alone = jax.jit(attention)(q, k, v, valid)
mesh = Mesh(np.array(jax.devices()).reshape(2, 1, 2), sharding.AXES, axis_types=(AxisType.Auto,) * 3)
with jax.set_mesh(mesh):
    for shared in (attention, of_parts):
        print(jnp.array_equal(jax.jit(shared)(q, k, v, valid), alone))
"""


@pytest.mark.slow
def test_devices_that_share_examples_and_heads_compute_the_same() -> None:
    """On a mesh of four, also within the parts of a batch whose gradients are summed apart."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", SHARED], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["True", "True"]), done.stderr


@pytest.mark.slow
def test_values_and_gradients_are_those_of_plain_attention() -> None:
    """Of bfloat16 values, against float32. Scores, powers and sums are float32 in the kernel; it rounds to bfloat16,
    by 2**-9 each, the result, the powers and the scores' gradients before their products, and each gradient."""
    B, N, T, K = 2, 140, 2, 64
    q_BNTK, k_BMTK, v_BMTK, g_BNTK = (
        jax.random.normal(key, (B, N, T, K), jnp.bfloat16) for key in jax.random.split(jax.random.key(0), 4)
    )
    valid_BM = jnp.arange(N) < jnp.array([[N], [101]])

    def results(attention: Callable[..., jax.Array], dtype: str) -> list[jax.Array]:
        def total(*inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
            out_BNTK = attention(*(x.astype(dtype) for x in inputs)).astype("float32")
            return (out_BNTK * g_BNTK.astype("float32")).sum(), out_BNTK

        (_, out_BNTK), gradients = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(q_BNTK, k_BMTK, v_BMTK)
        return [out_BNTK, *gradients]

    def splash(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return fused.splash_attention(q, k, v, valid_BM, interpret=True)

    def plain(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attend(q, k, v, "plain", bias=padding_bias(valid_BM, "float32"))

    for ours, theirs in zip(results(splash, "bfloat16"), results(plain, "float32"), strict=True):
        # Four roundings: the scaled queries (exact here), the powers or their gradients, the result in them, itself.
        assert jnp.abs(ours.astype("float32") - theirs).max() <= 4 * 2**-9 * jnp.abs(theirs).max()


@pytest.fixture
def ordinary_settings() -> Iterator[None]:
    """JAX's defaults, which other tests of the process change."""
    with jax.enable_x64(False), jax.default_matmul_precision("default"):
        yield


@pytest.mark.usefixtures("ordinary_settings")
@pytest.mark.parametrize(
    ("platform", "dtype", "tokens", "bias", "used"),
    [
        ("tpu", "bfloat16", 1025, None, "splash"),
        ("tpu", "bfloat16", 1025, (2, 1, 1, 1025), "splash"),
        ("tpu", "bfloat16", 1024, None, "no kernel for 1,024 tokens in bfloat16 (tpu)"),
        ("tpu", "float32", 1025, None, "no kernel for 1,025 tokens in float32 (tpu)"),
        ("cpu", "bfloat16", 1025, None, "no kernel for 1,025 tokens in bfloat16 (cpu)"),
        ("tpu", "bfloat16", 1025, (3, 1025, 1025), "splash attention adds no bias to scores"),
    ],
)
def test_it_is_used_on_tpus_for_many_tokens(
    platform: str,
    dtype: str,
    tokens: int,
    bias: tuple[int, ...] | None,
    used: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Keys that are padding are not those of a query; other biases it cannot add."""
    given: list[Any] = []

    def recorded(q_BNTK: jax.Array, k: jax.Array, v: jax.Array, valid_BM: jax.Array | None) -> jax.Array:
        given.append(valid_BM)
        return q_BNTK

    monkeypatch.setattr(sharding, "platform", lambda: platform)
    monkeypatch.setattr(fused, "splash_attention", recorded)
    fused._note.cache_clear()
    caplog.set_level("INFO", "vit")
    x_BNTK = jax.ShapeDtypeStruct((2, tokens, 3, 8), dtype)
    added = None if bias is None else jax.ShapeDtypeStruct(bias, dtype)
    out = jax.eval_shape(lambda x, bias: attend(x, x, x, "fused", bias=bias), x_BNTK, added)
    assert (out.shape, out.dtype) == (x_BNTK.shape, x_BNTK.dtype)
    assert len(given) == (used == "splash")
    if bias == (2, 1, 1, 1025):
        assert given[0].shape == (2, 1025)
    notes = [] if used == "splash" else [f"attention: {used}; XLA's is used"]
    assert [record.getMessage() for record in caplog.records] == notes


@pytest.mark.parametrize(
    ("x64", "precision", "setting"),
    [(True, "default", "jax_enable_x64"), (False, "highest", "jax_default_matmul_precision=highest")],
)
def test_it_is_not_used_with_settings_that_mosaic_refuses(
    x64: bool, precision: str, setting: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sharding, "platform", lambda: "tpu")
    fused._note.cache_clear()
    caplog.set_level("INFO", "vit")
    x_BNTK = jnp.ones((1, 1025, 1, 8), jnp.bfloat16)
    with jax.enable_x64(x64), jax.default_matmul_precision(precision):
        assert jnp.array_equal(fused.fused_attention(x_BNTK, x_BNTK, x_BNTK), x_BNTK)
    words = f"attention: splash attention cannot be used with {setting}; XLA's is"
    assert [record.getMessage() for record in caplog.records] == [words]


@pytest.mark.usefixtures("ordinary_settings")
@pytest.mark.parametrize(
    ("platform", "kernel", "words"),
    [
        ("tpu", "splash_attention", "splash attention cannot be used (no such head size); XLA's is"),
        ("gpu", "even_attention", "cuDNN's kernel cannot be used (no such head size); XLA's is"),
    ],
)
def test_where_the_kernel_refuses_xla_computes(
    platform: str, kernel: str, words: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With the same values as jax.nn.dot_product_attention, and one line that says so."""

    def refused(*_: jax.Array | None) -> jax.Array:
        raise NotImplementedError("no such head size")

    monkeypatch.setattr(sharding, "platform", lambda: platform)
    monkeypatch.setattr(fused, kernel, refused)
    fused._note.cache_clear()
    caplog.set_level("INFO", "vit")
    q, k, v = (jax.random.normal(key, (1, 1025, 1, 8), jnp.bfloat16) for key in jax.random.split(jax.random.key(0), 3))
    assert jnp.array_equal(fused.fused_attention(q, k, v), jax.nn.dot_product_attention(q, k, v))
    assert [record.getMessage() for record in caplog.records] == [f"attention: {words}"]


def test_blocks_add_few_tokens() -> None:
    assert {tokens: fused._block(tokens) for tokens in (1025, 1297, 2305, 4097)} == {
        1025: 384, 1297: 768, 2305: 640, 4097: 384
    }  # fmt: skip
