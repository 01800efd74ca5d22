"""Random generators of many examples at once.

`numpy.random.default_rng([seed, stream, number])` spends nine tenths of its time on mixing these numbers into a state,
which is done here for all numbers of a batch together.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.random import PCG64, Generator, default_rng
from numpy.random.bit_generator import ISeedSequence

POOL = 4
"""Words of 32 bits that numpy.random.SeedSequence mixes its entropy into."""
STATE = 8
"""Words of 32 bits that PCG64 begins with."""


def generators(seed: int, stream: int, numbers: Sequence[int]) -> Iterator[Generator]:
    """For each number the same generator as `default_rng([seed, stream, number])`; from 0, as many bits as needed."""
    words = [len(_words(seed)), len(_words(stream))]
    if sum(words) + 1 > POOL or max(numbers, default=0) >= 2**32:  # longer entropy is mixed in another way
        return (default_rng([seed, stream, number]) for number in numbers)
    pool_PN = np.zeros((POOL, len(numbers)), np.uint32)
    for i, word in enumerate(_words(seed) + _words(stream)):
        pool_PN[i] = word
    pool_PN[sum(words)] = numbers
    return (Generator(PCG64(_Ready(state))) for state in _states(pool_PN))  # type: ignore[arg-type]


class _Ready(ISeedSequence):
    """A seed whose state is computed already."""

    def __init__(self, state: np.ndarray) -> None:
        self.state = state

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        """The state; PCG64 asks for 4 words of 64 bits."""
        return self.state


def _words(number: int) -> list[int]:
    """A number in words of 32 bits, the lowest first."""
    return [number & 0xFFFFFFFF] + (_words(number >> 32) if number >> 32 else [])


def _states(pool_PN: np.ndarray) -> np.ndarray:
    """uint64 [N, 4]: what `numpy.random.SeedSequence` makes of entropy, N columns of words in 32 bits.

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
