"""What an engine finds in a step."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Measured(NamedTuple):
    """In JAX still on the device, until somebody asks for a number."""

    loss: Any
    """Scalar, before the update."""
    squared_norms: Any
    """[trained parameters] sum of squares of each one's gradient, before clipping."""
    stop: Any = 0
    """More than 0 where a process was told to stop: all see it in the same step."""

    @property
    def gradient_norm(self) -> float:
        """Over all trained parameters."""
        return float(np.sqrt(np.asarray(self.squared_norms, np.float64).sum()))

    def wrong(self, names: Sequence[str], limit: float) -> list[str]:
        """What keeps a step from being taken: "loss" where it is not finite or beyond the limit, and the parameters
        whose gradients are not finite."""
        squares = np.asarray(self.squared_norms)
        finite = np.isfinite(squares)
        with np.errstate(over="ignore"):
            total = squares.sum()
        if finite.all() and not np.isfinite(total):
            finite = squares < squares.max()  # each of them is, and all together are too much: the largest is to blame
        loss = [] if float(self.loss) <= limit else ["loss"]
        return loss + [name for name, fine in zip(names, finite, strict=True) if not fine]
