"""Evaluation: accuracy and loss of a predictor over a split."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax

from vit_core.errors import InputError
from vit_train.config import EvaluationOptions, Loss
from vit_train.data.batches import EvaluationBatches, stream
from vit_train.data.sources import Split
from vit_train.display import SILENT, Display
from vit_train.engine import BatchRows, Predictor
from vit_train.signals import StoppedBySignal, StopSignal, never

DEFAULT_SIGNAL = int(signal.SIGTERM)
"""Reported where another process was stopped: which signal it got is not known here."""


@dataclass(frozen=True)
class Accuracy:
    """Accuracy over a split: how many of `total` images had their label first, or among the first five."""

    correct: int
    correct5: int
    total: int
    loss: float
    """Mean cross entropy."""

    @property
    def top1(self) -> float:
        """Fraction of the images whose label came first."""
        return self.correct / self.total

    @property
    def top5(self) -> float:
        """Fraction of the images whose label was among the first five."""
        return self.correct5 / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % confidence interval of the top-1."""
        from scipy.stats import binomtest  # takes a second to import

        interval = binomtest(self.correct, self.total).proportion_ci(0.95, method="wilson")
        return float(interval.low), float(interval.high)


def evaluate(
    predictor: Predictor,
    split: Split,
    options: EvaluationOptions,
    *,
    outputs: Sequence[int] | None = None,
    stop: StopSignal = never,
    display: Display = SILENT,
) -> Accuracy:
    """Accuracy over a split, each example once; processes share the work.

    outputs: class of the split -> output of the model that stands for it; None: the output of the same number.
    stop: asked before each batch. Raises InputError for an image that cannot be read, unless the options allow it, and
    for a label that is no class; StoppedBySignal, in every process, when `stop` gives a signal in one.
    """
    size = -(-options.batch_size // predictor.batch_shards) * predictor.batch_shards
    rows = predictor.rows(size)
    batches = EvaluationBatches(split, options.preprocessing, size, options.allow_undecodable, rows)
    sums, output_of_class = np.zeros(4), np.arange(len(split.labels)) if outputs is None else np.array(outputs)
    shown = display if predictor.process == 0 else SILENT
    with shown.task(f"evaluate ({predictor.name})", len(batches)) as task:
        for i, batch in enumerate(stream(batches, slice(None), options.threads, options.workers)):
            if (number := signal_in_any_process(predictor, stop())) is not None:
                raise StoppedBySignal(number)
            logits_BC = predictor.predict(batch.images_BHWC)[batch.counts_B].astype(np.float64)
            labels_B = output_of_class[batch.labels_B[batch.counts_B]]
            first_B5 = np.argsort(-logits_BC, axis=-1, kind="stable")[:, :5]
            hits_B5 = first_B5 == labels_B[:, None]
            loss = cross_entropy(logits_BC, labels_B, options.loss)
            sums += hits_B5[:, 0].sum(), hits_B5.sum(), len(labels_B), loss
            task.update(i + 1, split.title)
    correct, correct5, total, loss = predictor.total(sums if predictor.primary else 0 * sums)
    if not total:
        raise InputError(f"{split.title}: none of its images can be read")
    return Accuracy(int(correct), int(correct5), int(total), float(loss / total))


def signal_in_any_process(processes: BatchRows, number: int | None) -> int | None:
    """The signal that arrived in this process, or in another one; all processes agree whether one did."""
    if processes.processes == 1:
        return number
    arrived = int(processes.total(np.array(number is not None, np.int64)))
    return (number or DEFAULT_SIGNAL) if arrived else None


def cross_entropy(logits_BC: np.ndarray, labels_B: np.ndarray, loss: Loss) -> float:
    """The loss of training without label smoothing, summed over examples; float64."""
    if loss == "softmax":
        return -float(np.take_along_axis(log_softmax(logits_BC, axis=-1), labels_B[:, None], axis=-1).sum())
    signs_BC = np.where(np.arange(logits_BC.shape[1]) == labels_B[:, None], -1, 1)
    return float(np.logaddexp(0, signs_BC * logits_BC).sum())
