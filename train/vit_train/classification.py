"""Metrics of classification: accuracy by class, confusion matrix, F1 and average precision, in float64.

The numbers equal scikit-learn's (with zero_division=nan). They are computed here because the processes of a run add up
counts, and scikit-learn needs the predictions of all examples in one process.
"""

from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import Any, Self

import numpy as np
from scipy.special import expit, ndtri

OTHER = "(no class of the data set)"
"""Name of the column of the confusion matrix for outputs of the model that are no class of the data set."""


@dataclass(frozen=True, eq=False)
class ClassReport:
    """Metrics of each class of a split. Arrays are [classes], in the order of the labels.

    If a quotient is 0 / 0 for a class, its value is nan, and means over classes omit it.
    """

    labels: tuple[str, ...]
    examples_C: np.ndarray
    """int64: examples that have the class."""
    predictions_C: np.ndarray
    """int64: examples for which the class was predicted."""
    correct_C: np.ndarray
    """int64: examples that have the class and for which it was predicted."""
    average_precision_C: np.ndarray | None = None
    """float64: area under precision over recall, summed as steps (sklearn.metrics.average_precision_score); nan for a
    class without examples. None: not computed."""
    best_f1: "BestF1 | None" = None
    """The thresholds with the largest F1, if examples may have any number of classes."""
    pairs: tuple[np.ndarray, np.ndarray] | None = None
    """int64 (class, prediction) of each example; the prediction len(labels) is no class of the split. None if examples
    may have any number of classes, and so have no single prediction."""

    @property
    def recall_C(self) -> np.ndarray:
        """Fraction of the examples of each class for which the class was predicted. With one class for each example,
        this is the accuracy within the class."""
        return _quotient(self.correct_C, self.examples_C)

    @property
    def precision_C(self) -> np.ndarray:
        """Fraction of the predictions of each class that were right."""
        return _quotient(self.correct_C, self.predictions_C)

    @property
    def f1_C(self) -> np.ndarray:
        """Harmonic mean of precision and recall."""
        return _quotient(2 * self.correct_C, self.examples_C + self.predictions_C)

    @property
    def macro_f1(self) -> float:
        """Mean of F1 over the classes that occur or were predicted."""
        return _mean(self.f1_C)

    @property
    def micro_f1(self) -> float:
        """F1 of all decisions together. With one class for each example and no predictions outside the classes, this is
        the accuracy."""
        return float(_quotient(2 * self.correct_C.sum(), self.examples_C.sum() + self.predictions_C.sum()))

    @property
    def mean_average_precision(self) -> float | None:
        """Mean of the average precision over the classes that occur. None: not computed."""
        return None if self.average_precision_C is None else _mean(self.average_precision_C)

    @cached_property
    def confusion_matrix(self) -> np.ndarray | None:
        """int64 [classes, predictions]: number of examples of each class by predicted class. If there are predictions
        that are no class of the split, a last column counts them. None if examples may have any number of classes."""
        if self.pairs is None:
            return None
        classes_N, predictions_N = self.pairs
        rows = len(self.labels)
        columns = rows + bool((predictions_N >= rows).any())
        return np.bincount(classes_N * columns + predictions_N, minlength=rows * columns).reshape(rows, columns)

    def to_json(self) -> dict[str, Any]:
        """All numbers, for a JSON file; null for nan and for numbers that were not computed."""
        columns: dict[str, np.ndarray | None] = {
            "examples": self.examples_C,
            "predictions": self.predictions_C,
            "recall": self.recall_C,
            "precision": self.precision_C,
            "f1": self.f1_C,
            "average_precision": self.average_precision_C,
        }
        if self.best_f1 is not None:
            columns |= {"best_f1_threshold": self.best_f1.thresholds_C, "best_f1": self.best_f1.f1_C}
        classes = [
            {"label": label} | {name: None if x is None else _number(x[i]) for name, x in columns.items()}
            for i, label in enumerate(self.labels)
        ]
        found: dict[str, Any] = {
            "macro_f1": _number(self.macro_f1),
            "micro_f1": _number(self.micro_f1),
            "mean_average_precision": _number(self.mean_average_precision),
            "classes": classes,
        }
        if (matrix := self.confusion_matrix) is not None:
            predictions = [*self.labels, OTHER][: matrix.shape[1]]
            found["confusion_matrix"] = {"rows": [*self.labels], "columns": predictions, "counts": matrix.tolist()}
        return found


def report_of_predictions(
    labels: tuple[str, ...], classes_N: np.ndarray, predictions_N: np.ndarray, scores_NC: np.ndarray | None = None
) -> ClassReport:
    """The report for examples of one class each.

    classes_N, predictions_N: int64, indices of labels; the prediction len(labels) is no class of the split. scores_NC:
    score of each class (log probability), by which examples are ranked; None: without average precision.
    """
    count = len(labels)
    return ClassReport(
        labels,
        examples_C=np.bincount(classes_N, minlength=count),
        predictions_C=np.bincount(predictions_N, minlength=count)[:count],
        correct_C=np.bincount(classes_N[classes_N == predictions_N], minlength=count),
        average_precision_C=None if scores_NC is None else average_precision(one_hot(classes_N, count), scores_NC),
        pairs=(classes_N, predictions_N),
    )


