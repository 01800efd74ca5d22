"""The order of a run's examples: every epoch is shuffled again, and the index of any example is computed directly."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

_ROUNDS = 4
"""Rounds of the cipher; the same number as in grain."""
_LEAST_BITS = 16
"""Bits of the shortest block that is encrypted."""
_FEW = 2**10
"""Up to this number of examples, repeated passes through the cipher take most of the time."""
_KEPT = 2**21
"""Up to this number of examples, the order of a whole epoch is computed at once, which is faster than batch by
batch."""


@dataclass(frozen=True)
class ShuffledOrder(Sequence[int]):
    """Index in a split of each example of a run. Each epoch has every example once.

    The same as `grain.MapDataset.range(examples).seed(seed).shuffle().repeat()`, except where grain's result is not a
    permutation (see `permuted`). Grain is many times slower, which would take most of the time for small images in
    memory.
    """

    examples: int
    seed: int

    def __len__(self) -> int:
        return 2**63 - 1

    def __getitem__(self, number: Any) -> Any:
        return int(self.take(np.array([number]))[0])

    def take(self, numbers_B: np.ndarray) -> np.ndarray:
        """int64 [B]: the indices of many examples at once."""
        epochs_B, places_B = np.divmod(numbers_B, self.examples)
        found_B = np.empty(len(numbers_B), np.int64)
        for epoch in np.unique(epochs_B).tolist():
            of_epoch_B = epochs_B == epoch
            seed, places = (self._seed + epoch) % 2**32, places_B[of_epoch_B]
            kept = self.examples <= _KEPT
            found_B[of_epoch_B] = (
                _permutation(self.examples, seed)[places] if kept else permuted(places, self.examples, seed)
            )
        return found_B

    @cached_property
    def _seed(self) -> int:
        """The seed that grain derives for the first random transformation of a data set."""
        return int(np.random.SeedSequence([self.seed, 1]).generate_state(1)[0])


def permuted(places_B: np.ndarray, count: int, seed: int) -> np.ndarray:
    """uint64 [B]: the images of `places_B` under a random permutation of range(count), as grain's `index_shuffle`.

    A cipher permutes all numbers of a fixed number of bits; it is applied again to a result that is too large. If
    `count` is one more than a power of 4, from 65,537 on, grain uses one bit too few: it returns one number twice and
    never the largest. Here the number of bits is correct.
    """
    if count == 1:
        return np.zeros(len(places_B), np.uint64)
    bits = max((count - 1).bit_length(), _LEAST_BITS)
    half = (bits + bits % 2) // 2
    found_B, left_to_do = places_B.astype(np.uint64), np.arange(len(places_B))
    if count <= _FEW:  # most results are too large, so the cipher is applied by a table
        table = _encrypted(np.arange(2**_LEAST_BITS, dtype=np.uint64), half, seed).tolist()
        for i, number in enumerate(found_B.tolist()):
            while (number := table[number]) >= count:
                pass
            found_B[i] = number
        return found_B
    while len(left_to_do):
        found_B[left_to_do] = _encrypted(found_B[left_to_do], half, seed)
        left_to_do = left_to_do[found_B[left_to_do] >= count]
    return found_B


def _encrypted(numbers_N: np.ndarray, half: int, seed: int) -> np.ndarray:
    """The numbers, of 2 * half bits, after Feistel rounds of the cipher Simon (Beaulieu et al., IACR 2013/404)."""
    mask, low = np.uint64(2**half - 1), np.uint64(half)
    keys = [np.uint64(key) & mask for key in _keys(seed)]

    def rotated(x_N: np.ndarray, by: int) -> np.ndarray:
        return ((x_N << np.uint64(by)) | (x_N >> np.uint64(half - by))) & mask

    def mixed(x_N: np.ndarray) -> np.ndarray:
        return (rotated(x_N, 1) & rotated(x_N, 8)) ^ rotated(x_N, 2)

    left_N, right_N = (numbers_N >> low) & mask, numbers_N & mask
    for first, second in zip(keys[::2], keys[1::2], strict=True):
        left_N = left_N ^ mixed(right_N) ^ first
        right_N = right_N ^ mixed(left_N) ^ second
    return (left_N << low) | right_N


@lru_cache(maxsize=2)  # a batch may end one epoch and begin the next
def _permutation(count: int, seed: int) -> np.ndarray:
    return permuted(np.arange(count), count, seed)


@lru_cache(maxsize=64)
def _keys(seed: int) -> tuple[int, ...]:
    """The 32-bit numbers that C++'s std::seed_seq generates from one number, one for each round."""
    n, words = _ROUNDS, [0x8B8B8B8B] * _ROUNDS
    t = (n - 1) // 2  # for less than 7 words
    p = (n - t) // 2
    q = p + t

    def stirred(x: int, factor: int) -> int:
        return (x ^ (x >> 27)) * factor & 0xFFFFFFFF

    for k in range(n):
        step = stirred(words[k] ^ words[(k + p) % n] ^ words[k - 1], 1664525)
        last = step + (1 if k == 0 else k + seed if k == 1 else k) & 0xFFFFFFFF
        words[(k + p) % n] = words[(k + p) % n] + step & 0xFFFFFFFF
        words[(k + q) % n] = words[(k + q) % n] + last & 0xFFFFFFFF
        words[k] = last
    for k in range(n):
        step = stirred(words[k] + words[(k + p) % n] + words[k - 1] & 0xFFFFFFFF, 1566083941)
        last = step - k & 0xFFFFFFFF
        words[(k + p) % n] ^= step
        words[(k + q) % n] ^= last
        words[k] = last
    return tuple(words)
