"""Images of any aspect in one batch, in JAX. Read it beside vit_torch/naflex.py; vit_core/naflex.py makes batches.

model.py explains the names of arrays; S counts the pixels of a patch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from jax import Array

from vit_core.masks import POSITIONS, ROPE, of_layers
from vit_core.naflex import Patches
from vit_jax import rope, stacking
from vit_jax.layers import drop, padding_bias
from vit_jax.masks import Masks, Positions
from vit_jax.sharding import constrain

if TYPE_CHECKING:
    from vit_jax.model import ViT


def logits(model: ViT, batch: Patches, masks: Masks | None = None) -> Array:
    """Logits [B, classes] of a batch of patches (arrays); padding changes none of them. masks: in training."""
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
    config, kernel_PQCD = model.config, model.patch_embed.proj.kernel[...]
    kernel_VD = kernel_PQCD.reshape(-1, kernel_PQCD.shape[-1])
    x_BND, bias = batch.patches_BNV.astype(kernel_VD.dtype) @ kernel_VD, model.patch_embed.proj.bias
    x_BND = model.patch_embed.norm(x_BND if bias is None else x_BND + bias[...])
    pos_1ND = model.position_embeddings(config.grid, x_BND.dtype)
    if config.position_embedding != "none":
        x_BND = x_BND + resampled(pos_1ND[0, config.prefix_positions :].reshape(*config.grid, -1), batch)
    B = len(x_BND)
    prefix = [jnp.broadcast_to(token_1ND, (B, *token_1ND.shape[1:])) for token_1ND in model.prefix(pos_1ND)]
    x_BND = drop(jnp.concatenate([*prefix, x_BND], axis=1), POSITIONS, masks)
    x_BND = model.norm_pre(constrain(x_BND, "batch tokens width"))
    valid_BN = jnp.pad(batch.valid_BN, ((0, 0), (config.prefix_tokens, 0)), constant_values=True)
    positions: Positions = {"bias": padding_bias(valid_BN, x_BND.dtype)}
    if config.rope is not None:
        precise = jnp.promote_types(x_BND.dtype, jnp.float32)
        xy_BN2 = jnp.pad(batch.coordinates_BN2.astype(precise), ((0, 0), (config.prefix_tokens, 0), (0, 0)))
        positions |= rope.positions_at(config, xy_BN2, precise, (masks or {}).get(ROPE))
    return x_BND, valid_BN, positions


def normalized(batch: Patches, offset_C: Any, scale_C: Any, dtype: Any) -> Patches:
    """The batch with its pixels normalized in float32, as `dtype` (vit_core.preprocess.offset_and_scale)."""
    x_BNV = batch.patches_BNV
    x_BNSC = x_BNV.reshape(*x_BNV.shape[:2], -1, len(offset_C)).astype(jnp.float32)
    return batch._replace(patches_BNV=((x_BNSC - offset_C) * scale_C).reshape(x_BNV.shape).astype(dtype))


def resampled(pos_hwD: Array, batch: Patches) -> Array:
    """The position table for each image's own grid [B, N, D], at least in float32, rounded once."""
    precise = jnp.promote_types(pos_hwD.dtype, jnp.float32)
    rows_BNh, columns_BNw = jnp.asarray(batch.rows_BNh, precise), jnp.asarray(batch.columns_BNw, precise)
    pos_BNhD = jnp.einsum("bnw,hwd->bnhd", columns_BNw, pos_hwD.astype(precise))
    return jnp.einsum("bnh,bnhd->bnd", rows_BNh, pos_BNhD).astype(pos_hwD.dtype)
