"""How much rounding grows while a small network is trained: the bound of runs in several processes follows from it."""

import numpy as np
import pytest
import torch

from parity_tests.parallel import RUN
from vit_core import parity
from vit_train.engines.torch.engine import TorchEngine
from vit_train.loop import batches_for
from vit_train.tests.small_run import quadrants

ROUNDINGS = 8
"""Roundings of a weight in a step. AdamW rounds both moments, the root, the quotient, the decay and the sum: six. A
gradient of a tenth of the largest one is off by 80 roundings, if the largest is off by 8; its update is a fortieth of a
weight of 0.12, which makes two more."""


@pytest.mark.slow
def test_300_steps_of_rounding_stay_within_the_bound() -> None:
    """Two runs, one of which has every weight rounded in another way before every step; losses and weights differ by
    less than parity.SHARDED_BOUND, but not by much less."""
    config = RUN.replace(steps=300, accumulation=1, batch_size=16)
    plain, disturbed = TorchEngine(config), TorchEngine(config)
    batches, rng = batches_for(plain, quadrants()), np.random.default_rng(0)
    losses = 0.0
    for step in range(300):
        with torch.no_grad():
            for p in disturbed.params.values():
                p.mul_(1 + torch.from_numpy(rng.uniform(-ROUNDINGS, ROUNDINGS, p.shape) * 2.0**-53))
        ours, theirs = (float(one.train_step(batches[step], step).loss) for one in (disturbed, plain))
        losses = max(losses, abs(ours - theirs) / theirs)
    expected = plain.export()
    weights = max(parity.difference(array, expected[name])[1] for name, array in disturbed.export().items())
    assert parity.SHARDED_BOUND / 100 < weights < parity.SHARDED_BOUND
    assert parity.SHARDED_BOUND / 100 < losses < parity.SHARDED_BOUND
