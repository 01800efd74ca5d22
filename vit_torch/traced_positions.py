"""Positions while torch traces a model (torch.compile, torch.export), where the image size may be a symbol.

The matrices and tables of vit_core.position_embeddings are then filled by torch operations, which become part of the
traced program, instead of by NumPy for one size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vit_core.position_embeddings import filled_matrix, filled_sincos2d

if TYPE_CHECKING:
    from vit_core.config import ViTConfig


def resampled(config: ViTConfig, grid: tuple[Any, Any], pos_hwD: Tensor) -> Tensor:
    """Learned positions [h, w, D] of the config's grid for another one: [y, x, D].

    One axis at a time: torch's einsum of three operands would ask for the sizes to choose an order.
    """
    rows, columns = (matrix.to(pos_hwD) for matrix in _axis_matrices(config, grid))
    return torch.einsum("xw,ywd->yxd", columns, torch.einsum("yh,hwd->ywd", rows, pos_hwD))


def sincos2d(config: ViTConfig, grid: tuple[Any, Any]) -> Tensor:
    """The float64 table [h * w, D] of vit_core's `sincos2d`."""
    table: Tensor = filled_sincos2d(grid, config.width, config.sincos_formula, torch)
    return table


def _axis_matrices(config: ViTConfig, grid: tuple[Any, Any]) -> list[Tensor]:
    """The float64 matrices [y, h] and [x, w] of vit_core's `axis_matrices`, from the config's grid to another.

    An equal grid gives identities there whatever the method, which is chosen here when the program runs.
    """
    rows, columns = (torch.arange(side) for side in grid)  # arrays: a comparison of symbols would fix their values
    equal = (rows[-1] + 1 == config.grid[0]) & (columns[-1] + 1 == config.grid[1])
    matrices = []
    for source, target, numbers in zip(config.grid, grid, (rows, columns), strict=True):
        same = numbers[:, None] == torch.arange(source)
        matrix = filled_matrix(config.position_resampling, source, target, torch)
        matrices.append(torch.where(equal, same.to(torch.float64), matrix))
    return matrices
