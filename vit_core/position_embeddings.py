"""Position embeddings for another image size: the seven published resamplings, and the two sine-cosine formulas.

Every resampling in use is linear and separable: rows and columns of the grid are each multiplied by a matrix [target,
source] that depends on the sizes only. So a method only defines that matrix, which is computed once, in float64; the
JAX and the PyTorch model then apply the same numbers. The methods differ only in four choices (`_Rule`).

    method                 lineage that needs it
    zoom_linear            google-research/vision_transformer and big_vision (scipy.ndimage.zoom, order=1)
    bilinear               torch F.interpolate(mode="bilinear"), its defaults
    bilinear_antialias     torch antialias=True, jax.image.resize "linear", PIL
    bicubic_antialias      timm, jax.image.resize "cubic", torch antialias=True, DINOv2 with registers
    bicubic                torch F.interpolate(mode="bicubic"), its defaults: DeiT, MAE, DINOv2 in transformers
    bicubic_align_corners  torchvision
    dinov2                 facebookresearch/dinov2 without registers (interpolate_offset=0.1)
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from vit_core.errors import InputError, unknown_name

Method = Literal[
    "zoom_linear",
    "bilinear",
    "bilinear_antialias",
    "bicubic_antialias",
    "bicubic",
    "bicubic_align_corners",
    "dinov2",
]
METHODS: tuple[str, ...] = get_args(Method)

SincosFormula = Literal["big_vision", "mae"]


Array = Any
"""An array of NumPy, or of the library `xp` that is used instead (torch, while it traces a model)."""


def _linear(distance: Array, xp: Any) -> Array:
    return xp.clip(1.0 - xp.abs(distance), 0.0, None)


def _cubic(distance: Array, xp: Any, a: float) -> Array:
    """Keys' cubic convolution kernel; `a` is its slope at distance 1."""
    x = xp.abs(distance)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return xp.where(x <= 1, near, xp.where(x < 2, far, 0.0))


class _Rule(NamedTuple):
    kernel: Callable[[Array, Any], Array]
    corners: bool = False  # True: first and last points coincide; False: the outer edges of the cells coincide
    antialias: bool = False  # True: widen the kernel when shrinking, and renormalize what is left at the border
    offset: float = 0.0  # added to the target size, in the step between samples only


_RULES: dict[str, _Rule] = {
    "zoom_linear": _Rule(_linear, corners=True),
    "bilinear": _Rule(_linear),
    "bilinear_antialias": _Rule(_linear, antialias=True),
    "bicubic_antialias": _Rule(partial(_cubic, a=-0.5), antialias=True),
    "bicubic": _Rule(partial(_cubic, a=-0.75)),
    "bicubic_align_corners": _Rule(partial(_cubic, a=-0.75), corners=True),
    "dinov2": _Rule(partial(_cubic, a=-0.75), offset=0.1),
}


@lru_cache(maxsize=256)
def resampling_matrix(method: str, source: int, target: int) -> np.ndarray:
    """The matrix that resamples one axis: float64 [target, source], read-only, each row summing to one.

    `source == target` gives the identity exactly, but for "dinov2": the published code moves an axis of unchanged
    size too (by the step n / (n + 0.1)) when the other axis changes. A single axis cannot know that;
    `axis_matrices` does.

    For "zoom_linear" the last row always picks the last point (unless target is 1: then the first). scipy 1.17.1 loses
    it for some sizes (24 -> 22, 32 -> 16): its last coordinate rounds to just beyond the grid, where zoom's
    mode="constant" gives zeros. The correct value is used here.

    Raises InputError for an unknown method or a size below one.
    """
    if method not in _RULES:
        raise unknown_name("position-embedding method", method, METHODS)
    if source < 1 or target < 1:
        raise InputError(f"a position grid needs sizes of at least 1, found {source} -> {target}")
    matrix: np.ndarray = filled_matrix(method, source, target, np)
    matrix.flags.writeable = False  # the cache hands the same array to everyone
    return matrix


def filled_matrix(method: str, source: int, target: Any, xp: Any) -> Array:
    """The matrix of `resampling_matrix`, for sizes that were checked, by NumPy or by torch: `xp`.

    target: an integer, or a symbol that stands for one while torch traces a model; nothing here asks for its value.
    """
    rule, numbers = _RULES[method], xp.arange(target, dtype=xp.float64)
    size = numbers[-1] + 1.0  # the target as an array
    if rule.corners:
        centers = numbers * ((source - 1) / xp.clip(size - 1, 1.0, None))  # a single point is the first one
    else:
        centers = (numbers + 0.5) * (source / (size + rule.offset)) - 0.5

    if rule.antialias:
        points = xp.arange(source, dtype=xp.float64)
        matrix = rule.kernel((points - centers[:, None]) / xp.clip(source / size, 1.0, None), xp)
        return matrix / matrix.sum(axis=1, keepdims=True)
    # A kernel reaches 2 points beyond a center, and a center half a point beyond the grid: 3 cover both.
    # Weights that fall outside go to the border point, as if it were repeated.
    points = xp.arange(-3, source + 3, dtype=xp.float64)
    repeated = xp.clip(points, 0, source - 1)[:, None] == xp.arange(source, dtype=xp.float64)
    return rule.kernel(points - centers[:, None], xp) @ xp.asarray(repeated, dtype=xp.float64)


