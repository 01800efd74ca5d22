"""The angles of rotary positions, the same numbers for both twins; vit_core/rope.py has their variants.

The schema is imported for type checking only, so that importing a twin does not import pydantic. N counts
tokens, T heads, K the values of a head, J its pairs of values (K / 2), and R registers.
"""

from __future__ import annotations

from functools import lru_cache
from math import isqrt
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

if TYPE_CHECKING:
    from vit_core.rope import Rope

Array = Any
"""An array of NumPy, or of the library `xp` that is used instead (JAX or torch)."""


def coordinates(rope: Rope, grid: tuple[Any, Any], prefix: int, xp: Any = np) -> Array:
    """Coordinates [prefix + h * w, 2] of all tokens, float64, row-major, in the order `rope.axes`; tokens before the
    patches have zeros.

    grid: (h, w) patches; symbols too, while a program is traced by `xp`.
    """
    y, x = (_axis(rope, grid, axis, xp) for axis in (0, 1))
    y_hw, x_hw = y[:, None] + 0.0 * x[None], 0.0 * y[:, None] + x[None]
    first, second = (y_hw, x_hw) if rope.axes == "yx" else (x_hw, y_hw)
    patches_N2 = xp.stack([first.reshape(-1), second.reshape(-1)], 1)
    return xp.concatenate([xp.zeros((prefix, 2), dtype=xp.float64), patches_N2], 0)


def _axis(rope: Rope, grid: tuple[Any, Any], axis: int, xp: Any) -> Array:
    numbers = [xp.arange(side, dtype=xp.float64) for side in grid]
    sides = [one[-1] + 1.0 for one in numbers]  # arrays, so that symbols are not asked for their values
    if rope.coordinates == "centered":
        smaller, larger = xp.minimum(*sides), xp.maximum(*sides)
        side = {"separate": sides[axis], "min": smaller, "max": larger}[rope.normalize]
        return 2.0 * ((numbers[axis] + 0.5 + rope.offset) / side) - 1.0
    shifted = numbers[axis] + rope.offset
    return shifted if rope.reference is None else shifted / sides[axis] * rope.reference[axis]


@lru_cache(maxsize=64)
def frequencies(rope: Rope, head_dim: int) -> np.ndarray:
    """Fixed frequencies [K / 4], float64, read-only, by which coordinates are multiplied (by 2 pi too if centered)."""
    bands = head_dim // 4
    periods = np.float64(rope.base) ** (np.arange(bands) / bands)
    if rope.periods != "float64":
        periods = periods.astype(ml_dtypes.bfloat16 if rope.periods == "bfloat16" else np.float32).astype(np.float64)
    found = (2 * np.pi if rope.coordinates == "centered" else 1.0) / periods
    found.flags.writeable = False
    return found


def rotation(pairs: str, angles: Array, xp: Any = np) -> tuple[Array, Array]:
    """cos and sin [..., K] of angles [..., K / 2], one for each pair, laid out as the values of a head (Rope.pairs).

    The sine for the first value of a pair has a minus sign: values x become x cos + y sin, where y is x with the two
    values of each pair swapped.
    """
    cos, sin = xp.cos(angles), xp.sin(angles)
    return _spread(pairs, cos, cos, xp), _spread(pairs, -sin, sin, xp)


def _spread(pairs: str, first: Array, second: Array, xp: Any) -> Array:
    """The first and second values of all pairs, laid out as the values of a head."""
    if pairs == "halves":
        return xp.concatenate([first, second], -1)
    return xp.stack([first, second], -1).reshape(*first.shape[:-1], 2 * first.shape[-1])


def axial_angles(rope: Rope, coordinates_N2: Array, head_dim: int, xp: Any = np) -> Array:
    """Angles [..., N, K / 2] of coordinates [..., N, 2] by the fixed frequencies: first one axis's pairs, then the
    other's."""
    device = {"device": coordinates_N2.device} if hasattr(coordinates_N2, "new_tensor") else {}  # torch must be told
    bands = xp.asarray(frequencies(rope, head_dim).copy(), dtype=coordinates_N2.dtype, **device)
    first, second = coordinates_N2[..., :1] * bands, coordinates_N2[..., 1:] * bands
    return xp.concatenate([first, second], -1)


def with_registers(rope: Rope, angles_NJ: Array, prefix: int, registers: int, xp: Any = np) -> Array:
    """Angles [..., N, K / 2] with those of the registers, the last of `prefix` tokens, where they are rotated."""
    if rope.register_base is None:
        return angles_NJ
    own, side = rope.replace(base=rope.register_base), isqrt(registers)
    coordinates_R2 = np.stack(np.divmod(np.arange(registers, dtype=np.float64), side), 1)
    table_RJ = axial_angles(
        own, coordinates_R2 if rope.axes == "yx" else coordinates_R2[:, ::-1], 2 * angles_NJ.shape[-1]
    )
    device = {"device": angles_NJ.device} if hasattr(angles_NJ, "new_tensor") else {}  # torch must be told
    own_RJ = xp.asarray(table_RJ, dtype=angles_NJ.dtype, **device)
    own_RJ = xp.broadcast_to(own_RJ, (*angles_NJ.shape[:-2], *own_RJ.shape))
    return xp.concatenate([angles_NJ[..., : prefix - registers, :], own_RJ, angles_NJ[..., prefix:, :]], -2)


@lru_cache(maxsize=16)
def axial_rotation(
    rope: Rope, grid: tuple[int, int], head_dim: int, prefix: int, registers: int
) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin [prefix + h * w, 1, K] of a grid (h, w) by the fixed frequencies, float64, read-only; the axis of
    length 1 is that of the heads."""
    angles = with_registers(rope, axial_angles(rope, coordinates(rope, grid, prefix), head_dim), prefix, registers)
    cos, sin = (table[:, None] for table in rotation(rope.pairs, angles))
    cos.flags.writeable = sin.flags.writeable = False
    return cos, sin


def mixed_start(base: float, head_dim: int, uniform_T1: Array, xp: Any = np) -> Array:
    """Initial learned frequencies [2, T, K / 2] of a block: the fixed ones, rotated by a random angle in each head.

    uniform_T1: a number from [0, 1) for each head.
    """
    bands = xp.asarray(float(base) ** -(np.arange(head_dim // 4) / (head_dim // 4)), dtype=uniform_T1.dtype)
    angles = [2 * np.pi * uniform_T1, 2 * np.pi * uniform_T1 + np.pi / 2]
    return xp.stack([xp.concatenate([bands * turn(angle) for angle in angles], -1) for turn in (xp.cos, xp.sin)], 0)


def coordinate_change(rope: Rope, uniform_5: Array, xp: Any = np) -> Array:
    """One training step's shift and scale [2, 2] of the two coordinates, from five numbers uniform in [-1, 1]: a
    coordinate becomes (coordinate + shift) * scale. In Meta's order: shift, jitter, rescale."""
    jitter, rescale = float(np.log(rope.jitter or 1.0)), float(np.log(rope.rescale or 1.0))
    scale = xp.exp(jitter * uniform_5[2:4] + rescale * uniform_5[4:5])
    return xp.stack([(rope.shift or 0.0) * uniform_5[:2], scale])
