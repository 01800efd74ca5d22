"""`vit bench input`: how fast one core decodes JPEG files, crops them at random and flips them, beside torchvision."""

import io
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from PIL import Image

from vit_cli.benchmarks.pictures import jpegs
from vit_cli.requirements import missing
from vit_core.preprocess import Preprocessing, decode
from vit_train.config import Augmentation
from vit_train.data.augmentation import augmented

OURS, PILLOW, TENSORS = "ours", "torchvision on PIL", "torchvision on tensors"
CROP_AREA = 0.08, 1.0

Filter = Literal["bilinear", "bicubic"]
"""Filter of a resize; when shrinking, as wide as the scale (antialias)."""

Prepare = Callable[[bytes], object]
"""A JPEG file -> a training image [224, 224, 3] in 8 bits."""


def measure(interpolation: Filter, images: int, rounds: int) -> Iterator[tuple[str, list[float]]]:
    """For each way of preparing images: its name, and images/s in each round. All ways take turns in a round."""
    files, ways = jpegs(images), prepared_by(interpolation)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(rounds + 1):
        for name, prepare in ways.items():
            passed = _seconds(prepare, files)
            if i:  # the first round loads what is loaded once
                seconds[name].append(passed)
    for name, passed_in in seconds.items():
        yield name, [images / passed for passed in passed_in]


def times_pillow(speeds: Mapping[str, Sequence[float]], name: str) -> float | None:
    """How many times as fast as torchvision on PIL: the median over the rounds. None where that was not measured."""
    if PILLOW not in speeds:
        return None
    return statistics.median(ours / theirs for ours, theirs in zip(speeds[name], speeds[PILLOW], strict=True))


def prepared_by(interpolation: Filter) -> dict[str, Prepare]:
    """What is compared, by name; torchvision's ways only where it is installed."""
    preprocessing = Preprocessing(image_size=224, interpolation=interpolation)
    augmentation, rng = Augmentation(crop_area=CROP_AREA, flip=0.5), np.random.default_rng(0)
    ways: dict[str, Prepare] = {
        OURS: lambda file: augmented(decode(file, preprocessing), preprocessing, augmentation, rng)
    }
    return ways if missing(("torch", "torchvision")) else ways | _torchvision(interpolation)


def _torchvision(interpolation: Filter) -> dict[str, Prepare]:
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms import InterpolationMode, v2

    torch.set_num_threads(1)
    crop = v2.RandomResizedCrop(224, scale=CROP_AREA, interpolation=InterpolationMode(interpolation), antialias=True)
    transform = v2.Compose([crop, v2.RandomHorizontalFlip()])

    def on_tensors(file: bytes) -> object:
        return transform(decode_jpeg(torch.frombuffer(bytearray(file), dtype=torch.uint8), ImageReadMode.RGB))

    return {
        PILLOW: lambda file: np.asarray(transform(Image.open(io.BytesIO(file)).convert("RGB"))),
        TENSORS: on_tensors,
    }


def _seconds(prepare: Prepare, files: Sequence[bytes]) -> float:
    start = time.perf_counter()
    for file in files:
        prepare(file)
    return time.perf_counter() - start
