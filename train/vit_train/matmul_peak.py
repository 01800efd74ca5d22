"""Measures how fast a device multiplies matrices; MFU is relative to this speed."""

import time
from collections.abc import Callable

import numpy as np

SMALLEST = 256
LONGEST_SECONDS = 0.03
"""Time limit of a product, above which no larger one is tried, as for 16-bit matrices on CPUs without such units."""
REPEATS, SIZE_SECONDS = 4, 0.05
"""Fewest products of each size, and the time for which they are repeated: other programs can take a core from every
thread for some milliseconds, so a few short products could all be interrupted."""


def measured_flops(square_of: Callable[[np.ndarray], Callable[[], object]], largest: int) -> float:
    """FLOP/s of a product of two square matrices, the highest of all repeats of all sizes. Takes a small part of a
    second.

    square_of: makes from a matrix [n, n] a function that multiplies it with itself and waits for the result. n is
    doubled up to `largest` while the product takes little time, because small ones do not use the whole device.
    """
    # Random values, because a GPU multiplies ones with less power and therefore faster. Tiles are quick to make.
    tile = np.random.default_rng(0).standard_normal((SMALLEST, SMALLEST), np.float32)
    n, best = SMALLEST, 0.0
    while True:
        multiply = square_of(np.tile(tile, (n // SMALLEST, n // SMALLEST)))
        multiply()  # compiles, and warms up
        best = max(best, 2 * n**3 / _fastest(multiply))
        n *= 2
        if n > largest or 2 * n**3 / best > LONGEST_SECONDS:
            return best


def _fastest(call: Callable[[], object]) -> float:
    """Seconds of the fastest of several calls; other programs can only make a call slower."""
    seconds: list[float] = []
    begin = time.perf_counter()
    while len(seconds) < REPEATS or time.perf_counter() - begin < SIZE_SECONDS:
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
