"""The difference between two accuracies on the same images, with its confidence interval."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vit_train.clustered import mean_interval
from vit_train.data.sources import Groups
from vit_train.evaluation import Accuracy


@dataclass(frozen=True, eq=False)
class PairedDifference:
    """The difference between two top-1 accuracies on the same images. Most images are easy or hard for both models, so
    the difference has a smaller uncertainty than the accuracies."""

    differences_N: np.ndarray
    """int [N]: for each image on which both were evaluated 1 if only the first model is right, -1 if only the second
    is, otherwise 0."""
    groups: Groups | None = None
    """The group of each of these images, if the data name groups."""

    @classmethod
    def of(cls, first: Accuracy, second: Accuracy) -> "PairedDifference":
        """The difference between two evaluations on one split whose images have one class each."""
        assert first.ids_N is not None
        assert second.ids_N is not None
        _, here, there = np.intersect1d(first.ids_N, second.ids_N, assume_unique=True, return_indices=True)
        differences_N = first.right_N[here].astype(np.int64) - second.right_N[there]
        return cls(differences_N, None if first.groups is None else first.groups.take(here))

    @property
    def total(self) -> int:
        """Number of images on which both were evaluated."""
        return len(self.differences_N)

    @property
    def first_alone(self) -> int:
        """Number of images for which only the first model is right."""
        return int((self.differences_N == 1).sum())

    @property
    def second_alone(self) -> int:
        """Number of images for which only the second model is right."""
        return int((self.differences_N == -1).sum())

    @property
    def difference(self) -> float:
        """The first accuracy minus the second."""
        return (self.first_alone - self.second_alone) / self.total

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % confidence interval of the difference: Student's, from the differences of the images or, if they
        have groups, by the cluster-robust variance of their mean (`mean_interval`). None if the difference is the same
        for all images, or in all groups, because then there is no estimate of the spread."""
        if self.groups is not None:
            found = mean_interval(self.differences_N, self.groups.group_N)
        elif self.total < 2 or not self.differences_N.std():
            found = None
        else:
            from scipy.stats import ttest_1samp  # takes a second to import

            alone = self.first_alone, self.second_alone
            counted_N = np.repeat([1.0, -1.0, 0.0], [*alone, self.total - sum(alone)])
            low, high = ttest_1samp(counted_N, 0).confidence_interval(0.95)
            found = float(low), float(high)
        return None if found is None else (max(-1.0, found[0]), min(1.0, found[1]))
