"""The pipelines from images to the names of their classes that `vit_jax.pipeline` and `vit_torch.pipeline` return."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, overload

import numpy as np

from vit_core.checkpoints.checkpoint import Checkpoint, CheckpointConfig
from vit_core.errors import InputError
from vit_core.preprocess import ImageSource, Preprocessing, assumed_preprocessing
from vit_core.streaming import DeviceFunction, compute

Source = TypeVar("Source", bound=ImageSource)


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of an image, the most probable first."""

    labels: tuple[str, ...]
    """Names of the classes."""
    probabilities: tuple[float, ...]
    """From 0 to 1. They sum to 1 over all classes where an image has one class; where it may have several, each is the
    probability that the class is there."""

    @property
    def label(self) -> str:
        """Name of the most probable class."""
        return self.labels[0]

    @property
    def probability(self) -> float:
        """Probability of that class."""
        return self.probabilities[0]

    def __str__(self) -> str:
        pairs = zip(self.labels, self.probabilities, strict=True)
        return ", ".join(f"{label} {probability:.1%}" for label, probability in pairs)


class Pipeline:
    """Classifies images: `pipeline("photo.jpg")` returns a `Prediction`, a list of images returns a list of
    predictions.

    An image is the path of a file, a Pillow image, or an array of pixels (uint8, height x width x channels).
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        on_devices: Callable[[Preprocessing], DeviceFunction],
        *,
        top_k: int | None = 5,
        batch_size: int = 32,
        labels: Sequence[str] | None = None,
        preprocessing: Mapping[str, Any] | None = None,
        threads: int | None = None,
    ) -> None:
        """on_devices: makes the function from images to logits for a preprocessing; the other arguments are those of
        `vit_torch.pipeline`.

        Raises InputError for a checkpoint without a head, and for one without labels if none are given.
        """
        config = checkpoint.config
        for name, number in (("top_k", top_k), ("batch_size", batch_size), ("threads", threads)):
            if number is not None and number < 1:
                raise InputError(f"{name} {number}: expected 1 or more")
        self.labels = _labels_of(checkpoint, labels)
        self.probabilities = config.probabilities or "softmax"
        self.preprocessing = preparation_with_warnings(config, preprocessing, stacklevel=4)
        self.top_k = min(top_k or len(self.labels), len(self.labels))
        self.batch_size, self.threads = batch_size, threads
        self.function = on_devices(self.preprocessing)

    @overload
    def __call__(self, images: ImageSource) -> Prediction: ...

    @overload
    def __call__(self, images: list[Source] | tuple[Source, ...]) -> list[Prediction]: ...

    def __call__(self, images: Any) -> Prediction | list[Prediction]:
        """The prediction for an image, or a list of predictions for a list of images. Raises InputError for an image
        that cannot be read."""
        if not isinstance(images, list | tuple):
            return self([images])[0]
        # For few images a small batch: a power of two, so that only some sizes are ever compiled.
        size = min(self.batch_size, 1 << (len(images) - 1).bit_length()) if images else 1
        return [_raised(found) for found in self._predictions(images, size)]

    def stream(self, images: Iterable[ImageSource]) -> Iterator[Prediction | InputError]:
        """Yields the prediction for each image, in order, or the error if it cannot be read. Only a few batches are in
        memory at the same time."""
        return self._predictions(images, self.batch_size)

    def _predictions(self, images: Iterable[ImageSource], size: int) -> Iterator[Prediction | InputError]:
        for computed in compute(self.function, images, self.preprocessing, size, self.threads):
            for logits_C, error in zip(computed.values_N.astype(np.float64), computed.errors, strict=True):
                yield error or self._prediction(logits_C)

    def _prediction(self, logits_C: np.ndarray) -> Prediction:
        first = np.argsort(-logits_C, kind="stable")[: self.top_k]
        return Prediction(
            tuple(self.labels[i] for i in first), tuple(probabilities(logits_C, self.probabilities)[first].tolist())
        )


def preparation_with_warnings(
    config: CheckpointConfig, changes: Mapping[str, Any] | None, stacklevel: int = 2
) -> Preprocessing:
    """The preprocessing of a model's images. Warns if it is assumed, and if positions were resampled and not trained
    afterwards."""
    found, assumed = config.preparation(changes)
    if assumed:
        warnings.warn(f"{assumed_preprocessing(found)}; set others with preprocessing", stacklevel=stacklevel)
    if (resampled := config.provenance.resampling_warning) is not None:
        warnings.warn(resampled, stacklevel=stacklevel)
    return found


def probabilities(logits_C: np.ndarray, how: str) -> np.ndarray:
    """float64 probabilities by "softmax" or "sigmoid", the last axis being the classes; no overflow for any logits."""
    if how == "sigmoid":
        return np.exp(-np.logaddexp(0.0, -logits_C))
    powers_C = np.exp(logits_C - logits_C.max(axis=-1, keepdims=True))
    result: np.ndarray = powers_C / powers_C.sum(axis=-1, keepdims=True)
    return result


def _labels_of(checkpoint: Checkpoint, given: Sequence[str] | None) -> tuple[str, ...]:
    """The names of a checkpoint's outputs. Raises InputError if it has none."""
    outputs = checkpoint.config.model.num_classes
    if not outputs:
        raise InputError(f"{checkpoint.origin}: has no head, so no classes to predict; fine-tune it first")
    labels = checkpoint.config.labels if given is None else tuple(given)
    if labels is None:
        raise InputError(
            f"{checkpoint.origin}: has no names for its {outputs} classes; give them in their order: labels=[...] in "
            "Python, --class-names FILE with one in each line for vit predict"
        )
    if len(labels) != outputs:
        raise InputError(f"{checkpoint.origin}: {len(labels)} names of classes for its {outputs} outputs")
    return labels


def _raised(found: Prediction | InputError) -> Prediction:
    if isinstance(found, InputError):
        raise found
    return found
