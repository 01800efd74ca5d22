"""Decoded training images in memory: a small set is decoded once, not in each epoch."""

from typing import NamedTuple

import numpy as np

from vit_core.pixels import Pixels
from vit_core.preprocess import DecodedImage


class Decoded(NamedTuple):
    """A decoded example before augmentation."""

    image: DecodedImage | None
    """The decoded image; None: it cannot be read."""
    classes: np.ndarray
    """int64 [n]: the classes of the example."""


class DecodedImages:
    """Cache of a split's decoded examples, by index; threads may share it.

    count: number of examples in the split. limit: bytes. A set that does not fit, estimated from the size of the first
    image, is not cached at all: most images would have to be decoded again in each epoch, so a partial cache would not
    be worth its memory.
    """

    def __init__(self, count: int, limit: int) -> None:
        self.count, self.limit = count, limit
        self.kept: dict[int, Decoded] = {}
        self.bytes = 0

    def get(self, i: int) -> Decoded | None:
        """Example i, if it is kept."""
        return self.kept.get(i)

    def keep(self, i: int, decoded: Decoded) -> None:
        """Keeps example i, if there is memory for it."""
        if not isinstance(decoded.image, Pixels):
            return
        size = decoded.image.pixels_HWC.nbytes
        if not self.kept and size * self.count > self.limit:
            self.limit = 0
        if self.bytes + size <= self.limit:
            self.bytes += size
            self.kept[i] = decoded
