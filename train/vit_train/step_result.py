"""What an engine computes in a training step, before the update."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class StepResult(NamedTuple):
    """Arrays of the engine's framework; JAX computes them asynchronously, until a value is read."""

    loss: Any
    """Scalar: mean over the examples of the batch."""
    squared_norms: Any
    """[trained parameters] sum of squares of each parameter's gradient, before clipping."""
    stop_requests: Any = 0
    """Greater than 0 if a process has to stop; all processes see it in the same step."""

    @property
    def gradient_norm(self) -> float:
        """Norm of the gradients of all trained parameters together."""
        return float(np.sqrt(np.asarray(self.squared_norms, np.float64).sum()))

    def invalid(self, names: Sequence[str], loss_limit: float) -> list[str]:
        """What prevents the update: "loss" if it is not finite or above the limit, and the names of the parameters
        whose gradients are not finite.

        names: of the trained parameters, in the order of squared_norms.
        """
        squares = np.asarray(self.squared_norms)
        finite = np.isfinite(squares)
        with np.errstate(over="ignore"):
            total = squares.sum()
        if finite.all() and not np.isfinite(total):
            finite = squares < squares.max()  # each one is finite and their sum is not: the largest is named
        loss = [] if float(self.loss) <= loss_limit else ["loss"]
        return loss + [name for name, valid in zip(names, finite, strict=True) if not valid]
