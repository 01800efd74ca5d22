"""Attention in JAX. Read it beside vit_torch/attention.py; model.py explains the names of arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from vit_jax.fused import fused_attention
from vit_jax.layers import drop, identity, norm_layer
from vit_jax.linear import linear, to_heads, to_width
from vit_jax.masks import Masks, Positions
from vit_jax.mlp import Mlp
from vit_jax.relative import RelativeBias
from vit_jax.rope import MixedRope, rotate

if TYPE_CHECKING:
    from vit_core.config import ViTConfig

AttentionKind = Literal["plain", "fused"]


class Attention(nnx.Module):
    """Multi-head self-attention over tokens [B, N, D] (arXiv:1706.03762, section 3.2), with the variations of later
    ViTs: rotary positions, a relative position bias, norms of queries and keys, and a norm before the projection."""

    def __init__(self, config: ViTConfig, attention: AttentionKind) -> None:
        self.attention, self.config = attention, config
        D, T, K = config.width, config.heads, config.head_width
        self.qkv = linear(D, (3, T, K), use_bias=config.qkv_bias and config.key_bias)
        if config.qkv_bias and not config.key_bias:
            self.q_bias = nnx.Param(jnp.zeros((T, K)))
            self.v_bias = nnx.Param(jnp.zeros((T, K)))
        self.q_norm = norm_layer(config, K) if config.qk_norm else identity
        self.k_norm = norm_layer(config, K) if config.qk_norm else identity
        mixed = config.rope is not None and config.rope.frequencies == "mixed"
        self.rope = MixedRope(config) if mixed else identity
        self.rel_pos = RelativeBias(config) if config.relative_bias_per_block else identity
        self.norm = norm_layer(config, T * K) if config.attention_norm else identity
        self.proj = linear((T, K), D, axis=(-2, -1), use_bias=config.proj_bias)

    def __call__(self, x_BND: Array, masks: Masks | None = None, positions: Positions | None = None) -> Array:
        q_BNTK, k_BMTK, v_BMTK = self.heads(x_BND, positions)
        out_BNTK = attend(q_BNTK, k_BMTK, v_BMTK, self.attention, masks, self.bias(positions or {}))
        out_BNA = self.norm(out_BNTK.reshape(*x_BND.shape[:2], -1))
        return drop(to_width(self.proj, out_BNA, "heads"), "attn.proj_drop", masks)

    def heads(self, x_BND: Array, positions: Positions | None = None) -> tuple[Array, ...]:
        """Queries, keys and values [B, N, T, K] of the block's input after norm1; queries and keys are normed and
        rotated."""
        config = self.config
        q_BNTK, k_BMTK, v_BMTK = to_heads(self.qkv, x_BND, None if config.key_bias else self.qv_bias())
        q_BNTK, k_BMTK = self.q_norm(q_BNTK), self.k_norm(k_BMTK)
        if config.rope is not None:
            rotation = self.rope(positions or {})
            q_BNTK, k_BMTK = (rotate(x, rotation, config.rope.pairs) for x in (q_BNTK, k_BMTK))
        return q_BNTK, k_BMTK, v_BMTK

    def qv_bias(self) -> Array:
        """The bias [3, T, K] of queries and values, with zeros in the place of the keys'."""
        return jnp.stack([self.q_bias[...], jnp.zeros_like(self.q_bias[...]), self.v_bias[...]])

    def bias(self, positions: Positions) -> Array | None:
        """The bias of the scores, if there is one: [T, N, M], or [B, 1, 1, M] if keys are padding."""
        return self.rel_pos(positions) if self.config.relative_bias_per_block else positions.get("bias")

    def attention_weights(self, x_BND: Array, positions: Positions | None = None) -> Array:
        """Attention weights [B, T, N, M] of the block's input after norm1."""
        q_BNTK, k_BMTK, _ = self.heads(x_BND, positions)
        return softmax_weights(q_BNTK, k_BMTK, self.bias(positions or {}))


def softmax_weights(q_BNTK: Array, k_BMTK: Array, bias: Array | None = None) -> Array:
    """Attention weights [B, T, N, M]: the softmax over M of the scaled scores (arXiv:1706.03762, equation 1), computed
    in float32 at least. bias: added to the scores, [T, N, M] or [B, 1 or T, 1 or N, M]."""
    exp_BTNM, sums_BTN1 = softmax_terms(q_BNTK, k_BMTK, bias)
    return (exp_BTNM / sums_BTN1).astype(q_BNTK.dtype)


def softmax_terms(q_BNTK: Array, k_BMTK: Array, bias: Array | None = None) -> tuple[Array, Array]:
    """Numerators [B, T, N, M] and denominators [B, T, N, 1] of the attention weights, which are their quotients."""
    scores_BTNM = jnp.einsum("bntk,bmtk->btnm", q_BNTK * q_BNTK.shape[-1] ** -0.5, k_BMTK)
    scores_BTNM = scores_BTNM if bias is None else scores_BTNM + bias
    # At least float32 under a low-precision model, and float64 (which jax.nn.dot_product_attention lacks) in proofs.
    scores_BTNM = scores_BTNM.astype(jnp.promote_types(scores_BTNM.dtype, jnp.float32))
    exp_BTNM = jnp.exp(scores_BTNM - jax.lax.stop_gradient(scores_BTNM.max(axis=-1, keepdims=True)))
    return exp_BTNM, exp_BTNM.sum(axis=-1, keepdims=True)


def attend(
    q_BNTK: Array,
    k_BMTK: Array,
    v_BMTK: Array,
    attention: AttentionKind,
    masks: Masks | None = None,
    bias: Array | None = None,
) -> Array:
    """Scaled dot-product attention [B, N, T, K]; the fused kernel accepts no mask for its weights."""
    if attention == "fused" and not (masks and "attn.attn_drop" in masks):
        return fused_attention(q_BNTK, k_BMTK, v_BMTK, bias)
    exp_BTNM, sums_BTN1 = softmax_terms(q_BNTK, k_BMTK, bias)
    exp_BTNM = drop(exp_BTNM.astype(v_BMTK.dtype), "attn.attn_drop", masks)
    # Divided after the product, which has fewer columns than there are scores: there is less to divide.
    out_BNTK = jnp.einsum("btnm,bmtk->bntk", exp_BTNM, v_BMTK) / sums_BTN1.swapaxes(1, 2)
    return out_BNTK.astype(v_BMTK.dtype)


class AttentionPool(nnx.Module):
    """Attention pooling by one learned query (MAP, arXiv:2106.04560), under the names of timm's AttentionPoolLatent."""

    def __init__(self, config: ViTConfig, attention: AttentionKind) -> None:
        self.attention = attention
        D, T, K = config.width, config.pooling_heads, config.width // config.pooling_heads
        self.latent = nnx.Param(jnp.zeros((1, 1, D)))
        self.q = linear(D, (T, K))
        self.kv = linear(D, (2, T, K))
        self.proj = linear((T, K), D, axis=(-2, -1))
        self.norm = norm_layer(config)
        self.mlp = Mlp(config, config.pooling_mlp_dim)

    def __call__(self, x_BND: Array, padding_B11M: Array | None = None) -> Array:
        B, _, D = x_BND.shape
        q_B1TK = self.q(jnp.broadcast_to(self.latent[...], (B, 1, D)))
        k_BMTK, v_BMTK = jnp.moveaxis(self.kv(x_BND), 2, 0)
        x_B1D = self.proj(attend(q_B1TK, k_BMTK, v_BMTK, self.attention, bias=padding_B11M))
        return (x_B1D + self.mlp(self.norm(x_B1D)))[:, 0]
