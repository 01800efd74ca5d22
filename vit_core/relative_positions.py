"""Relative position bias: a term of the attention scores that depends on the displacement between two patches; computed
here for both twins.

A grid (h, w) has (2 h - 1) (2 w - 1) displacements between patches. "table" learns a value for each (BEiT,
arXiv:2106.08254; Swin, arXiv:2103.14030), with three more for pairs with the class token; "mlp" computes it from the
displacement by a small network (Swin v2, arXiv:2111.09883, in timm's form "cr"), and has zeros for other tokens.
"""

from functools import lru_cache
from math import isqrt

import numpy as np

Grid = tuple[int, int]


def displacements(grid: Grid) -> int:
    """Number of displacements between patches of a grid."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1)


def square_of(number: int) -> Grid | None:
    """The square grid with this number of displacements between its patches; None if there is no such grid."""
    side = isqrt(max(number, 0))
    return ((side + 1) // 2, (side + 1) // 2) if side % 2 and side * side == number else None


def table_rows(grid: Grid, class_token: bool) -> int:
    """Rows of a learned table: one for each displacement, and three for pairs with the class token."""
    return displacements(grid) + 3 * class_token


@lru_cache(maxsize=16)
def displacement_index(grid: Grid, prefix: int, of_table: bool) -> np.ndarray:
    """For each pair of tokens [N, M] the row of its value, int32, read-only: displacements first, in the order of rows
    and columns, then those of pairs with the class token (from it, to it, with itself) for a table, or one row of zeros
    for every token before the patches."""
    y, x = (axis.ravel() for axis in np.mgrid[: grid[0], : grid[1]])
    down, right = y[:, None] - y + grid[0] - 1, x[:, None] - x + grid[1] - 1
    patches_NM = down * (2 * grid[1] - 1) + right
    index = np.full((prefix + len(y), prefix + len(y)), displacements(grid), np.int32)
    index[prefix:, prefix:] = patches_NM
    if of_table and prefix:
        index[1:, 0] += 1
        index[0, 0] += 2
    index.flags.writeable = False
    return index


@lru_cache(maxsize=16)
def log_coordinates(grid: Grid) -> np.ndarray:
    """Displacements [R, 2] (down, right) as inputs of the network: sign(d) log(1 + |d|), float64, read-only."""
    down, right = np.mgrid[1 - grid[0] : grid[0], 1 - grid[1] : grid[1]].astype(np.float64)
    coordinates = np.stack([down.ravel(), right.ravel()], 1)
    found = np.sign(coordinates) * np.log1p(np.abs(coordinates))
    found.flags.writeable = False
    return found


@lru_cache(maxsize=64)
def table_matrix(source: int, target: int) -> np.ndarray:
    """The matrix [2 target - 1, 2 source - 1] that resamples one axis of a table from a side of the grid to another,
    float64, read-only.

    As BEiT does: the source's values are put at distances 1, 1 + q, 1 + q + q^2, ... with q chosen so that the last one
    is the largest of the target; between them values are linear (as in timm; Microsoft's code has splines).
    """
    points, wanted = _geometric_points(source, target), np.arange(1 - target, target, dtype=np.float64)
    matrix = np.stack([np.interp(wanted, points, row) for row in np.eye(2 * source - 1)], 1)
    matrix.flags.writeable = False
    return matrix


def _geometric_points(source: int, target: int) -> np.ndarray:
    """2 source - 1 points around 0, at distances 1, 1 + q, 1 + q + q^2, ...; q is searched for within BEiT's limits."""
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        q = (low + high) / 2
        low, high = (low, q) if np.sum(q ** np.arange(source - 1)) > target - 1 else (q, high)
    distances = np.cumsum(q ** np.arange(source - 1))
    return np.concatenate([-distances[::-1], [0.0], distances])


def resampled_table(table_RT: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """A table [R, T] of a grid for another one; the rows of pairs with the class token stay. Float64 inside."""
    if source == target:
        return table_RT
    grid_yxT = table_RT[: displacements(source)].reshape(2 * source[0] - 1, 2 * source[1] - 1, -1).astype(np.float64)
    rows, columns = (table_matrix(old, new) for old, new in zip(source, target, strict=True))
    resampled_RT = np.einsum("Yy,Xx,yxT->YXT", rows, columns, grid_yxT, optimize=True).reshape(
        displacements(target), -1
    )
    return np.concatenate([resampled_RT.astype(table_RT.dtype), table_RT[displacements(source) :]])
