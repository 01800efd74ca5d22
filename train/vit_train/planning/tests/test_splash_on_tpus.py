"""Attention of B/16 at 512 and 1,024 pixels, compiled for TPUs that are not present: memory that the kernel needs."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding

from vit_jax import sharding
from vit_jax.attention import attend
from vit_train.planning.compilation import Compiled, compile_now
from vit_train.planning.plan import target
from vit_train.planning.topologies import parse

pytestmark = pytest.mark.usefixtures("without_hardware", "ordinary_settings")
IMAGES, T, K = 2, 12, 64
"""Images on each chip; number and width of B/16's heads."""


@pytest.fixture
def ordinary_settings() -> Iterator[None]:
    """JAX's defaults, because splash attention is not used with the settings that other tests of the process make."""
    with jax.enable_x64(False), jax.default_matmul_precision("default"):
        yield


@pytest.mark.release
@pytest.mark.parametrize("tokens", [1025, 4097])
def test_no_matrix_of_attention_weights_is_kept(tokens: int) -> None:
    """Forward and backward pass with padding, sharded over the chips of a slice: plain attention needs more than one
    matrix [B, T, N, N] in bfloat16; the kernel needs less than a quarter of one, in arrays of tokens."""
    devices = target(parse("v5e:2x2")).devices
    mesh = Mesh(np.array(devices).reshape(-1, 1, 1), sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    matrix = 2 * IMAGES * T * tokens**2
    assert temporaries("plain", tokens, mesh) > matrix
    assert temporaries("fused", tokens, mesh) < matrix / 4


def temporaries(kind: Any, tokens: int, mesh: Mesh) -> int:
    """Bytes of temporaries on a chip for the forward and backward pass of attention."""
    by_image = NamedSharding(mesh, sharding.spec("batch"))
    B = IMAGES * mesh.size
    x_BNTK = jax.ShapeDtypeStruct((B, tokens, T, K), jnp.bfloat16, sharding=by_image)
    padding_B11N = jax.ShapeDtypeStruct((B, 1, 1, tokens), jnp.bfloat16, sharding=by_image)

    def total(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array) -> jax.Array:
        return attend(q, k, v, kind, bias=bias).astype("float32").sum()

    with jax.set_mesh(mesh):
        lowered = jax.jit(jax.grad(total, (0, 1, 2))).lower(x_BNTK, x_BNTK, x_BNTK, padding_B11N)
    compiled: Compiled = compile_now(lowered)
    assert compiled.memory is not None
    return compiled.memory.temporaries
