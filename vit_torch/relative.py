"""Relative position bias in PyTorch. Read it beside vit_jax/relative.py.

vit_core/relative_positions.py has what both compute alike. model.py explains the names of arrays; R counts the values:
one for each displacement, and those of pairs with the class token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor as Array
from torch import nn

from vit_core import relative_positions
from vit_core.errors import InputError
from vit_torch.linear import Linear
from vit_torch.masks import Positions

if TYPE_CHECKING:
    from vit_core.config import ViTConfig


class RelativeBias(nn.Module):
    """The bias of the attention scores [T, N, M], by the displacement between patches."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        rows = relative_positions.table_rows(config.grid, config.class_token)
        if config.relative_bias == "table":
            self.relative_position_bias_table = nn.Parameter(torch.zeros((rows, config.heads)))
        else:
            self.mlp = RelativeMlp(config)

    def forward(self, positions: Positions) -> Array:
        values_RT = (
            self.table(positions) if self.config.relative_bias == "table" else self.mlp(positions["displacements"])
        )
        return values_RT[positions["index"]].permute(2, 0, 1)

    def table(self, positions: Positions) -> Array:
        """The table of the images' grid, resampled where it is not the config's, at least in float32."""
        table_RT, (h, w) = self.relative_position_bias_table, self.config.grid
        if "rows" not in positions:
            return table_RT
        rows, columns, R = positions["rows"], positions["columns"], (2 * h - 1) * (2 * w - 1)
        grid_yxT = table_RT[:R].reshape(2 * h - 1, 2 * w - 1, -1).to(rows.dtype)
        resampled_yxT = torch.einsum("Yy,Xx,yxt->YXt", rows, columns, grid_yxT)
        return torch.cat([resampled_yxT.reshape(-1, self.config.heads).to(table_RT.dtype), table_RT[R:]])


class RelativeMlp(nn.Module):
    """The network that computes the bias of each head from a displacement (Swin v2, arXiv:2111.09883, section 3.3;
    timm's RelPosMlp in the mode "cr")."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.fc1 = Linear(2, config.relative_bias_dim)
        self.fc2 = Linear(config.relative_bias_dim, config.heads)

    def forward(self, displacements_R2: Array) -> Array:
        """Values [R + 1, T] of displacements; the last row, of tokens before the patches, is zero."""
        values_RT = self.fc2(F.relu(self.fc1(displacements_R2.to(self.fc1.weight.dtype))))
        return F.pad(values_RT, (0, 0, 0, 1))


def positions(config: ViTConfig, grid: tuple[int, int], like: Array, traced: bool) -> Positions:
    """The indices that the blocks need for a grid (h, w) of patches; empty without a relative bias. Raises InputError
    for a grid whose sides may be symbols."""
    if config.relative_bias == "none":
        return {}
    if traced:
        raise InputError("relative_bias: needs a fixed image size; export or compile it without other resolutions")
    like = like.new_zeros((), dtype=torch.promote_types(like.dtype, torch.float32))
    of_table = config.relative_bias == "table"
    index_NM = relative_positions.displacement_index(grid, config.prefix_tokens, of_table)
    found = {"index": torch.as_tensor(index_NM.astype("int64"), device=like.device)}
    if not of_table:
        return {**found, "displacements": like.new_tensor(relative_positions.log_coordinates(grid))}
    if grid != config.grid:
        matrices = (relative_positions.table_matrix(old, new) for old, new in zip(config.grid, grid, strict=True))
        found["rows"], found["columns"] = (like.new_tensor(matrix) for matrix in matrices)
    return found
