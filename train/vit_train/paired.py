"""The difference between two accuracies on the same images, with its confidence interval."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vit_train.evaluation import Accuracy


@dataclass(frozen=True)
class PairedDifference:
    """The difference between two top-1 accuracies on the same images. Most images are easy or hard for both models, so
    the difference has a smaller uncertainty than the accuracies."""

    first_alone: int
    """Number of images for which only the first model is right."""
    second_alone: int
    """Number of images for which only the second model is right."""
    total: int
    """Number of images on which both were evaluated."""

    @classmethod
    def of(cls, first: Accuracy, second: Accuracy) -> "PairedDifference":
        """The difference between two evaluations on one split whose images have one class each."""
        (first_ids, first_right), (second_ids, second_right) = _right(first), _right(second)
        _, here, there = np.intersect1d(first_ids, second_ids, assume_unique=True, return_indices=True)
        a_N, b_N = first_right[here], second_right[there]
        return cls(int((a_N & ~b_N).sum()), int((b_N & ~a_N).sum()), len(a_N))

    @property
    def difference(self) -> float:
        """The first accuracy minus the second."""
        return (self.first_alone - self.second_alone) / self.total

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % confidence interval of the difference: Student's, from the differences 1, 0 and -1 of each image.
        None if all of them are equal, because then there is no estimate of the spread."""
        from scipy.stats import ttest_1samp  # takes a second to import

        differences_N = np.zeros(self.total)
        differences_N[: self.first_alone] = 1
        differences_N[self.first_alone : self.first_alone + self.second_alone] = -1
        if self.total < 2 or not differences_N.std():
            return None
        low, high = ttest_1samp(differences_N, 0).confidence_interval(0.95)
        return max(-1.0, float(low)), min(1.0, float(high))


def _right(accuracy: Accuracy) -> tuple[np.ndarray, np.ndarray]:
    """Index in the split of each evaluated image, and whether its answer is right."""
    assert accuracy.ids_N is not None
    assert accuracy.classes is not None
    assert accuracy.classes.pairs is not None
    classes_N, answers_N = accuracy.classes.pairs
    return accuracy.ids_N, classes_N == answers_N
