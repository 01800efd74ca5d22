"""The classes of a split's examples: their numbers of examples, class weights and balanced order."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vit_core.errors import InputError
from vit_train.data.draws import uniforms
from vit_train.data.sources import Split

logger = logging.getLogger("vit")

BALANCED_STREAM = 4
"""Number of this kind of random draws; the other kinds are in data.batches."""


def classes_of(label: Any) -> np.ndarray:
    """int64 [n]: the classes of an example, from its label: an integer, or a sequence of integers that may be empty."""
    return np.atleast_1d(np.asarray(label, np.int64))


def check_classes(classes: np.ndarray, split: Split, i: int) -> None:
    """Raises InputError for a number that is not a class of the split (tensorflow-datasets gives -1 to examples of
    unlabeled splits), and for an example without exactly one class, unless the split is multilabel."""
    for label in classes:
        if not 0 <= label < len(split.labels):
            unlabelled = "; the split may be unlabeled: choose another" if label == -1 else ""
            raise InputError(f"{split.name(i)}: label {label}, expected 0 to {len(split.labels) - 1}{unlabelled}")
    if len(classes) != 1 and not split.multilabel:
        raise InputError(f"{split.name(i)}: {len(classes)} labels, expected one: {split.title} is not multi-label")


@dataclass(frozen=True, eq=False)
class Occurrences:
    """The examples of each class, in two arrays with every pair of an example and one of its classes."""

    examples_P: np.ndarray
    """int64: index of an example in the split, sorted by class; an example without classes occurs once, at the end."""
    ends_G: np.ndarray
    """int64 [classes + 1]: the end of the examples of each class; the last entry is for examples without classes."""

    @property
    def counts_C(self) -> np.ndarray:
        """int64 [classes]: number of examples of each class."""
        return np.diff(self.ends_G[:-1], prepend=0)

    @classmethod
    def of(cls, split: Split) -> "Occurrences":
        """The occurrences of a split. Examples without the attribute `labels_N` (the label of each) are all read
        once."""
        examples_P, classes_P = _pairs(split)
        counts_G = np.bincount(classes_P, minlength=len(split.labels) + 1)
        return cls(examples_P[np.argsort(classes_P, kind="stable")], np.cumsum(counts_G))


def _pairs(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """int64: every pair of an example and one of its classes, by example; len(labels) stands for none."""
    labels = getattr(split.examples, "labels_N", None)
    if isinstance(labels, np.ndarray) and labels.ndim == 1 and labels.dtype.kind in "iu":  # millions, at once
        wrong = np.flatnonzero((labels < 0) | (labels >= len(split.labels)))
        if len(wrong):
            check_classes(classes_of(labels[wrong[0]]), split, int(wrong[0]))
        return np.arange(len(labels)), labels.astype(np.int64)
    if labels is None:
        logger.info("%s: reading %d examples to count their classes", split.title, len(split))
        labels = (example["label"] for example in split.examples)
    sets, none = [], np.array([len(split.labels)])
    for i, label in enumerate(labels):
        check_classes(classes := classes_of(label), split, i)
        sets.append(np.unique(classes) if len(classes) else none)
    return np.repeat(np.arange(len(sets)), [len(each) for each in sets]), np.concatenate(sets)


def balanced_weights(counts_C: np.ndarray) -> np.ndarray:
    """float64 [classes]: labels / (classes that occur * labels of this class), as scikit-learn's compute_class_weight:
    their mean over all labels is 1. 1 for a class that does not occur."""
    occur_C = counts_C > 0
    return np.where(occur_C, counts_C.sum() / (occur_C.sum() * np.maximum(counts_C, 1)), 1.0)


@dataclass(frozen=True, eq=False)
class BalancedOrder(Sequence[int]):
    """Index in the split of each example of a run, drawn with replacement: first one of the classes that occur, each
    with equal probability, then one of its examples. Examples without classes count as a class of their own.

    The draws of example `number` are a function of (seed, number).
    """

    occurrences: Occurrences
    seed: int

    def __len__(self) -> int:
        return 2**63 - 1

    def __getitem__(self, number: Any) -> Any:
        return int(self.take(np.array([number]))[0])

    def take(self, numbers_B: np.ndarray) -> np.ndarray:
        """int64 [B]: the indices of many examples at once."""
        ends_G = self.occurrences.ends_G
        starts_G = np.append(0, ends_G[:-1])
        occur = np.flatnonzero(ends_G > starts_G)
        which_B, where_B = uniforms(self.seed, BALANCED_STREAM, numbers_B.tolist(), 2).T
        groups_B = occur[(which_B * len(occur)).astype(np.int64)]
        within_B = (where_B * (ends_G[groups_B] - starts_G[groups_B])).astype(np.int64)
        found_B: np.ndarray = self.occurrences.examples_P[starts_G[groups_B] + within_B].astype(np.int64)
        return found_B
