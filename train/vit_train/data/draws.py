"""Random generators of many examples at once.

`numpy.random.default_rng([seed, stream, number])` needs nine tenths of its time to compute a state from these numbers.
This module computes the states for all numbers of a batch together.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.random import PCG64, Generator, default_rng
from numpy.random.bit_generator import ISeedSequence

POOL = 4
"""Number of 32-bit words in the entropy pool of numpy.random.SeedSequence."""
STATE = 8
"""Number of 32-bit words from which PCG64 is initialized."""


def generators(seed: int, stream: int, numbers: Sequence[int]) -> Iterator[Generator]:
    """For each number the same generator as `default_rng([seed, stream, number])`. Numbers are 0 or greater, of any
    length."""
    pool_PN = _pool(seed, stream, numbers)
    if pool_PN is None:
        return (default_rng([seed, stream, number]) for number in numbers)
    return (Generator(PCG64(_Ready(state))) for state in _states(pool_PN))  # type: ignore[arg-type]


def peek(rng: Generator, count: int) -> list[float]:
    """The next uniform draws of a generator, which draws them again afterwards."""
    state = rng.bit_generator.state
    draws = rng.random(count).tolist()
    rng.bit_generator.state = state
    return draws


def uniforms(seed: int, stream: int, numbers: Sequence[int], count: int) -> np.ndarray:
    """float64 [N, count]: for each number the same as `default_rng([seed, stream, number]).random(count)`."""
    pool_PN = _pool(seed, stream, numbers)
    if pool_PN is None:
        each = [generator.random(count) for generator in generators(seed, stream, numbers)]
        return np.array(each).reshape(len(numbers), count)
    first_N, first_low_N, sequence_N, sequence_low_N = _states(pool_PN).T
    # PCG64 (O'Neill, HMC-CS-2014-0905): a state of 128 bits becomes factor * state + increment with each draw.
    increment_N = (sequence_N << ONE) | (sequence_low_N >> np.uint64(63)), (sequence_low_N << ONE) | ONE
    begun_N = _sum(increment_N, (first_N, first_low_N))
    factors_K, increments_K = _jumps(count + 1)
    grown_NK = _product((begun_N[0][:, None], begun_N[1][:, None]), factors_K)
    high_NK, low_NK = _sum(grown_NK, _product((increment_N[0][:, None], increment_N[1][:, None]), increments_K))
    # Seeding takes the first step, whose state gives no number; each later state gives one.
    high_NK, low_NK = high_NK[:, 1:], low_NK[:, 1:]
    turned_NK, by_NK = high_NK ^ low_NK, high_NK >> np.uint64(58)
    bits_NK = (turned_NK >> by_NK) | (turned_NK << (-by_NK & np.uint64(63)))
    found_NK: np.ndarray = (bits_NK >> np.uint64(11)) * 2.0**-53
    return found_NK


class _Ready(ISeedSequence):
    """A seed whose state is computed already."""

    def __init__(self, state: np.ndarray) -> None:
        self.state = state

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        """The state; PCG64 asks for 4 words of 64 bits."""
        return self.state


def _pool(seed: int, stream: int, numbers: Sequence[int]) -> np.ndarray | None:
    """uint32 [POOL, N]: the entropy of each generator; None if it is longer, because NumPy mixes that differently."""
    words = _words(seed) + _words(stream)
    if len(words) + 1 > POOL or max(numbers, default=0) >= 2**32:
        return None
    pool_PN = np.zeros((POOL, len(numbers)), np.uint32)
    for i, word in enumerate(words):
        pool_PN[i] = word
    pool_PN[len(words)] = numbers
    return pool_PN


def _words(number: int) -> list[int]:
    """A number in words of 32 bits, the lowest first."""
    return [number & 0xFFFFFFFF] + (_words(number >> 32) if number >> 32 else [])


def _states(pool_PN: np.ndarray) -> np.ndarray:
    """uint64 [N, 4]: the states that `numpy.random.SeedSequence` computes from entropy, N columns of 32-bit words.

    The algorithm is M. E. O'Neill's seed_seq_fe, which NumPy documents and does not change (NEP 19).
    """
    hashed = _Hash(0x43B0D7E5, 0x931E8875)
    for i in range(POOL):
        pool_PN[i] = hashed(pool_PN[i])
    for source in range(POOL):
        for target in range(POOL):
            if source != target:
                pool_PN[target] = _mixed(pool_PN[target], hashed(pool_PN[source]))
    hashed = _Hash(0x8B51F9DD, 0x58F38DED)
    state_SN = np.stack([hashed(pool_PN[i % POOL]) for i in range(STATE)])
    return np.ascontiguousarray(state_SN.T).view("<u8").astype(np.uint64)


Wide = tuple[np.ndarray, np.ndarray]
"""Numbers of 128 bits: their high and low 64 (uint64)."""
ONE, _LOW = np.uint64(1), np.uint64(0xFFFFFFFF)
_FACTOR = 0x2360ED051FC65DA44385DF649FCCF645
"""PCG64's multiplier."""


@lru_cache(maxsize=8)
def _jumps(count: int) -> tuple[Wide, Wide]:
    """For 1 to `count` steps at once: the factor of the state, and the one of the increment."""
    factor, increments = 1, 0
    factors_K, increments_K = [], []
    for _ in range(count):
        factor, increments = factor * _FACTOR % 2**128, (increments * _FACTOR + 1) % 2**128
        factors_K.append(factor)
        increments_K.append(increments)
    return _wide(factors_K), _wide(increments_K)


def _wide(numbers: Sequence[int]) -> Wide:
    return np.array([n >> 64 for n in numbers], np.uint64), np.array([n % 2**64 for n in numbers], np.uint64)


def _sum(a: Wide, b: Wide) -> Wide:
    low = a[1] + b[1]
    return a[0] + b[0] + (low < a[1]), low


def _product(a: Wide, b: Wide) -> Wide:
    """a b modulo 2^128."""
    shift = np.uint64(32)
    a_high, a_low, b_high, b_low = a[1] >> shift, a[1] & _LOW, b[1] >> shift, b[1] & _LOW
    cross = a_high * b_low + (a_low * b_low >> shift)
    other = a_low * b_high + (cross & _LOW)
    carried = a_high * b_high + (cross >> shift) + (other >> shift)
    return carried + a[0] * b[1] + a[1] * b[0], a[1] * b[1]


class _Hash:
    """Hashes words of 32 bits, each call with the next constant."""

    def __init__(self, constant: int, factor: int) -> None:
        self.constant, self.factor = constant, factor

    def __call__(self, x_N: np.ndarray) -> np.ndarray:
        x_N = x_N ^ np.uint32(self.constant)
        self.constant = self.constant * self.factor & 0xFFFFFFFF
        x_N = x_N * np.uint32(self.constant)
        return x_N ^ (x_N >> np.uint32(16))


def _mixed(x_N: np.ndarray, y_N: np.ndarray) -> np.ndarray:
    mixed_N: np.ndarray = np.uint32(0xCA01F9DD) * x_N - np.uint32(0x4973F715) * y_N
    return mixed_N ^ (mixed_N >> np.uint32(16))
