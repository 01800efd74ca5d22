"""Attention by the devices' fastest kernel. Read it beside vit_torch/fused.py.

model.py explains the names of arrays.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from vit_core.errors import shortened
from vit_jax import sharding

logger = logging.getLogger("vit")

SPLASH_TOKENS = 1024
"""Up to this number of tokens, XLA's attention is used on a TPU; a guess, which was not measured on a TPU."""
SPLASH_BLOCKS = (384, 512, 640, 768)
"""Tokens of a block of splash attention: multiples of the 128 lanes of a TPU."""


def fused_attention(q_BNTK: Array, k_BMTK: Array, v_BMTK: Array, bias: Array | None = None) -> Array:
    """Scaled dot-product attention [B, N, T, K] by the kernel of the devices that it is traced for.

    In 16 bits, the kernel is cuDNN's on a GPU (JAX uses it only on request), and splash attention on a TPU for more
    than 1,024 tokens. In all other cases, and if the kernel is missing or does not support the arguments, it is XLA's,
    by jax.nn.dot_product_attention, which stores the weights; this is logged once.
    bias: added to the scores, [T, N, M] or [B, 1 or T, 1 or N, M].
    """
    bias = bias[None] if bias is not None and bias.ndim == 3 else bias
    platform = sharding.platform()
    if platform == "gpu" and q_BNTK.dtype in (jnp.bfloat16, jnp.float16):
        try:
            return even_attention(q_BNTK, k_BMTK, v_BMTK, bias, "cudnn")
        except (RuntimeError, ValueError, NotImplementedError) as error:
            _note(f"attention: cuDNN's kernel cannot be used ({shortened(str(error))}); XLA's is")
    elif platform == "tpu" and q_BNTK.dtype == jnp.bfloat16 and min(q_BNTK.shape[1], k_BMTK.shape[1]) > SPLASH_TOKENS:
        if setting := _refused_setting():
            _note(f"attention: splash attention cannot be used with {setting}; XLA's is")
        elif bias is None or bias.shape[1:3] == (1, 1):
            try:
                return splash_attention(q_BNTK, k_BMTK, v_BMTK, None if bias is None else bias[:, 0, 0] == 0)
            except (ImportError, ValueError, NotImplementedError) as error:
                _note(f"attention: splash attention cannot be used ({shortened(str(error))}); XLA's is")
        else:
            _note("attention: splash attention adds no bias to scores; XLA's is used")
    else:
        _note(f"attention: no kernel for {q_BNTK.shape[1]:,} tokens in {q_BNTK.dtype} ({platform}); XLA's is used")
    return jax.nn.dot_product_attention(q_BNTK, k_BMTK, v_BMTK, bias)


def _refused_setting() -> str:
    """The setting of JAX with which splash attention cannot be compiled (jax 0.10.2); empty if there is none. Mosaic
    supports neither indices of 64 bits nor products of bfloat16 in a higher precision. The error would come too late to
    choose another kernel."""
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    if jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        return "jax_enable_x64"
    ordinary = precision in (None, "default", "fastest", "bfloat16")
    return "" if ordinary else f"jax_default_matmul_precision={precision}"


def even_attention(
    q_BNTK: Array, k_BMTK: Array, v_BMTK: Array, bias: Array | None, implementation: Literal["cudnn", "xla"]
) -> Array:
    """jax.nn.dot_product_attention, with even numbers of tokens: an odd number is padded by one token that gets no
    attention. cuDNN refuses odd numbers, but only when the derivative is compiled, which is too late to use another
    kernel (jax 0.11.2)."""
    (B, N), M = q_BNTK.shape[:2], k_BMTK.shape[1]
    if N % 2 == 0 and M % 2 == 0:
        return jax.nn.dot_product_attention(q_BNTK, k_BMTK, v_BMTK, bias, implementation=implementation)

    def even(x: Array, *axes: int) -> Array:
        return jnp.pad(x, [(0, length % 2 if i in axes else 0) for i, length in enumerate(x.shape)])

    q_BNTK, k_BMTK, v_BMTK = even(q_BNTK, 1), even(k_BMTK, 1), even(v_BMTK, 1)
    if bias is not None:
        bias = even(bias, *(axis for axis in (2, 3) if bias.shape[axis] > 1))
    out_BNTK = jax.nn.dot_product_attention(
        q_BNTK,
        k_BMTK,
        v_BMTK,
        bias,
        query_seq_lengths=jnp.full((B,), N, jnp.int32),
        key_value_seq_lengths=jnp.full((B,), M, jnp.int32),
        implementation=implementation,
    )
    return out_BNTK[:, :N]


def splash_attention(
    q_BNTK: Array, k_BMTK: Array, v_BMTK: Array, valid_BM: Array | None = None, *, interpret: bool = False
) -> Array:
    """Scaled dot-product attention [B, N, T, K] by Pallas's kernel for TPUs, of which each device of a mesh computes
    its own examples and heads.

    valid_BM: False for keys that are padding; at least one key of each example must be valid. interpret: XLA executes
    what the kernel does, on any device.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import (  # here, because it takes long to import
        BlockSizes,
        FullMask,
        MultiHeadMask,
        SegmentIds,
        make_splash_mha,
    )

    (B, N, _, K), M = q_BNTK.shape, k_BMTK.shape[1]
    block_q, block_kv = _block(N), _block(M)
    sizes = BlockSizes(
        block_q=block_q,
        block_kv=block_kv,
        block_q_dkv=block_q,
        block_kv_dkv=block_kv,
        block_q_dq=block_q,
        block_kv_dq=block_kv,
    )

    def by_head(x_BNTK: Array, block: int) -> Array:
        """[B, T, N, K], with tokens up to whole blocks."""
        return jnp.pad(x_BNTK.swapaxes(1, 2), ((0, 0), (0, 0), (0, -x_BNTK.shape[1] % block), (0, 0)))

    def attention(q_BNTK: Array, k_BMTK: Array, v_BMTK: Array, valid_BM: Array) -> Array:
        q_BTNK, k_BTMK, v_BTMK = (
            by_head(q_BNTK * K**-0.5, block_q),
            by_head(k_BMTK, block_kv),
            by_head(v_BMTK, block_kv),
        )
        mask = MultiHeadMask([FullMask((q_BTNK.shape[2], k_BTMK.shape[2]))] * q_BTNK.shape[1])
        kernel = make_splash_mha(mask, head_shards=1, q_seq_shards=1, block_sizes=sizes, interpret=interpret)
        # A query attends to the keys of its segment: all queries are of segment 1, and padding is of segment 0.
        own_BM = jnp.pad(valid_BM.astype(jnp.int32), ((0, 0), (0, -M % block_kv)))
        ones_N = jnp.ones(q_BTNK.shape[2], jnp.int32)
        by_image = jax.vmap(lambda q_TNK, k_TMK, v_TMK, own_M: kernel(q_TNK, k_TMK, v_TMK, SegmentIds(ones_N, own_M)))
        return by_image(q_BTNK, k_BTMK, v_BTMK, own_BM)[:, :, :N].swapaxes(1, 2)

    if valid_BM is None:
        valid_BM = jnp.ones((B, M), bool)
    heads = "batch tokens heads head_dim"
    return sharding.by_device(attention, (heads, heads, heads, "batch tokens"), heads)(q_BNTK, k_BMTK, v_BMTK, valid_BM)


def _block(tokens: int) -> int:
    """The block size that adds the fewest padding tokens; if there are several, the largest."""
    return min(SPLASH_BLOCKS, key=lambda block: (-tokens % block, -block))


@cache
def _note(text: str) -> None:
    logger.info(text)
