"""Attention in PyTorch. Read it beside vit_jax/attention.py; model.py explains the names of arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor as Array
from torch import nn

from vit_torch.fused import fused_attention
from vit_torch.layers import drop, norm_layer
from vit_torch.linear import Linear
from vit_torch.masks import Masks, Positions
from vit_torch.mlp import Mlp
from vit_torch.relative import RelativeBias
from vit_torch.rope import MixedRope, rotate

if TYPE_CHECKING:
    from vit_core.config import ViTConfig

AttentionKind = Literal["plain", "fused"]


class Attention(nn.Module):
    """Multi-head self-attention over tokens [B, N, D] (arXiv:1706.03762, section 3.2), with the variations of later
    ViTs: rotary positions, a relative position bias, norms of queries and keys, and a norm before the projection."""

    def __init__(self, config: ViTConfig, attention: AttentionKind) -> None:
        super().__init__()
        self.attention, self.config = attention, config
        D, T, K = config.width, config.heads, config.head_width
        self.qkv = Linear(D, 3 * T * K, bias=config.qkv_bias and config.key_bias)
        if config.qkv_bias and not config.key_bias:
            self.q_bias = nn.Parameter(torch.zeros(T * K))
            self.v_bias = nn.Parameter(torch.zeros(T * K))
        self.q_norm = norm_layer(config, K) if config.qk_norm else nn.Identity()
        self.k_norm = norm_layer(config, K) if config.qk_norm else nn.Identity()
        mixed = config.rope is not None and config.rope.frequencies == "mixed"
        self.rope = MixedRope(config) if mixed else nn.Identity()
        self.rel_pos = RelativeBias(config) if config.relative_bias_per_block else nn.Identity()
        self.norm = norm_layer(config, T * K) if config.attention_norm else nn.Identity()
        self.proj = Linear(T * K, D, bias=config.proj_bias)

    def forward(self, x_BND: Array, masks: Masks | None = None, positions: Positions | None = None) -> Array:
        q_BNTK, k_BMTK, v_BMTK = self.heads(x_BND, positions)
        out_BNTK = attend(q_BNTK, k_BMTK, v_BMTK, self.attention, masks, self.bias(positions or {}))
        return drop(self.proj(self.norm(out_BNTK.flatten(2))), "attn.proj_drop", masks)

    def heads(self, x_BND: Array, positions: Positions | None = None) -> tuple[Array, ...]:
        """Queries, keys and values [B, N, T, K] of the block's input after norm1; queries and keys are normed and
        rotated."""
        config = self.config
        qkv_BNA = self.qkv(x_BND)  # called as a module: its adapter, peft's too, is a part of it
        if not config.key_bias:
            qkv_BNA = qkv_BNA + self.qv_bias()
        q_BNTK, k_BMTK, v_BMTK = qkv_BNA.unflatten(2, (3, config.heads, config.head_width)).unbind(2)
        q_BNTK, k_BMTK = self.q_norm(q_BNTK), self.k_norm(k_BMTK)
        if config.rope is not None:
            rotation = self.rope(positions or {})
            q_BNTK, k_BMTK = (rotate(x, rotation, config.rope.pairs) for x in (q_BNTK, k_BMTK))
        return q_BNTK, k_BMTK, v_BMTK

    def qv_bias(self) -> Array:
        """The bias [3 A] of queries and values, with zeros in the place of the keys'."""
        return torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])

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
    scores_BTNM = torch.einsum("bntk,bmtk->btnm", q_BNTK * q_BNTK.shape[-1] ** -0.5, k_BMTK)
    scores_BTNM = scores_BTNM if bias is None else scores_BTNM + bias
    # At least float32 under a low-precision model, and float64 in proofs.
    precise = torch.promote_types(scores_BTNM.dtype, torch.float32)
    return torch.softmax(scores_BTNM, dim=-1, dtype=precise).to(q_BNTK.dtype)


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
    weights_BTNM = drop(softmax_weights(q_BNTK, k_BMTK, bias), "attn.attn_drop", masks)
    return torch.einsum("btnm,bmtk->bntk", weights_BTNM, v_BMTK)


class AttentionPool(nn.Module):
    """Attention pooling by one learned query (MAP, arXiv:2106.04560), under the names of timm's AttentionPoolLatent."""

    def __init__(self, config: ViTConfig, attention: AttentionKind) -> None:
        super().__init__()
        self.attention, self.config = attention, config
        D = config.width
        self.latent = nn.Parameter(torch.zeros((1, 1, D)))
        self.q = Linear(D, D)
        self.kv = Linear(D, 2 * D)
        self.proj = Linear(D, D)
        self.norm = norm_layer(config)
        self.mlp = Mlp(config, config.pooling_mlp_dim)

    def forward(self, x_BND: Array, padding_B11M: Array | None = None) -> Array:
        (B, _, D), T = x_BND.shape, self.config.pooling_heads
        q_B1TK = self.q(torch.broadcast_to(self.latent, (B, 1, D))).unflatten(2, (T, D // T))
        k_BMTK, v_BMTK = self.kv(x_BND).unflatten(2, (2, T, D // T)).unbind(2)
        x_B1D = self.proj(attend(q_B1TK, k_BMTK, v_BMTK, self.attention, bias=padding_B11M).flatten(2))
        return (x_B1D + self.mlp(self.norm(x_B1D)))[:, 0]
