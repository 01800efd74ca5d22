"""Initial values of parameters, drawn by NumPy, so that both frameworks begin with the same ones."""

from zlib import crc32

import numpy as np

from vit_core.parameters.row import Parameter
from vit_core.rotations import mixed_start


def initial_value(row: Parameter, seed: int) -> np.ndarray:
    """The row's initial value, float64 in torch's layout: a function of the seed and the name, in any framework."""
    rng = np.random.default_rng([seed, crc32(row.name.encode())])
    kind, value = row.initializer.kind, row.initializer.value
    if kind == "constant":
        return np.full(row.shape, value)
    if kind == "uniform":
        return rng.uniform(-value, value, row.shape)
    if kind == "rope":
        _, heads, pairs = row.shape
        start: np.ndarray = mixed_start(value, 2 * pairs, rng.uniform(0.0, 1.0, (heads, 1)))
        return start
    sample = rng.standard_normal(row.shape)
    if kind == "truncated_normal":
        while (outside := np.abs(sample) > 2).any():
            sample[outside] = rng.standard_normal(int(outside.sum()))
    return sample * value
