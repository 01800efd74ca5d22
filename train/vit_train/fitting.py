"""Fits fields of a recipe to the training images: classes, image size, batch, steps, warm-up.

Only training images are used, so nothing that is fitted depends on the split on which the run is evaluated.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from math import ceil, lcm
from typing import Any, Self, TypeAlias

import numpy as np
from PIL import Image

from vit_core.errors import InputError
from vit_train.config import TrainConfig
from vit_train.data.sources import Split

FieldPath: TypeAlias = tuple[str, ...]
"""("optimizer", "learning_rate")"""
Fields: TypeAlias = Mapping[FieldPath, Any]
"""Path of a config field -> its value."""

CLASSES, LOSS = ("model", "num_classes"), ("loss",)
MASK_RATIO = ("mae", "mask_ratio")
IMAGE_SIZE, PATCH_SIZE = ("model", "image_size"), ("model", "patch_size")
BATCH, STEPS, WARMUP, COOLDOWN = (
    ("batch_size",),
    ("steps",),
    ("schedule", "warmup_steps"),
    ("schedule", "cooldown_steps"),
)
INTERVALS = (("evaluate_every",), ("save_every",))
KEPT_ON_RESUME = (IMAGE_SIZE, PATCH_SIZE, BATCH, STEPS, WARMUP, COOLDOWN, *INTERVALS)
"""Fitted fields whose values a run keeps after it has begun. (The classes are always those of its data.)"""

SMALLEST_BATCH, BATCHES_OF_AN_EPOCH = 8, 8
"""For a small set: the smallest batch, and the smallest number of batches in an epoch. The batch is the largest power
of two that gives as many."""
LARGE_DECODER = 4
"""A note is made if the decoder of a masked autoencoder has this many times more FLOPs than the encoder."""
SMALLEST_GRID = 8
"""For small images: the patch size is reduced until there are this many patches along the shorter side."""
SAMPLE = 64
"""Number of images, evenly spaced in the training split, whose sizes determine the image size."""


@dataclass(frozen=True)
class TrainingSet:
    """The properties of a training split that fitting uses."""

    examples: int
    classes: int
    side: int | None = None
    """Median of the shorter sides of a sample of its images, in pixels; None if none of them can be opened."""
    multilabel: bool = False
    """Whether an image may have any number of classes."""

    @classmethod
    def of(cls, split: Split) -> Self:
        """Counts a split's examples and classes, and opens a sample of its images."""
        sample = np.unique(np.linspace(0, len(split) - 1, SAMPLE).astype(int))
        sides = [side for i in sample if (side := _shorter_side(split, int(i))) is not None]
        side = int(np.median(sides)) if sides else None
        return cls(len(split), len(split.labels), side, split.multilabel)


