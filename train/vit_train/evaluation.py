"""Evaluation: accuracy, loss and the metrics of every class, of a predictor over a split."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy.special import expit, log_softmax

from vit_core.errors import InputError
from vit_train.calibration import Calibration, calibration
from vit_train.classification import ClassReport, one_hot, report_of_predictions, report_of_sets, wilson_interval
from vit_train.clustered import effective_number
from vit_train.config import EvaluationOptions, Loss
from vit_train.data.batches import EvaluationBatch, EvaluationBatches, check_loss
from vit_train.data.sources import Groups, Split
from vit_train.data.streams import stream
from vit_train.display import SILENT, Display
from vit_train.engine import BatchRows, Predictor
from vit_train.signals import StoppedBySignal, StopSignal, never

DEFAULT_SIGNAL = int(signal.SIGTERM)
"""Reported if another process was stopped, because its signal is not known in this process."""


@dataclass(frozen=True)
class Accuracy:
    """Accuracy over a split of `total` images."""

    correct: int
    """Images whose label came first; in a multi-label split, images for which the decisions of all classes are
    correct."""
    correct5: int | None
    """Images whose label, or one of whose classes, was among the first five; None if the model has no more outputs."""
    total: int
    loss: float
    """Mean over the images of the loss of training, without label smoothing and class weights."""
    classes: ClassReport | None = field(default=None, compare=False, repr=False)
    """How well each class was recognized."""
    calibration: Calibration | None = field(default=None, compare=False, repr=False)
    """How well confidence agrees with accuracy, if each image has one class."""
    ids_N: np.ndarray | None = field(default=None, compare=False, repr=False)
    """Index in the split of each evaluated image, in the order of `classes.pairs`."""
    groups: Groups | None = field(default=None, compare=False, repr=False)
    """The group of each evaluated image, in the same order, if the data name groups."""

    @property
    def top1(self) -> float:
        """Fraction of the images that are `correct`."""
        return self.correct / self.total

    @property
    def top5(self) -> float | None:
        """Fraction of the images whose label was among the first five; None if the model has no more outputs."""
        return None if self.correct5 is None else self.correct5 / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % confidence interval of the top-1, of the effective number of images if they have groups."""
        return wilson_interval(self.correct, self.total, self.effective)

    @cached_property
    def right_N(self) -> np.ndarray:
        """bool [N]: whether the prediction for each evaluated image is right, in the order of `ids_N`. Only of a split
        whose images have one class each."""
        assert self.classes is not None
        assert self.classes.pairs is not None
        classes_N, predictions_N = self.classes.pairs
        return classes_N == predictions_N

    @cached_property
    def effective(self) -> float | None:
        """The number of independent images that the evaluated ones are worth (`effective_number`); None if they have no
        groups, or may have several classes."""
        return None if self.groups is None or self.multilabel else effective_number(self.right_N, self.groups.group_N)

    @property
    def multilabel(self) -> bool:
        """Whether an image may have any number of classes."""
        return self.classes is not None and self.classes.pairs is None

    @property
    def values(self) -> dict[str, float]:
        """The values that a run logs, without those that are nan. The first is the one by which steps are compared."""
        found = {"top1": self.top1} if self.top5 is None else {"top1": self.top1, "top5": self.top5}
        if self.classes is not None:
            f1 = {"macro_f1": self.classes.macro_f1, "micro_f1": self.classes.micro_f1}
            ranking = {"mean_average_precision": self.classes.mean_average_precision or 0.0}
            found = {**ranking, **f1, "exact": self.top1} if self.multilabel else {**found, "macro_f1": f1["macro_f1"]}
        return {name: value for name, value in found.items() if not np.isnan(value)}


