"""The order is grain's, wherever that is a permutation."""

import grain
import numpy as np
import pytest

from vit_train.data.shuffled_order import ShuffledOrder, permuted


@pytest.mark.parametrize("examples", [1, 7, 1000, 65_536, 65_538, 131_073, 3_000_000])
@pytest.mark.parametrize("seed", [0, 5, 2**31, 2**32 - 1])
def test_the_order_is_grains(examples: int, seed: int) -> None:
    theirs = grain.MapDataset.range(examples).seed(seed).shuffle().repeat()
    ours = ShuffledOrder(examples, seed)
    for start in (0, examples - 1, 3 * examples, 10**9):
        expected = [theirs[start + i] for i in range(9)]
        assert [ours[number] for number in range(start, start + 9)] == expected
        assert ours.take(np.arange(start, start + 9)).tolist() == expected


@pytest.mark.parametrize("power", [*range(11), *range(15, 21)])
def test_every_epoch_has_every_example_once(power: int) -> None:
    """Also one example more than 2^16, 2^18 and 2^20, where grain repeats one and leaves one out."""
    for examples in {max(2**power + more, 1) for more in (-1, 0, 1)}:
        assert np.array_equal(np.sort(permuted(np.arange(examples), examples, 5)), np.arange(examples)), examples