def _shorter_side(split: Split, i: int) -> int | None:
    try:
        with Image.open(io.BytesIO(split.examples[i]["image"])) as image:
            return min(image.size)
    except (InputError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # it is reported in training
        return None


@dataclass(frozen=True)
class _Fit:
    """The recipe's values, replaced by chosen and fitted ones; a chosen value is never changed."""

    recipe: TrainConfig
    chosen: Fields
    fitted: dict[FieldPath, Any] = field(default_factory=dict)

    def __getitem__(self, path: FieldPath) -> Any:
        for values in (self.chosen, self.fitted):
            if path in values:
                return values[path]
        return reduce(getattr, path, self.recipe)

    def __setitem__(self, path: FieldPath, value: Any) -> None:
        if path not in self.chosen and value != self[path]:
            self.fitted[path] = value


def fitted_fields(
    recipe: TrainConfig,
    chosen: Fields,
    data: TrainingSet,
    *,
    epochs: float | None = None,
    most_epochs: int | None = None,
    new_weights: bool = True,
) -> dict[FieldPath, Any]:
    """The fields of a recipe that are changed for its training images, except those that the user has chosen.

    Every recipe: the number of classes (0 for a masked autoencoder); the sigmoid loss, where images may have several
    classes; a batch that is larger than the set; a masked autoencoder's batch (the paper's has 4096 images) that leaves
    an epoch only a few batches; the steps, where `epochs` are asked for; a warm-up and cooldown that are longer than
    the run.
    A recipe that states the most epochs of a run (Recipe.most_epochs): the steps; for small sets the batch, the
    warm-up and the intervals of evaluation and saving; for small images the image and patch size of new weights.
    """
    fit = _Fit(recipe, chosen)
    if data.classes < 2 and not fit[MASK_RATIO]:
        raise InputError("data.labelled: false leaves nothing to train toward; set --mae.mask-ratio 0.75")
    fit[CLASSES] = 0 if fit[MASK_RATIO] else data.classes
    if data.multilabel and not fit[MASK_RATIO]:
        fit[LOSS] = "sigmoid"
    if most_epochs and new_weights and data.side:
        _fit_image_size(fit, data.side)
    few = bool(fit[MASK_RATIO]) and fit[BATCH] * BATCHES_OF_AN_EPOCH > data.examples
    _fit_batch(fit, data.examples, small=few or most_epochs is not None)
    if epochs is not None:
        fit[STEPS] = max(1, round(epochs * data.examples / fit[BATCH]))
    elif most_epochs:
        fit[STEPS] = min(fit[STEPS], ceil(most_epochs * data.examples / fit[BATCH]))
    _fit_schedule(fit, small=most_epochs is not None)
    return fit.fitted


def _fit_image_size(fit: _Fit, side: int) -> None:
    """Images that are much smaller than the recipe's are not enlarged; the patch size is reduced instead."""
    if 4 * side >= 3 * min(fit.recipe.model.image_size) or IMAGE_SIZE in fit.chosen:
        return
    patch = min(fit[PATCH_SIZE])
    while patch > 1 and PATCH_SIZE not in fit.chosen and side < SMALLEST_GRID * patch:
        patch //= 2
    size = max(round(side / patch), SMALLEST_GRID) * patch
    if size < min(fit.recipe.model.image_size):
        fit[PATCH_SIZE], fit[IMAGE_SIZE] = (patch, patch), (size, size)


def _fit_batch(fit: _Fit, examples: int, small: bool) -> None:
    batch = fit[BATCH]
    if small:
        batch = min(batch, max(SMALLEST_BATCH, 2 ** int(np.log2(max(examples // BATCHES_OF_AN_EPOCH, 1)))))
    if batch > examples or small:
        parts = fit[("accumulation",)] * 2  # whole pairs, for mixup
        fit[BATCH] = max(min(batch, examples) // parts * parts, 1)


def _fit_schedule(fit: _Fit, small: bool) -> None:
    steps = fit[STEPS]
    too_long = fit[WARMUP] + fit[COOLDOWN] >= steps
    if too_long or (small and fit[WARMUP] > steps // 10):
        fit[WARMUP] = min(fit[WARMUP], steps // 10)
    if too_long:
        fit[COOLDOWN] = min(fit[COOLDOWN], steps // 5)
    for path in INTERVALS if small else ():
        if fit[path] > steps // 5:
            fit[path] = steps // 10 if steps >= 100 else 0


def decoder_note(config: TrainConfig) -> str | None:
    """Advice on a smaller decoder, for a masked autoencoder whose decoder has `LARGE_DECODER` times more FLOPs than its
    encoder; None for any other. The papers' decoder, of 8 blocks of width 512, is small beside B/16, not beside
    smaller models.
    """
    if config.masked is None:
        return None
    parts, model = config.forward_flops, config.model
    decoder = sum(count for name, count in parts.items() if name.startswith("decoder."))
    encoder = sum(parts.values()) - decoder
    if decoder <= LARGE_DECODER * encoder:
        return None
    unit = lcm(4, model.heads)  # of the positions, and of the heads
    width = max(model.width // 2 // unit, 1) * unit
    return (
        f"the decoder has {decoder / encoder:.0f} times the FLOPs of the encoder, so that most of the time is spent on "
        f"it; a smaller one: --mae.decoder-width {width} --mae.decoder-depth {max(model.depth * 2 // 3, 1)} "
        f"--mae.decoder-heads {model.heads}"
    )
