"""How fast a device multiplies matrices: what a model's speed is held against."""

import time
from collections.abc import Callable

import numpy as np

SMALLEST = 256
LONGEST_SECONDS = 0.03
"""A larger product is not tried where it would take longer, as of 16-bit matrices on processors without such units."""


def measured_flops(square_of: Callable[[np.ndarray], Callable[[], object]], largest: int) -> float:
    """FLOP/s of a product of two square matrices, the best of four. Takes a small part of a second.

    square_of: from a matrix [n, n] to what multiplies it with itself and waits for the result. n is doubled up to
    `largest` as long as the product is short, because small ones do not use the whole device.
    """
    # Random values: a GPU multiplies ones with less power, hence faster. Tiles of them are quick to make.
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
