"""Rotary positions in PyTorch. Read it beside vit_jax/rope.py; vit_core/rotations.py has the angles.

model.py explains the names of arrays; J counts the pairs of a head's values (K / 2).
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor as Array
from torch import nn

from vit_core import rotations
from vit_torch.masks import Positions

if TYPE_CHECKING:
    from vit_core.config import ViTConfig
    from vit_core.rope import Rope


class MixedRope(nn.Module):
    """Learned frequencies [2, T, K / 2] of one block for both coordinates (rope-vit, arXiv:2403.13298)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.freqs = nn.Parameter(torch.zeros((2, config.heads, config.head_width // 2)))

    def forward(self, positions: Positions) -> Positions:
        """cos and sin [..., N, T, K] of the tokens' coordinates, in their precision."""
        freqs_2TJ, xy_N2 = self.freqs.to(positions["coordinates"].dtype), positions["coordinates"]
        angles_NTJ = xy_N2[..., 0, None, None] * freqs_2TJ[0] + xy_N2[..., 1, None, None] * freqs_2TJ[1]
        cos_NTK, sin_NTK = rotations.rotation("neighbours", angles_NTJ, torch)
        return {"cos": cos_NTK, "sin": sin_NTK}


def positions(
    config: ViTConfig, grid: tuple[Any, Any], like: Array, augmentation_22: Array | None, traced: bool
) -> Positions:
    """The rotary tables that the blocks need for a grid (h, w) of patches, at least in float32; empty without rotary
    positions.

    augmentation_22: shift and scale of both coordinates (vit_core.masks.ROPE), if training draws them.
    traced: the sides may be symbols.
    """
    if config.rope is None:
        return {}
    like, prefix = like.new_zeros((), dtype=torch.promote_types(like.dtype, torch.float32)), config.prefix_tokens
    fixed = config.rope.frequencies == "axial"
    if fixed and not traced and augmentation_22 is None:
        # What a program is traced with must not be kept: it may stand for a value, and a program has its own copy.
        plain = type(like) is Array and not torch.compiler.is_compiling()
        tables = kept_tables if plain else kept_tables.__wrapped__
        sizes = grid, config.head_width, prefix, config.registers
        cos_N1K, sin_N1K = tables(config.rope, *sizes, like.dtype, like.device)
        return {"cos": cos_N1K, "sin": sin_N1K}
    if traced:
        xy_N2 = rotations.coordinates(config.rope, grid, prefix, torch).to(like.device)
    else:
        xy_N2 = like.new_tensor(rotations.coordinates(config.rope, grid, prefix))
    return positions_at(config, xy_N2, like, augmentation_22)


@lru_cache(maxsize=16)
def kept_tables(
    rope: Rope,
    grid: tuple[int, int],
    head_dim: int,
    prefix: int,
    registers: int,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Array, Array]:
    """cos and sin of vit_core.rotations.axial_rotation on a device, where they stay: a copy at each forward pass would
    have the host wait for a GPU."""
    with torch.inference_mode(False):  # otherwise training could not use what evaluation has made
        like = torch.zeros((), dtype=dtype, device=device)
        cos_N1K, sin_N1K = rotations.axial_rotation(rope, grid, head_dim, prefix, registers)
        return like.new_tensor(cos_N1K), like.new_tensor(sin_N1K)


def positions_at(config: ViTConfig, xy_N2: Array, like: Array, augmentation_22: Array | None) -> Positions:
    """The rotary tables that the blocks need for tokens at coordinates [N, 2] or [B, N, 2]; tokens before the patches
    are not rotated."""
    rope, prefix = config.rope, config.prefix_tokens
    assert rope is not None
    if augmentation_22 is not None:
        shift_2, scale_2 = augmentation_22.to(xy_N2)
        changed_N2 = (xy_N2[..., prefix:, :] + shift_2) * scale_2
        xy_N2 = torch.cat([xy_N2[..., :prefix, :], changed_N2], dim=-2)
    if rope.frequencies == "mixed":
        return {"coordinates": xy_N2.to(like)}
    angles_NJ = rotations.axial_angles(rope, xy_N2, config.head_width, torch)
    angles_NJ = rotations.with_registers(rope, angles_NJ, prefix, config.registers, torch)
    cos_NK, sin_NK = rotations.rotation(rope.pairs, angles_NJ, torch)
    return {"cos": cos_NK[..., None, :].to(like), "sin": sin_NK[..., None, :].to(like)}


def rotate(x_BNTK: Array, rotation: Positions, pairs: str) -> Array:
    """Queries or keys, rotated by the angles of their tokens in the angles' precision, and rounded once."""
    if pairs == "halves":
        swapped_BNTK = x_BNTK.roll(x_BNTK.shape[-1] // 2, dims=-1)
    else:
        swapped_BNTK = torch.stack([x_BNTK[..., 1::2], x_BNTK[..., ::2]], dim=-1).flatten(-2)
    return torch.addcmul(x_BNTK * rotation["cos"], swapped_BNTK, rotation["sin"]).to(x_BNTK.dtype)
