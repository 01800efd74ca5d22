"""The numbers of a run that change from step to step, as both engines take them."""

import numpy as np

from vit_train.config import TrainConfig


def step_rates(config: TrainConfig, step: int) -> np.ndarray:
    """The values that change with the step (from 0), [4] in the type of the parameters: the learning rate, its fraction
    of the peak, and the factors of the old moving average and of the weights in the new moving average."""
    kept = config.average_decay(step)
    return np.array((config.learning_rate(step), config.schedule_fraction(step), kept, 1 - kept), config.dtype)
