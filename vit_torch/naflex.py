"""Images of any aspect in one batch, in PyTorch. Read it beside vit_jax/naflex.py; vit_core/naflex.py makes batches.

model.py explains the names of arrays; S counts the pixels of a patch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor as Array

from vit_core.masks import POSITIONS, ROPE, of_layers
from vit_core.naflex import Patches
from vit_torch import rope, stacking
from vit_torch.layers import drop, padding_bias
from vit_torch.linear import linear
from vit_torch.masks import Masks, Positions

if TYPE_CHECKING:
    from vit_torch.model import ViT


def logits(model: ViT, batch: Patches, masks: Masks | None = None) -> Array:
    """Logits [B, classes] of a batch of patches (tensors); padding changes none of them. masks: in training."""
    x_BND, valid_BN = tokens(model, batch, masks)
    return model.forward_head(x_BND, valid_BN=valid_BN)


def tokens(model: ViT, batch: Patches, masks: Masks | None = None) -> tuple[Array, Array]:
    """All tokens [B, N, D] after the last block, and which of them are no padding: bool [B, N]."""
    x_BND, valid_BN, positions = embed(model, batch, masks)
    x_BND = stacking.run(model.blocks, x_BND, of_layers(masks), positions, model.remat)
    return model.norm(x_BND), valid_BN


def embed(model: ViT, batch: Patches, masks: Masks | None = None) -> tuple[Array, Array, Positions]:
    """All tokens [B, N, D] before the first block, which of them are no padding: bool [B, N], and what the blocks need
    to know about their positions."""
    config, weight_DCPQ = model.config, model.patch_embed.proj.weight
    kernel_DV = weight_DCPQ.permute(0, 2, 3, 1).flatten(1)
    x_BND = linear(batch.patches_BNV.to(weight_DCPQ.dtype), kernel_DV, model.patch_embed.proj.bias)
    x_BND = model.patch_embed.norm(x_BND)
    pos_1ND = model.position_embeddings(config.grid, x_BND)
    if config.position_embedding != "none":
        x_BND = x_BND + resampled(pos_1ND[0, config.prefix_positions :].unflatten(0, config.grid), batch)
    B = len(x_BND)
    prefix = [torch.broadcast_to(token_1ND, (B, *token_1ND.shape[1:])) for token_1ND in model.prefix(pos_1ND)]
    x_BND = model.norm_pre(drop(torch.cat([*prefix, x_BND], dim=1), POSITIONS, masks))
    valid_BN = F.pad(batch.valid_BN, (config.prefix_tokens, 0), value=True)
    positions: Positions = {"bias": padding_bias(valid_BN, x_BND.dtype)}
    if config.rope is not None:
        precise = x_BND.new_zeros((), dtype=torch.promote_types(x_BND.dtype, torch.float32))
        xy_BN2 = F.pad(batch.coordinates_BN2.to(precise), (0, 0, config.prefix_tokens, 0))
        positions |= rope.positions_at(config, xy_BN2, precise, (masks or {}).get(ROPE))
    return x_BND, valid_BN, positions


def normalized(batch: Patches, offset_C: Array, scale_C: Array, dtype: torch.dtype) -> Patches:
    """The batch with its pixels normalized in float32, as `dtype` (vit_core.preprocess.offset_and_scale)."""
    x_BNSC = batch.patches_BNV.unflatten(2, (-1, len(offset_C))).float()
    return batch._replace(patches_BNV=((x_BNSC - offset_C) * scale_C).flatten(2).to(dtype))


def resampled(pos_hwD: Array, batch: Patches) -> Array:
    """The position table for each image's own grid [B, N, D], at least in float32, rounded once."""
    precise = torch.promote_types(pos_hwD.dtype, torch.float32)
    rows_BNh, columns_BNw = batch.rows_BNh.to(precise), batch.columns_BNw.to(precise)
    pos_BNhD = torch.einsum("bnw,hwd->bnhd", columns_BNw, pos_hwD.to(precise))
    return torch.einsum("bnh,bnhd->bnd", rows_BNh, pos_BNhD).to(pos_hwD.dtype)
