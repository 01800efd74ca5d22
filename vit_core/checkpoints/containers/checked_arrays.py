"""What every writer asks of an array before it writes it."""

import numpy as np

from vit_core.arrays import LazyArray, contiguous


def checked(name: str, entry: LazyArray, array: np.ndarray) -> np.ndarray:
    """The array with its elements in order in memory.

    AssertionError where its shape or type is not what was known before it was read: the header of the file, which is
    written first, would be wrong.
    """
    if (array.shape, array.dtype.name) != (entry.shape, entry.dtype):
        raise AssertionError(f"{name} is {array.dtype} {array.shape}, expected {entry.dtype} {entry.shape}")
    return contiguous(array)
