"""The layers of the blocks, in a separate file so that model.py describes only the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor as Array
from torch import nn

from vit_torch.masks import Masks

if TYPE_CHECKING:
    from vit_core.config import ViTConfig


def norm_layer(config: ViTConfig, size: int | None = None) -> nn.Module:
    """The norm of a config over the last axis, of `size` values (by default the width)."""
    layer = nn.LayerNorm if config.norm == "layer_norm" else nn.RMSNorm
    return layer(size or config.width, eps=config.norm_epsilon)


def drop(x: Array, site: str, masks: Masks | None) -> Array:
    """x times the mask of a site, if there is one; a mask with the batch axis alone drops whole examples."""
    if masks is None or site not in masks:
        return x
    mask = masks[site]
    return x * mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim)).to(x.dtype)


def padding_bias(valid_BM: Array, dtype: torch.dtype) -> Array:
    """The bias of the attention scores [B, 1, 1, M] that gives padding no weight."""
    return torch.zeros_like(valid_BM, dtype=dtype).masked_fill(~valid_BM, -torch.inf)[:, None, None]


def mean_of_tokens(x_BND: Array, valid_BN: Array | None) -> Array:
    """Mean [B, D] of the tokens that are not padding."""
    if valid_BN is None:
        return x_BND.mean(dim=1)
    weights_BN = valid_BN.to(x_BND.dtype)
    return torch.einsum("bn,bnd->bd", weights_BN, x_BND) / weights_BN.sum(dim=1, keepdim=True)


def mean_of_heads(heads: list[tuple[Array, Array]], pre_logits: bool = False) -> Array:
    """Mean of the logits [B, L] that `forward_heads` returns; pre_logits: of the heads' inputs [B, features]."""
    x_BL, *others = (head[0 if pre_logits else 1] for head in heads)
    for other_BL in others:
        x_BL = (x_BL + other_BL) / 2
    return x_BL


class LayerScale(nn.Module):
    """Multiplies the output [B, N, D] of a residual branch by a learned factor for each channel (arXiv:2103.17239)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(config.width))

    def forward(self, x_BND: Array) -> Array:
        return x_BND * self.gamma
