"""Positions while jax.export traces a model whose image size is a symbol.

The matrices and tables of vit_core.position_embeddings are then filled by JAX operations, which become part of the
exported program, instead of by NumPy for one size. 64-bit types must be enabled, as they are computed in float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from jax import Array
from jax.export import is_symbolic_dim

from vit_core.position_embeddings import filled_matrix, filled_sincos2d

if TYPE_CHECKING:
    from vit_core.config import ViTConfig


def is_traced(grid: tuple[Any, Any]) -> bool:
    """Whether a side of a grid is a symbol."""
    return any(is_symbolic_dim(side) for side in grid)


def resampled(config: ViTConfig, grid: tuple[Any, Any], pos_hwD: Array) -> Array:
    """Learned positions [h, w, D] of the config's grid for another one: [y, x, D]."""
    rows, columns = (matrix.astype(pos_hwD.dtype) for matrix in _axis_matrices(config, grid))
    return jnp.einsum("xw,ywd->yxd", columns, jnp.einsum("yh,hwd->ywd", rows, pos_hwD))


def sincos2d(config: ViTConfig, grid: tuple[Any, Any]) -> Array:
    """The float64 table [h * w, D] of vit_core's `sincos2d`."""
    table: Array = filled_sincos2d(grid, config.width, config.sincos_formula, jnp)
    return table


def _axis_matrices(config: ViTConfig, grid: tuple[Any, Any]) -> list[Array]:
    """The float64 matrices [y, h] and [x, w] of vit_core's `axis_matrices`, from the config's grid to another.

    An equal grid gives identities there whatever the method, which is chosen here when the program runs.
    """
    rows, columns = (jnp.arange(side) for side in grid)
    equal = (rows[-1] + 1 == config.grid[0]) & (columns[-1] + 1 == config.grid[1])
    matrices = []
    for source, target, numbers in zip(config.grid, grid, (rows, columns), strict=True):
        same = (numbers[:, None] == jnp.arange(source)).astype(jnp.float64)
        matrices.append(jnp.where(equal, same, filled_matrix(config.position_resampling, source, target, jnp)))
    return matrices
