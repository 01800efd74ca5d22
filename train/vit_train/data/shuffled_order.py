"""The order of a run's examples: shuffled anew in each epoch, and any position of it known at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np


@cache  # not kept with an order, which worker processes get a copy of: the function cannot be copied
def _shuffle() -> Callable[..., int]:
    from grain.experimental import index_shuffle  # it imports jax, which the PyTorch engine does not need before

    return index_shuffle


@dataclass(frozen=True)
class ShuffledOrder(Sequence[int]):
    """Index in a split of each example of a run: every example once in an epoch.

    The same as `grain.MapDataset.range(examples).seed(seed).shuffle().repeat()`, which takes four times as long to
    answer: most of an image's time, where small images are in memory.
    """

    examples: int
    seed: int

    def __len__(self) -> int:
        return 2**63 - 1

    def __getitem__(self, number: Any) -> Any:
        epoch, position = divmod(number, self.examples)
        return _shuffle()(position, max_index=self.examples - 1, seed=(self._seed + epoch) % 2**32, rounds=4)

    @cached_property
    def _seed(self) -> int:
        """What grain derives for the first random change of a data set."""
        return int(np.random.SeedSequence([self.seed, 1]).generate_state(1)[0])
