"""Decoded training images in memory: a small set is decoded once, not in each epoch."""

from typing import NamedTuple

import numpy as np

from vit_core.pixels import Pixels
from vit_core.preprocess import DecodedImage


class Decoded(NamedTuple):
    """What an example is augmented from."""

    image: DecodedImage | None
    """None: it cannot be read."""
    classes: np.ndarray
    """int64."""


class DecodedImages:
    """Examples of a split that are decoded already, by index; threads may share it.

    count: examples of the split. limit: bytes. Nothing is kept of a set that would not fit, judged by the size of the
    first image: most of it would have to be decoded anew in each epoch, and the memory would bring nothing.
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
