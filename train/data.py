"""Examples to batches. Batch i is a pure function of (seed, i): order, augmentation and masks are drawn here, on the
host, from the global example index, whatever reads them and however many threads help. Engines only apply them.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
from PIL import Image

from vit_core import masks
from vit_core.errors import InputError
from vit_core.preprocess import Preprocessing, decode_image, resize_image

from .config import Augmentation, TrainConfig

IMAGE_STREAM, MASK_STREAM = 1, 2
"""Kinds of random draws, so that an example and a step of the same number draw different ones."""


class Batch(NamedTuple):
    """What an engine gets for one step."""

    images_BHWC: np.ndarray
    """uint8; normalised by the engine."""
    targets_BC: np.ndarray
    """float32 class weights, summing to one."""
    weights_B: np.ndarray
    """float32; 0: the example does not count."""
    masks: dict[str, np.ndarray]
    """Dropout and stochastic depth, by site (vit_core.masks)."""


Example = Mapping[str, Any]
"""{"image": the bytes of an image file, "label": int}"""


def batches(source: Sequence[Example], config: TrainConfig) -> grain.MapDataset:
    """The run's training batches by index: `batches(...)[i]` is batch i, shuffled anew each epoch."""

    def example(i: int, example: Example) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([config.seed, IMAGE_STREAM, i])
        pixels_HWC = read(example, config.preprocessing)
        return augment(pixels_HWC, config.augmentation, rng), np.asarray(example["label"])

    def finish(step: int, batch: tuple[np.ndarray, np.ndarray]) -> Batch:
        images_BHWC, labels_B = batch
        rng = np.random.default_rng([config.seed, MASK_STREAM, step])
        weights_B = np.ones(len(labels_B), np.float32)
        drawn = masks.draw(config.model, len(labels_B), rng)
        return Batch(images_BHWC, smooth_targets(labels_B, config), weights_B, drawn)

    dataset = grain.MapDataset.source(source).seed(config.seed).shuffle().repeat().map_with_index(example)
    return dataset.batch(config.batch_size).map_with_index(finish)


def stream(dataset: grain.MapDataset, start: int, stop: int) -> Iterator[Batch]:
    """Batches start, start + 1, ... before `stop`, made ahead by two threads."""
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    return iter(dataset.slice(slice(start, stop)).to_iter_dataset(options))


def evaluation_batches(
    source: Sequence[Example], preprocessing: Preprocessing, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(uint8 images_BHWC, labels_B, counts_B) over a split, once; the last batch is padded, and padding counts not."""
    for first in range(0, len(source), batch_size):
        examples = [source[i] for i in range(first, min(first + batch_size, len(source)))]
        padding = batch_size - len(examples)
        images = [read(example, preprocessing) for example in examples]
        images_BHWC = np.stack(images + [np.zeros_like(images[0])] * padding)
        labels_B = np.array([int(example["label"]) for example in examples] + [0] * padding)
        yield images_BHWC, labels_B, np.arange(batch_size) < len(examples)


def read(example: Example, preprocessing: Preprocessing) -> np.ndarray:
    """uint8 [H, W, C]: an example's image by the evaluation transform."""
    image = decode_image(example["image"], preprocessing.channels, preprocessing.exif_rotation)
    return resize_image(image, preprocessing)


def smooth_targets(labels_B: np.ndarray, config: TrainConfig) -> np.ndarray:
    """float32 targets_BC from labels: one-hot, smoothed. InputError for a label that is no class."""
    classes, smoothing = config.model.num_classes, config.label_smoothing
    if labels_B.min() < 0 or labels_B.max() >= classes:
        raise InputError(f"labels range over [{labels_B.min()}, {labels_B.max()}], the model has {classes} classes")
    return ((1 - smoothing) * np.eye(classes)[labels_B] + smoothing / classes).astype(np.float32)


def augment(pixels_HWC: np.ndarray, augmentation: Augmentation, rng: np.random.Generator) -> np.ndarray:
    """A random rotation about the centre and shift, bicubic, black beyond the border."""
    angle, down, across = rng.uniform(-1, 1, 3)
    if not (augmentation.rotation or augmentation.shift):
        return pixels_HWC
    height, width, channels = pixels_HWC.shape
    angle = np.deg2rad(angle * augmentation.rotation)
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = width / 2, height / 2
    right, below = across * augmentation.shift * width, down * augmentation.shift * height
    # Pillow asks where in the source each target pixel comes from: rotate about the centre, then shift.
    inverse = (cos, sin, x - cos * x - sin * y + right, -sin, cos, y + sin * x - cos * y + below)
    image = Image.fromarray(pixels_HWC[..., 0] if channels == 1 else pixels_HWC)
    turned = image.transform((width, height), Image.Transform.AFFINE, inverse, Image.Resampling.BICUBIC)
    return np.asarray(turned).reshape(height, width, channels)
