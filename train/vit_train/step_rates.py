"""The numbers of a run that change from step to step, as both engines take them."""

import numpy as np

from vit_train.config import TrainConfig


def step_rates(config: TrainConfig, step: int) -> np.ndarray:
    """What changes from step to step (from 0), in the type of the parameters [4]: the learning rate, its fraction of
    the peak, and how much the moving average keeps of itself and adds of the weights."""
    kept = config.average_decay(step)
    return np.array((config.learning_rate(step), config.schedule_fraction(step), kept, 1 - kept), config.dtype)
