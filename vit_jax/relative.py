"""Relative position bias in JAX. Read it beside vit_torch/relative.py.

vit_core/relative_positions.py has what both compute alike. model.py explains the names of arrays; R counts the values:
one for each displacement, and those of pairs with the class token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from vit_core import relative_positions
from vit_core.errors import InputError
from vit_jax.linear import linear
from vit_jax.masks import Positions

if TYPE_CHECKING:
    from vit_core.config import ViTConfig


class RelativeBias(nnx.Module):
    """The bias of the attention scores [T, N, M], by the displacement between patches."""

    def __init__(self, config: ViTConfig) -> None:
        self.config = config
        rows = relative_positions.table_rows(config.grid, config.class_token)
        if config.relative_bias == "table":
            self.relative_position_bias_table = nnx.Param(jnp.zeros((rows, config.heads)))
        else:
            self.mlp = RelativeMlp(config)

    def __call__(self, positions: Positions) -> Array:
        values_RT = (
            self.table(positions) if self.config.relative_bias == "table" else self.mlp(positions["displacements"])
        )
        return values_RT[positions["index"]].transpose(2, 0, 1)

    def table(self, positions: Positions) -> Array:
        """The table of the images' grid, resampled where it is not the config's, at least in float32."""
        table_RT, (h, w) = self.relative_position_bias_table[...], self.config.grid
        if "rows" not in positions:
            return table_RT
        rows, columns, R = positions["rows"], positions["columns"], (2 * h - 1) * (2 * w - 1)
        grid_yxT = table_RT[:R].reshape(2 * h - 1, 2 * w - 1, -1).astype(rows.dtype)
        resampled_yxT = jnp.einsum("Yy,Xx,yxt->YXt", rows, columns, grid_yxT)
        return jnp.concatenate([resampled_yxT.reshape(-1, self.config.heads).astype(table_RT.dtype), table_RT[R:]])


class RelativeMlp(nnx.Module):
    """The network that computes the bias of each head from a displacement (Swin v2, arXiv:2111.09883, section 3.3;
    timm's RelPosMlp in the mode "cr")."""

    def __init__(self, config: ViTConfig) -> None:
        self.fc1 = linear(2, config.relative_bias_dim)
        self.fc2 = linear(config.relative_bias_dim, config.heads)

    def __call__(self, displacements_R2: Array) -> Array:
        """Values [R + 1, T] of displacements; the last row, of tokens before the patches, is zero."""
        values_RT = self.fc2(jax.nn.relu(self.fc1(displacements_R2.astype(self.fc1.kernel.dtype))))
        return jnp.pad(values_RT, ((0, 1), (0, 0)))


def positions(config: ViTConfig, grid: tuple[int, int], dtype: Any, traced: bool) -> Positions:
    """The indices that the blocks need for a grid (h, w) of patches; empty without a relative bias. Raises InputError
    for a grid whose sides may be symbols."""
    if config.relative_bias == "none":
        return {}
    if traced:
        raise InputError("relative_bias: needs a fixed image size; export or compile it without other resolutions")
    dtype = jnp.promote_types(dtype, jnp.float32)
    of_table = config.relative_bias == "table"
    index_NM = relative_positions.displacement_index(grid, config.prefix_tokens, of_table)
    found = {"index": jnp.asarray(index_NM)}
    if not of_table:
        return {**found, "displacements": jnp.asarray(relative_positions.log_coordinates(grid), dtype)}
    if grid != config.grid:
        matrices = (relative_positions.table_matrix(old, new) for old, new in zip(config.grid, grid, strict=True))
        found["rows"], found["columns"] = (jnp.asarray(matrix, dtype) for matrix in matrices)
    return found