def axis_matrices(method: str, source: tuple[int, int], target: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The matrices for rows and columns, float64 [y, h] and [x, w], for a grid (h, w) that becomes (y, x).

    The resampled grid is einsum("yh,xw,hwD->yxD", rows, columns, grid). An equal grid gives two identities, with
    every method: all the published code returns early there. Raises InputError as `resampling_matrix` does.
    """
    rows, columns = (resampling_matrix(method, old, new) for old, new in zip(source, target, strict=True))
    if tuple(source) == tuple(target):
        return np.eye(source[0]), np.eye(source[1])
    return rows, columns


def resample_grid(grid_hwD: np.ndarray, size: tuple[int, int], method: str) -> np.ndarray:
    """Resamples a grid [h, w, D] to [y, x, D] for `size` (y, x): computed in float64, returned in the input's dtype.

    An equal grid is returned unchanged. Raises InputError for another number of axes, and as `resampling_matrix` does.
    """
    if grid_hwD.ndim != 3:
        raise InputError(f"a position grid has 3 axes [h, w, D], found shape {grid_hwD.shape}")
    height, width, _ = grid_hwD.shape
    rows, columns = axis_matrices(method, (height, width), size)
    if (height, width) == tuple(size):
        return grid_hwD
    # One axis at a time: the product over both at once would cost h * w per output instead of h + w.
    half_ywD = np.einsum("yh,hwD->ywD", rows, grid_hwD.astype(np.float64), optimize=True)
    return np.einsum("xw,ywD->yxD", columns, half_ywD, optimize=True).astype(grid_hwD.dtype)


def resample(
    pos_1ND: np.ndarray, source: tuple[int, int], target: tuple[int, int], method: str, prefix: int = 0
) -> np.ndarray:
    """Resamples position embeddings [1, prefix + h * w, D] of the grid `source` (h, w) to [1, prefix + y * x, D] of the
    grid `target` (y, x), in the input's dtype.

    The first `prefix` tokens (class token, registers) are not part of the grid and are not changed; the others are the
    grid in row-major order. Raises InputError for a wrong number of tokens, and as `resample_grid` does.
    """
    height, width = source
    expected = prefix + height * width
    if prefix < 0 or pos_1ND.ndim != 3 or pos_1ND.shape[:2] != (1, expected):
        raise InputError(
            f"position embeddings for {prefix} prefix tokens and a {height}x{width} grid: "
            f"expected shape [1, {expected}, D], found {list(pos_1ND.shape)}"
        )
    dim = pos_1ND.shape[2]
    grid = resample_grid(pos_1ND[0, prefix:].reshape(height, width, dim), target, method)
    return np.concatenate([pos_1ND[:, :prefix], grid.reshape(1, -1, dim)], axis=1)


@lru_cache(maxsize=16)
def sincos2d(grid: tuple[int, int], width: int, formula: SincosFormula) -> np.ndarray:
    """Fixed sine-cosine position embeddings of a `grid` (h, w): float64 [h * w, D], row-major, read-only.

    Each row is [sin x, cos x, sin y, cos y], a quarter of the width each, x the column and y the row: in both
    formulas, although MAE's code names its halves the other way round. They differ in the frequencies only, which
    fall from 1 toward 1/10000 as a power: "mae" (facebookresearch/mae) divides the exponent by width/4, so that
    1/10000 is never reached; "big_vision" (google-research/big_vision, after MoCo v3) by width/4 - 1, so that the last
    frequency is 1/10000.

    Raises InputError for an unknown formula, a grid size below one, or a width that is no positive multiple of 4
    ("big_vision": of at least 8, as width 4 would divide by zero).
    """
    if formula not in get_args(SincosFormula):
        raise unknown_name("sine-cosine formula", formula, get_args(SincosFormula))
    if min(grid) < 1:
        raise InputError(f"a position grid needs sizes of at least 1, found {grid[0]}x{grid[1]}")
    smallest = 8 if formula == "big_vision" else 4
    if width % 4 or width < smallest:
        raise InputError(
            f"sine-cosine position embeddings ('{formula}') need a width that is a multiple of 4 "
            f"and at least {smallest}, found {width}"
        )
    table: np.ndarray = filled_sincos2d(grid, width, formula, np)
    table.flags.writeable = False
    return table


def is_mae_table(pos_1ND: np.ndarray, grid: tuple[int, int], before: int) -> bool:
    """Whether a table of positions [1, before + h * w, D] contains the values of MAE's formula, up to the rounding of
    its type (at least float32's), and zeros for the tokens before the grid."""
    width = pos_1ND.shape[2]
    if width % 4:
        return False
    expected_ND = np.pad(sincos2d(grid, width, "mae"), [(before, 0), (0, 0)])
    # The values are at most 1. Half an epsilon is their rounding, and as much the error of the formula as computed.
    own = {"bfloat16": 2.0**-8, "float16": 2.0**-10}.get(pos_1ND.dtype.name, 0.0)
    bound = max(2.0**-23, own)
    return bool((np.abs(pos_1ND[0].astype(np.float64) - expected_ND) <= bound).all())


def filled_sincos2d(grid: tuple[Any, Any], width: int, formula: SincosFormula, xp: Any) -> Array:
    """The table of `sincos2d`, for values that were checked, by NumPy or by torch: `xp`; see `filled_matrix`."""
    bands = width // 4
    exponents = xp.arange(bands, dtype=xp.float64) / (bands - 1 if formula == "big_vision" else bands)
    frequencies = 10_000.0**-exponents
    rows, columns = (xp.arange(size, dtype=xp.float64)[:, None] * frequencies for size in grid)
    y, x = rows[:, None] + 0.0 * columns[None], 0.0 * rows[:, None] + columns[None]
    table = xp.concatenate([xp.sin(x), xp.cos(x), xp.sin(y), xp.cos(y)], axis=2)
    return table.reshape(-1, 4 * bands)
