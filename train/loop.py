"""The one training loop: data, step, log, evaluate, checkpoint, stop. Two engines serve it with the same few verbs."""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, SupportsFloat

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy.stats import binomtest

from vit_core.checkpoint import WEIGHTS, CheckpointConfig, Provenance, open_checkpoint, save_checkpoint, staging
from vit_core.errors import InputError

from . import data
from .config import TrainConfig
from .data import Batch, Example

OPTIMIZER = "optimizer.safetensors"


class Engine(Protocol):
    """What the loop asks of a framework."""

    name: str
    config: TrainConfig

    def train_step(self, batch: Batch, learning_rate: float) -> SupportsFloat: ...

    def logits(self, images_BHWC: np.ndarray) -> np.ndarray: ...

    def export(self) -> dict[str, np.ndarray]: ...

    def optimizer_arrays(self) -> dict[str, np.ndarray]: ...

    def restore(self, step: int, statistics: Mapping[str, np.ndarray]) -> None: ...


@dataclass(frozen=True)
class Accuracy:
    """Top-1 over a split."""

    correct: int
    total: int

    @property
    def top1(self) -> float:
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of a proportion."""
        interval = binomtest(self.correct, self.total).proportion_ci(0.95, method="wilson")
        return interval.low, interval.high


def fit(
    engine: Engine,
    source: Sequence[Example],
    run: Path,
    *,
    start: int = 0,
    on_step: Callable[[int, float | None], None] = lambda step, loss: None,
) -> None:
    """Trains from step `start` to the config's last; appends to RUN/metrics.jsonl.

    on_step: called after each step with its number (from 1) and, every log_every steps, the loss.
    """
    config = engine.config
    run.mkdir(parents=True, exist_ok=True)
    with open(run / "metrics.jsonl", "a", buffering=1) as metrics:
        begin = time.perf_counter()
        for step, batch in enumerate(data.stream(data.batches(source, config), start, config.steps), start):
            learning_rate = config.learning_rate(step)
            loss = engine.train_step(batch, learning_rate)
            logged = None
            if (step + 1) % config.log_every == 0 or step + 1 == config.steps:
                logged = float(loss)
                seconds = round(time.perf_counter() - begin, 3)
                line = {"step": step + 1, "loss": logged, "learning_rate": learning_rate, "seconds": seconds}
                metrics.write(json.dumps({"engine": engine.name, **line}) + "\n")
            on_step(step + 1, logged)


def evaluate(engine: Engine, source: Sequence[Example], batch_size: int = 100) -> Accuracy:
    """Top-1 accuracy over a split, each example once."""
    correct = 0
    for images_BHWC, labels_B, counts_B in data.evaluation_batches(source, engine.config.preprocessing, batch_size):
        predicted_B = engine.logits(images_BHWC).argmax(axis=-1)
        correct += int(((predicted_B == labels_B) & counts_B).sum())
    return Accuracy(correct, len(source))


def save_step(
    engine: Engine,
    run: Path,
    step: int,
    *,
    labels: tuple[str, ...] | None = None,
    provenance: Provenance | None = None,
) -> Path:
    """Writes RUN/steps/NNNNNN: a checkpoint folder, and the optimizer's statistics beside the weights."""
    folder = run / "steps" / f"{step:06d}"
    provenance = (provenance or Provenance()).replace(run=run.name, step=step)
    config = CheckpointConfig(
        model=engine.config.model, preprocessing=engine.config.preprocessing, labels=labels, provenance=provenance
    )
    # A step is whole once its weights are there: they go first and come last, so that two saves never mix.
    (folder / WEIGHTS).unlink(missing_ok=True)
    with staging(folder, (OPTIMIZER,)) as stage:
        save_file(engine.optimizer_arrays(), stage / OPTIMIZER)
    save_checkpoint(folder, config, engine.export())
    return folder


def restore_step(make_engine: Callable[..., Engine], config: TrainConfig, folder: Path) -> tuple[Engine, int]:
    """An engine as it was when save_step wrote `folder`, and the step to go on from; either engine reads either's."""
    checkpoint = open_checkpoint(folder)
    engine = make_engine(config, checkpoint)
    step = checkpoint.config.provenance.step or 0
    try:
        engine.restore(step, load_file(os.fspath(folder / OPTIMIZER)))
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder / OPTIMIZER}: not a whole safetensors file ({error}); take another step") from None
    return engine, step
