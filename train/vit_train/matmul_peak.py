"""Measures how fast a device multiplies matrices; MFU is relative to this speed."""

import time
from collections.abc import Callable

import numpy as np

SMALLEST = 256
LONGEST_SECONDS = 0.03
"""Time limit of a product, above which no larger one is tried, as for 16-bit matrices on CPUs without such units."""


def measured_flops(square_of: Callable[[np.ndarray], Callable[[], object]], largest: int) -> float:
    """FLOP/s of a product of two square matrices, the best of four. Takes a small part of a second.

    square_of: makes from a matrix [n, n] a function that multiplies it with itself and waits for the result. n is
    doubled up to `largest` while the product takes little time, because small ones do not use the whole device.
    """
    # Random values, because a GPU multiplies ones with less power and therefore faster. Tiles are quick to make.
    tile = np.random.default_rng(0).standard_normal((SMALLEST, SMALLEST), np.float32)
    n = SMALLEST
    while True:
        multiply = square_of(np.tile(tile, (n // SMALLEST, n // SMALLEST)))
        multiply()  # compiles, and warms up
        seconds = min(_seconds(multiply) for _ in range(4))
        if 2 * n > largest or 8 * seconds > LONGEST_SECONDS:
            return 2 * n**3 / seconds
        n *= 2


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
