"""`vit bench predict`: the speed of `vit predict`, compared with its model alone and with decoding alone."""

import io
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

import numpy as np
from PIL import Image

from vit_cli.inference import import_twin
from vit_cli.twins import Framework
from vit_core import Checkpoint, CheckpointConfig, ViTConfig
from vit_core.arrays import convert
from vit_core.parameters import initial_value, parameters
from vit_core.pipeline import Pipeline
from vit_core.preprocess import Preprocessing
from vit_core.streaming import decoded

BATCH, BATCHES, CLASSES = 16, 4, 1000
IMAGE = (500, 375)
"""Width and height of an image, a frequent size in ImageNet."""


@dataclass(frozen=True)
class Rates:
    """Images per second: medians of several measurements, made in turns."""

    hardware: str
    model: float
    """The model alone, on batches that are in memory."""
    decoding: float
    """Decoding alone, from JPEG to batches."""
    predict: float
    """Both, and the names of the classes."""

    @property
    def share(self) -> float:
        """The rate of `vit predict` as a fraction of the slower of the other two."""
        return self.predict / min(self.model, self.decoding)


def model_of(variant: str) -> ViTConfig:
    """A published architecture for 1,000 classes at 224 x 224. Raises InputError for an unknown one."""
    from vit_core import variant as published

    return published(variant, image_size=224, num_classes=CLASSES)


def measure(config: ViTConfig, framework: Framework, repeats: int) -> Rates:
    """Measures a model with initial weights in float32, on generated images."""
    labels = tuple(f"class {i}" for i in range(CLASSES))
    made = Preprocessing(image_size=config.image_size)
    arrays = {name: convert(initial_value(row, 0), "float32") for name, row in parameters(config).items()}
    checkpoint = Checkpoint.of(CheckpointConfig(model=config, labels=labels, preprocessing=made), arrays)
    pipeline: Pipeline = import_twin(framework).pipeline(checkpoint, batch_size=BATCH)
    images = [_jpeg(i) for i in range(BATCH)] * BATCHES
    (batch,) = decoded(images[:BATCH], made, BATCH)
    pipeline.function.start(batch.images)()  # compiles it
    ways: dict[str, Callable[[], Iterable[object]]] = {
        "model": lambda: [pipeline.function.start(batch.images)() for _ in range(BATCHES)],
        "decoding": lambda: decoded(images, made, BATCH),
        "predict": lambda: pipeline.stream(images),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():  # in turns, so that other programs affect each of them
            start = time.perf_counter()
            for _ in way():
                pass
            seconds[name].append(time.perf_counter() - start)
    rates = {name: len(images) / median(found) for name, found in seconds.items()}
    return Rates(f"{framework} on {pipeline.function.hardware}", **rates)


def _jpeg(seed: int) -> bytes:
    """A JPEG image with edges and gradients, which takes as long to decode as a photo."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).resize(IMAGE, Image.Resampling.BICUBIC)
    file = io.BytesIO()
    coarse.save(file, "JPEG", quality=90)
    return file.getvalue()
