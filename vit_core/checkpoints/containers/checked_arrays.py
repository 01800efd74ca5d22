"""The check that every writer makes before it writes an array."""

import numpy as np

from vit_core.arrays import LazyArray, contiguous


def checked(name: str, entry: LazyArray, array: np.ndarray) -> np.ndarray:
    """The array, contiguous in memory (C order).

    Raises AssertionError if its shape or type differs from `entry`, because the file's header, written earlier from
    `entry`, would be wrong.
    """
    if (array.shape, array.dtype.name) != (entry.shape, entry.dtype):
        raise AssertionError(f"{name} is {array.dtype} {array.shape}, expected {entry.dtype} {entry.shape}")
    return contiguous(array)
