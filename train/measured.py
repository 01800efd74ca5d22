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

    @property
    def gradient_norm(self) -> float:
        """Over all trained parameters."""
        return float(np.sqrt(np.asarray(self.squared_norms, np.float64).sum()))

    def not_finite(self, names: Sequence[str]) -> list[str]:
        """What is not finite: "loss", and the parameters whose gradients are not."""
        finite = np.isfinite(np.asarray(self.squared_norms))
        loss = [] if np.isfinite(float(self.loss)) else ["loss"]
        return loss + [name for name, fine in zip(names, finite, strict=True) if not fine]
