"""Rotary positions in JAX. Read it beside vit_torch/rope.py; vit_core/rotations.py has the angles.

model.py explains the names of arrays; J counts the pairs of a head's values (K / 2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from vit_core import rotations
from vit_jax.masks import Positions

if TYPE_CHECKING:
    from vit_core.config import ViTConfig


class MixedRope(nnx.Module):
    """Learned frequencies [2, T, K / 2] of one block for both coordinates (rope-vit, arXiv:2403.13298)."""

    def __init__(self, config: ViTConfig) -> None:
        self.freqs = nnx.Param(jnp.zeros((2, config.heads, config.head_width // 2)))

    def __call__(self, positions: Positions) -> Positions:
        """cos and sin [..., N, T, K] of the tokens' coordinates, in their precision."""
        freqs_2TJ, xy_N2 = self.freqs[...].astype(positions["coordinates"].dtype), positions["coordinates"]
        angles_NTJ = xy_N2[..., 0, None, None] * freqs_2TJ[0] + xy_N2[..., 1, None, None] * freqs_2TJ[1]
        cos_NTK, sin_NTK = rotations.rotation("neighbours", angles_NTJ, jnp)
        return {"cos": cos_NTK, "sin": sin_NTK}


def positions(
    config: ViTConfig, grid: tuple[Any, Any], dtype: Any, augmentation_22: Array | None, traced: bool
) -> Positions:
    """The rotary tables that the blocks need for a grid (h, w) of patches, at least in float32; empty without rotary
    positions.

    augmentation_22: shift and scale of both coordinates (vit_core.masks.ROPE), if training draws them.
    traced: the sides may be symbols.
    """
    if config.rope is None:
        return {}
    dtype, prefix = jnp.promote_types(dtype, jnp.float32), config.prefix_tokens
    fixed = config.rope.frequencies == "axial"
    if fixed and not traced and augmentation_22 is None:
        sizes = grid, config.head_width, prefix, config.registers
        cos_N1K, sin_N1K = rotations.axial_rotation(config.rope, *sizes)
        return {"cos": jnp.asarray(cos_N1K, dtype), "sin": jnp.asarray(sin_N1K, dtype)}
    if traced:
        xy_N2 = rotations.coordinates(config.rope, grid, prefix, jnp)
    else:
        xy_N2 = jnp.asarray(rotations.coordinates(config.rope, grid, prefix), dtype)
    return positions_at(config, xy_N2, dtype, augmentation_22)


def positions_at(config: ViTConfig, xy_N2: Array, dtype: Any, augmentation_22: Array | None) -> Positions:
    """The rotary tables that the blocks need for tokens at coordinates [N, 2] or [B, N, 2]; tokens before the patches
    are not rotated."""
    rope, prefix = config.rope, config.prefix_tokens
    assert rope is not None
    if augmentation_22 is not None:
        shift_2, scale_2 = augmentation_22.astype(xy_N2.dtype)
        changed_N2 = (xy_N2[..., prefix:, :] + shift_2) * scale_2
        xy_N2 = jnp.concatenate([xy_N2[..., :prefix, :], changed_N2], axis=-2)
    if rope.frequencies == "mixed":
        return {"coordinates": xy_N2.astype(dtype)}
    angles_NJ = rotations.axial_angles(rope, xy_N2, config.head_width, jnp)
    angles_NJ = rotations.with_registers(rope, angles_NJ, prefix, config.registers, jnp)
    cos_NK, sin_NK = rotations.rotation(rope.pairs, angles_NJ, jnp)
    return {"cos": cos_NK[..., None, :].astype(dtype), "sin": sin_NK[..., None, :].astype(dtype)}


def rotate(x_BNTK: Array, rotation: Positions, pairs: str) -> Array:
    """Queries or keys, rotated by the angles of their tokens in the angles' precision, and rounded once."""
    if pairs == "halves":
        swapped_BNTK = jnp.roll(x_BNTK, x_BNTK.shape[-1] // 2, axis=-1)
    else:
        swapped_BNTK = jnp.stack([x_BNTK[..., 1::2], x_BNTK[..., ::2]], axis=-1).reshape(x_BNTK.shape)
    return (x_BNTK * rotation["cos"] + swapped_BNTK * rotation["sin"]).astype(x_BNTK.dtype)
