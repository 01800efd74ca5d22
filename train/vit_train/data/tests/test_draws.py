"""Generators made for a whole batch are NumPy's own."""

import numpy as np
import pytest

from vit_train.data.draws import generators, uniforms

NUMBERS = [0, 1, 2, 255, 256, 65536, 2**31 - 1, 2**31, 2**32 - 1]


@pytest.mark.parametrize("seed", [0, 1, 5, 2**31, 2**32 - 1, 2**32, 2**40 + 7, 2**100])
@pytest.mark.parametrize("numbers", [NUMBERS, [*NUMBERS, 2**32, 2**40], [], [7]], ids=len)
def test_generators_are_numpys(seed: int, numbers: list[int]) -> None:
    for stream in (1, 3):
        made = list(generators(seed, stream, numbers))
        assert len(made) == len(numbers)
        for ours, number in zip(made, numbers, strict=True):
            theirs = np.random.default_rng([seed, stream, number])
            np.testing.assert_array_equal(ours.random(50), theirs.random(50))
            assert ours.bit_generator.state == theirs.bit_generator.state
        expected = [np.random.default_rng([seed, stream, number]).random(44) for number in numbers]
        np.testing.assert_array_equal(uniforms(seed, stream, numbers, 44), np.reshape(expected, (-1, 44)))