def report_of_sets(labels: tuple[str, ...], has_NC: np.ndarray, logits_NC: np.ndarray) -> ClassReport:
    """The report for examples of any number of classes: a class is predicted where its probability, the sigmoid of its
    logit, is above 0.5.

    has_NC: bool, whether an example has a class.
    """
    predicted_NC = logits_NC > 0
    return ClassReport(
        labels,
        examples_C=has_NC.sum(axis=0, dtype=np.int64),
        predictions_C=predicted_NC.sum(axis=0, dtype=np.int64),
        correct_C=(has_NC & predicted_NC).sum(axis=0, dtype=np.int64),
        average_precision_C=average_precision(has_NC, logits_NC),
        best_f1=BestF1.of(has_NC, logits_NC),
    )


@dataclass(frozen=True, eq=False)
class BestF1:
    """For each class the threshold of its probability with the largest F1 on the examples: the class is predicted where
    its probability is at least the threshold. Chosen on the same examples, this F1 is too high for new ones."""

    thresholds_C: np.ndarray
    """float64: the largest such threshold, which is the probability of an example; nan for a class without examples."""
    f1_C: np.ndarray
    """float64: F1 at this threshold; nan for a class without examples."""

    @classmethod
    def of(cls, has_NC: np.ndarray, logits_NC: np.ndarray) -> Self:
        """has_NC: bool, whether an example has a class; probabilities are the sigmoid of the logits."""
        found = [_best_f1(has_N, logits_N) for has_N, logits_N in zip(has_NC.T, logits_NC.T, strict=True)]
        logits_C, f1_C = np.array(found, np.float64).reshape(-1, 2).T
        return cls(expit(logits_C), f1_C)


def _best_f1(has_N: np.ndarray, logits_N: np.ndarray) -> tuple[float, float]:
    """The smallest logit of the predictions with the largest F1, and this F1; nan without examples of the class."""
    if not has_N.any():
        return float("nan"), float("nan")
    logits_T, found_T, predictions_T = _by_threshold(has_N, logits_N)
    f1_T = 2 * found_T / (predictions_T + found_T[-1])
    best = int(f1_T.argmax())
    return float(logits_T[best]), float(f1_T[best])


def _by_threshold(has_N: np.ndarray, scores_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each different score, from the largest: the score, and of the examples with at least this score the number
    that have the class and the number of all."""
    order = np.argsort(-scores_N, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores_N[order])), len(order) - 1)
    return scores_N[order][last], np.cumsum(has_N[order])[last], last + 1


def average_precision(has_NC: np.ndarray, scores_NC: np.ndarray) -> np.ndarray:
    """float64 [classes]: for each class, the sum over thresholds of precision times the growth of recall; examples of
    equal score share a threshold. nan for a class that no example has."""
    return np.array(
        [_average_precision(has_N, scores_N) for has_N, scores_N in zip(has_NC.T, scores_NC.T, strict=True)]
    )


def one_hot(classes_N: np.ndarray, count: int) -> np.ndarray:
    """bool [N, count]: true at the class of each example."""
    return classes_N[:, None] == np.arange(count)


def _average_precision(has_N: np.ndarray, scores_N: np.ndarray) -> float:
    if not has_N.any():
        return float("nan")
    _, found_T, predictions_T = _by_threshold(has_N, scores_N)
    recalls, precisions = found_T / found_T[-1], found_T / predictions_T
    return float((np.diff(recalls, prepend=0.0) * precisions).sum())


def _quotient(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole in float64; nan for 0 / 0."""
    with np.errstate(invalid="ignore"):
        return np.true_divide(part, whole)


def _mean(values_C: np.ndarray) -> float:
    """The mean of the values that are not nan; nan if all are nan."""
    known = values_C[~np.isnan(values_C)]
    return float(known.mean()) if len(known) else float("nan")


def _number(value: Any) -> float | int | None:
    """A number for JSON, which has no nan."""
    if value is None or np.isnan(value):
        return None
    return int(value) if isinstance(value, np.integer) else float(value)


def wilson_interval(correct: int, total: int, effective: float | None = None) -> tuple[float, float]:
    """Wilson's 95 % confidence interval of a fraction (JASA 1927, 22:209-212).

    effective: the number of independent images that `total` images are worth, if they depend on each other
    (`vit_train.clustered.effective_number`); it need not be a whole number. Without it, the result equals that of
    scipy's `binomtest(correct, total).proportion_ci(0.95, method="wilson")`, bit for bit.
    """
    z, n, p = ndtri(0.975), total if effective is None else effective, correct / total
    scale = 2 * (n + z**2)
    middle, half = (2 * n * p + z**2) / scale, z / scale * sqrt(4 * n * p * (1 - p) + z**2)
    return 0.0 if correct == 0 else float(middle - half), 1.0 if correct == total else float(middle + half)
