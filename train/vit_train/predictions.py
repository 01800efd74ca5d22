"""Predictions for the images of a split: the worst ones, and the classes that are confused."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeVar

import numpy as np
from scipy.special import log_softmax

from vit_core.errors import InputError
from vit_core.image_batches import Images
from vit_core.preprocess import Preprocessing
from vit_train.calibration import Calibration, calibration
from vit_train.classification import OTHER, ClassReport, report_of_predictions
from vit_train.data.batches import evaluation_pixels
from vit_train.data.sources import Split
from vit_train.display import SILENT, Display
from vit_train.engine import Predictor

logger = logging.getLogger("vit")

Image = TypeVar("Image")

BATCH = 50


@dataclass(frozen=True)
class PredictedImage:
    """An image of a data set, and the predicted class."""

    pixels_HWC: np.ndarray
    label: str
    prediction: str
    probability: float
    """Probability of the prediction."""
    loss: float


@dataclass(frozen=True)
class Predictions:
    """Predictions for N images of a split, each of which has one class."""

    split: Split
    preprocessing: Preprocessing
    ids_N: np.ndarray
    """Index of each image in the split."""
    classes_N: np.ndarray
    """Class of each image."""
    outputs: np.ndarray
    """Class of the split -> output of the model."""
    log_probabilities_NO: np.ndarray
    """Logarithm of the probability of each output of the model, float64."""

    @cached_property
    def predictions_N(self) -> np.ndarray:
        """int64 [N]: the predicted class; the number of classes, if the output is no class of the split."""
        class_of_output = np.full(self.log_probabilities_NO.shape[1], len(self.outputs))
        class_of_output[self.outputs] = np.arange(len(self.outputs))
        return class_of_output[self.log_probabilities_NO.argmax(axis=1)]

    @cached_property
    def losses_N(self) -> np.ndarray:
        """Cross entropy of each image."""
        return -self.log_probabilities_NO[np.arange(len(self.ids_N)), self.outputs[self.classes_N]]

    @property
    def report(self) -> ClassReport:
        """The report of accuracy by class."""
        return report_of_predictions(self.split.labels, self.classes_N, self.predictions_N)

    @property
    def calibration(self) -> Calibration:
        """How well the probabilities of the predictions, by softmax, agree with their accuracy."""
        return calibration(np.exp(self.log_probabilities_NO.max(axis=1)), self.predictions_N == self.classes_N)

    def worst(self, count: int) -> list[PredictedImage]:
        """The images with a wrong prediction and the largest losses, worst first."""
        wrong_W = np.flatnonzero(self.predictions_N != self.classes_N)
        order = np.argsort(-self.losses_N[wrong_W], kind="stable")
        return [self._image(n) for n in wrong_W[order][:count]]

    def confused(self, pairs: int, images: int) -> list[PredictedImage]:
        """Images of those pairs (class, prediction) that occur most often, each pair's with the largest loss first."""
        found = []
        wrong_W = np.flatnonzero(self.predictions_N != self.classes_N)
        both_W2 = np.stack([self.classes_N[wrong_W], self.predictions_N[wrong_W]], axis=1)
        kinds_K2, counts_K = np.unique(both_W2, axis=0, return_counts=True)
        for kind_2 in kinds_K2[np.argsort(-counts_K, kind="stable")][:pairs]:
            of_kind = wrong_W[(both_W2 == kind_2).all(axis=1)]
            found += [self._image(n) for n in of_kind[np.argsort(-self.losses_N[of_kind], kind="stable")][:images]]
        return found

    def _image(self, n: int) -> PredictedImage:
        names = (*self.split.labels, OTHER)
        example = self.split.examples[int(self.ids_N[n])]
        return PredictedImage(
            pixels_HWC=evaluation_pixels(example, self.preprocessing),
            label=names[self.classes_N[n]],
            prediction=names[self.predictions_N[n]],
            probability=float(np.exp(self.log_probabilities_NO[n].max())),
            loss=float(self.losses_N[n]),
        )


def spread_over(split: Split, count: int) -> np.ndarray:
    """Indices of `count` examples of a split (of all, if it has fewer), evenly spaced, ascending."""
    return np.unique(np.linspace(0, len(split) - 1, min(count, len(split))).astype(int))


def readable_among(
    split: Split, ids: Iterable[int], read: Callable[[Any], Image], named: bool = True
) -> Iterator[tuple[int, Image, Any]]:
    """The readable ones among the images of a split with the indices `ids`: for each its index, what `read` makes of
    the example, and its label. The others are named in warnings if `named` is true.

    read: for example `evaluation_pixels` with a preprocessing; raises InputError for an image that cannot be read.
    """
    for i in map(int, ids):
        try:
            example = split.examples[i]
            image, label = read(example), example["label"]
        except InputError as error:
            if named:
                logger.warning("skipped: %s; fix or remove it", split.fault(i, error))
            continue
        yield i, image, label


def readable_batches(
    split: Split, count: int, size: int, read: Callable[[Any], Image], title: str, display: Display
) -> Iterator[list[tuple[int, Image, Any]]]:
    """The readable ones among `count` images of a split, evenly spaced: a list of what `readable_among` gives for each
    `size` images, without empty lists. The display shows the progress. Raises InputError at the end if no image can be
    read."""
    ids_N, some = spread_over(split, count), False
    with display.task(title, len(ids_N)) as task:
        for begin in range(0, len(ids_N), size):
            ids = ids_N[begin : begin + size]
            if found := list(readable_among(split, ids, read)):
                some = True
                yield found
            task.update(begin + len(ids), split.title)
    if not some:
        raise InputError(f"{split.title}: none of {len(ids_N)} images can be read; see the lines above")


def predictions_for(
    predictor: Predictor,
    split: Split,
    preprocessing: Preprocessing,
    outputs: Sequence[int],
    count: int,
    display: Display = SILENT,
) -> Predictions:
    """A predictor's predictions for `count` images of a split, evenly spaced.

    outputs: class of the split -> output of the model. Images that cannot be read are named and left out; InputError
    where none can be.
    """
    kept, classes, logits = [], [], []
    read = partial(evaluation_pixels, preprocessing=preprocessing)
    for found in readable_batches(split, count, BATCH, read, "predictions", display):
        images = Images(preprocessing, len(found))
        for row, (i, pixels_HWC, label) in enumerate(found):
            images[row] = pixels_HWC
            kept.append(i)
            classes.append(int(label))
        logits.append(predictor.predict(images.batch()).astype(np.float64))
    probabilities = log_softmax(np.concatenate(logits), axis=-1)
    return Predictions(split, preprocessing, np.array(kept), np.array(classes), np.array(outputs), probabilities)
