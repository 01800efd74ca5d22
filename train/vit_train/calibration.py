"""Calibration of probabilities: of the predictions with 80 % confidence, 80 % should be right."""

from dataclasses import dataclass

import numpy as np

BINS = 15
"""Number of bins of equal width, as in arXiv:1706.04599 and by default in torchmetrics."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """Predictions in bins by their confidence, which is the probability of the predicted class.

    Arrays are [BINS], float64. Bin k has the confidences in (k / BINS, (k + 1) / BINS], the first also 0.
    """

    counts_K: np.ndarray
    """Number of predictions."""
    confidences_K: np.ndarray
    """Sum of the confidences of the predictions."""
    correct_K: np.ndarray
    """Number of correct predictions."""

    @property
    def expected_error(self) -> float:
        """Expected calibration error (arXiv:1706.04599, equation 3): the mean over predictions of the distance between
        accuracy and mean confidence of their bin."""
        return float(np.abs(self.correct_K - self.confidences_K).sum() / self.counts_K.sum())

    @property
    def confidence(self) -> float:
        """Mean confidence of all predictions."""
        return float(self.confidences_K.sum() / self.counts_K.sum())


def calibration(confidences_N: np.ndarray, correct_N: np.ndarray) -> Calibration:
    """The calibration of predictions; confidences_N: from 0 to 1; correct_N: bool."""
    edges = np.linspace(0, 1, BINS + 1)[1:-1]
    bin_N = np.searchsorted(edges, confidences_N)

    def summed(weights_N: np.ndarray | None) -> np.ndarray:
        return np.bincount(bin_N, weights_N, minlength=BINS).astype(np.float64)

    return Calibration(summed(None), summed(confidences_N.astype(np.float64)), summed(correct_N.astype(np.float64)))