def evaluate(
    predictor: Predictor,
    split: Split,
    options: EvaluationOptions,
    *,
    outputs: Sequence[int] | None = None,
    ranked: bool = False,
    stop: StopSignal = never,
    display: Display = SILENT,
) -> Accuracy:
    """Accuracy over a split, each example once; processes share the work.

    outputs: class of the split -> output of the model for it; None: the output of the same number. ranked: also compute
    the average precision of each class if examples have one class; this keeps the logits of all examples in memory (as
    always if they have several classes). stop: called before each batch. Raises InputError for an image that cannot be
    read, unless the options allow it, and for a label that is no class; StoppedBySignal, in every process, if `stop`
    returns a signal in one of them.
    """
    check_loss(split, options.loss)
    size = -(-options.batch_size // predictor.batch_shards) * predictor.batch_shards
    rows = predictor.rows(size)
    batches = EvaluationBatches(split, options.preprocessing, size, options.allow_undecodable, rows)
    predictions = _Predictions(
        split, options.loss, np.arange(len(split.labels)) if outputs is None else np.array(outputs), ranked
    )
    shown = display if predictor.process == 0 else SILENT
    with shown.task(f"evaluate ({predictor.name})", len(batches)) as task:
        for i, batch in enumerate(stream(batches, slice(None), options.threads, options.workers)):
            if (number := signal_in_any_process(predictor, stop())) is not None:
                raise StoppedBySignal(number)
            predictions.add(batch, predictor.predict(batch.images_BHWC).astype(np.float64))
            task.update(i + 1, split.title)
    return predictions.accuracy(predictor)


class _Predictions:
    """The predictions for the examples of a split: first for those of this process, then for all.

    Scores are kept in float32, because the float64 logits of both engines round to the same values: otherwise their
    last bits would decide the order of equal images.
    """

    def __init__(self, split: Split, loss: Loss, outputs: np.ndarray, ranked: bool) -> None:
        self.split, self.loss, self.outputs = split, loss, outputs
        N, C = len(split), len(split.labels)
        self.sums = np.zeros(4)
        """Correct, correct among the first five, examples, loss."""
        self.few_outputs = False
        self.counted_N = np.zeros(N, np.uint8)
        self.labels_N = np.zeros((N, C), np.uint8) if split.multilabel else np.zeros(N, np.int64)
        self.predictions_N, self.confidences_N = np.zeros(N, np.int64), np.zeros(N, np.float32)
        self.scores_NC = np.zeros((N, C), np.float32) if ranked or split.multilabel else None

    def add(self, batch: EvaluationBatch, logits_BO: np.ndarray) -> None:
        """Adds a batch; logits_BO: [B, outputs of the model], float64."""
        ids, labels, logits_BO = (x[batch.counts_B] for x in (batch.ids_B, batch.labels_B, logits_BO))
        self.few_outputs = logits_BO.shape[1] <= 5
        first_B5 = np.argsort(-logits_BO, axis=-1, kind="stable")[:, :5]
        if self.split.multilabel:
            wanted = np.zeros(logits_BO.shape, bool)
            wanted[:, self.outputs] = labels
            correct_B = ((logits_BO[:, self.outputs] > 0) == labels).all(axis=-1)
            correct5_B = np.take_along_axis(wanted, first_B5, axis=-1).any(axis=-1)
        else:
            wanted = self.outputs[labels]
            hits_B5 = first_B5 == wanted[:, None]
            correct_B, correct5_B = hits_B5[:, 0], hits_B5.any(axis=-1)
            class_of_output = np.full(logits_BO.shape[1], len(self.outputs))
            class_of_output[self.outputs] = np.arange(len(self.outputs))
            self.predictions_N[ids] = class_of_output[first_B5[:, 0]]
            self.confidences_N[ids] = confidences(logits_BO, self.loss)
        self.sums += correct_B.sum(), correct5_B.sum(), len(ids), cross_entropy(logits_BO, wanted, self.loss)
        self.counted_N[ids], self.labels_N[ids] = 1, labels
        if self.scores_NC is not None:
            # Of one class among several, by probability: the logits of different images have no common zero.
            scores_BO = logits_BO if self.loss == "sigmoid" else log_softmax(logits_BO, axis=-1)
            self.scores_NC[ids] = scores_BO[:, self.outputs]

    def accuracy(self, processes: BatchRows) -> Accuracy:
        """The accuracy over the examples of all processes. Raises InputError if none could be read."""

        def total(ours: np.ndarray) -> np.ndarray:
            return processes.total(ours if processes.primary else 0 * ours)

        correct, correct5, count, loss = total(self.sums)
        if not count:
            raise InputError(f"{self.split.title}: none of its images can be read")
        counted_N = total(self.counted_N) > 0
        labels_N, scores_NC, calibrated = total(self.labels_N)[counted_N], None, None
        if self.scores_NC is not None:
            scores_NC = total(self.scores_NC)[counted_N]
        if self.split.multilabel:
            assert scores_NC is not None
            report = report_of_sets(self.split.labels, labels_N > 0, scores_NC)
        else:
            predictions_N, confidences_N = (total(x)[counted_N] for x in (self.predictions_N, self.confidences_N))
            report = report_of_predictions(self.split.labels, labels_N, predictions_N, scores_NC)
            calibrated = calibration(confidences_N, predictions_N == labels_N)
        ids_N = np.flatnonzero(counted_N)
        among5 = None if self.few_outputs else int(correct5)
        groups = None if self.split.groups is None else self.split.groups.take(ids_N)
        return Accuracy(int(correct), among5, int(count), float(loss / count), report, calibrated, ids_N, groups)


def signal_in_any_process(processes: BatchRows, number: int | None) -> int | None:
    """The signal that arrived in this process, or in another one; all processes agree whether one did."""
    if processes.processes == 1:
        return number
    arrived = int(processes.total(np.array(number is not None, np.int64)))
    return (number or DEFAULT_SIGNAL) if arrived else None


def confidences(logits_BC: np.ndarray, loss: Loss) -> np.ndarray:
    """float64 [B]: the probability of the class with the largest logit, by softmax or sigmoid."""
    if loss == "sigmoid":
        best_B: np.ndarray = expit(logits_BC.max(axis=-1))
        return best_B
    return np.exp(log_softmax(logits_BC, axis=-1).max(axis=-1))


def cross_entropy(logits_BC: np.ndarray, labels: np.ndarray, loss: Loss) -> float:
    """The loss of training without label smoothing, summed over examples; float64.

    labels: int64 [B], or for sigmoid also bool [B, classes]: which classes an example has.
    """
    if loss == "softmax":
        return -float(np.take_along_axis(log_softmax(logits_BC, axis=-1), labels[:, None], axis=-1).sum())
    has_BC = one_hot(labels, logits_BC.shape[1]) if labels.ndim == 1 else labels
    return float(np.logaddexp(0, np.where(has_BC, -1, 1) * logits_BC).sum())
