"""The order is grain's."""

import grain
import numpy as np
import pytest

from vit_train.data.shuffled_order import ShuffledOrder


@pytest.mark.parametrize("examples", [1, 7, 1000, 65_537, 3_000_000])
@pytest.mark.parametrize("seed", [0, 5, 2**31, 2**32 - 1])
def test_the_order_is_grains(examples: int, seed: int) -> None:
    theirs = grain.MapDataset.range(examples).seed(seed).shuffle().repeat()
    ours = ShuffledOrder(examples, seed)
    for start in (0, examples - 1, 3 * examples, 10**9):
        expected = [theirs[start + i] for i in range(9)]
        assert [ours[number] for number in range(start, start + 9)] == expected
        assert ours.take(np.arange(start, start + 9)).tolist() == expected
