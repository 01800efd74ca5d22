"""Repeated augmentation (arXiv:1902.05509): an order of a run's examples in which each image occurs several times
within a short distance."""

from dataclasses import dataclass
from math import isqrt

import numpy as np

from vit_core.errors import InputError
from vit_train.data.shuffled_order import ShuffledOrder

BLOCK = 256
"""Number of examples over which the copies of an image are spread. The sampler of timm and DeiT also rounds epochs down
to it."""


@dataclass(frozen=True)
class RepeatedOrder:
    """Index in the split of each example of a run with repeated augmentation.

    An epoch has as many examples as the split, rounded down to whole blocks: one in `repeats` of the images of the
    epoch's shuffle, each `repeats` times. Each block is distributed as timm's RepeatAugSampler does over 16 processes,
    so that adjacent examples, which may be mixed with each other, are different images.
    """

    shuffled: ShuffledOrder
    """Index of each example of the same run without repeats."""
    length: int
    """Number of examples of the split."""
    repeats: int

    def __post_init__(self) -> None:
        if self.length < BLOCK:
            raise InputError(
                f"augmentation.repeats: {self.repeats} for {self.length} images; expected {BLOCK} or more of them; set "
                "augmentation.repeats 1"
            )
        if self.repeats > isqrt(BLOCK):
            raise InputError(f"augmentation.repeats: {self.repeats}: expected at most {isqrt(BLOCK)}")

    def __getitem__(self, number: int) -> int:
        return int(self.take(np.array([number]))[0])

    def take(self, numbers_B: np.ndarray) -> np.ndarray:
        """int64 [B]: the indices of many examples at once."""
        epochs_B, places_B = np.divmod(numbers_B, self.length // BLOCK * BLOCK)
        blocks_B, i_B = np.divmod(places_B, BLOCK)
        players_B, turns_B = np.divmod(i_B, isqrt(BLOCK))
        dealt_B = (BLOCK * blocks_B + turns_B * isqrt(BLOCK) + players_B) // self.repeats
        return self.shuffled.take(epochs_B * self.length + dealt_B)
