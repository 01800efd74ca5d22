"""`vit bench train`: a run's loop, with its input and log, compared with the bare train step in the same process.

Both take turns: a number of steps on one existing batch, then as many steps of the run. The run is measured from its
first log line to its last, because starting worker processes and saving the last step happen only once in a run. Images
are generated JPEG files, decoded, cropped at random and flipped; the run writes into a folder that is removed
afterwards.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_cli.benchmarks.generated_jpegs import jpegs
from vit_cli.twins import Framework
from vit_core.variants import variant
from vit_train.config import Augmentation, Optimizer, Schedule, TrainConfig
from vit_train.data.sources import Split
from vit_train.frameworks import engine_class
from vit_train.loop import batches_for, fit
from vit_train.metrics import METRICS, read_metrics
from vit_train.run import Request, Run

CLASSES = tuple(f"class {i:03d}" for i in range(1000))
WARM_UP = 10
"""Number of first steps that are not measured, because they compile and choose kernels."""
FEWEST_STEPS, LOG_LINES = 4, 10
"""Smallest number of steps in a round, so that it logs two lines; and number of lines that a longer round logs."""
FILES = 64
"""Number of different images. A split repeats them, because decoding does not get faster by repetition."""


@dataclass(frozen=True)
class LoopSpeed:
    """Images per second in each round."""

    bare: tuple[float, ...]
    """Images per second of the bare train step."""
    loop: tuple[float, ...]
    """Images per second of the run, with its input and its log."""
    data_wait: float
    """Fraction of the steps' time that the run waited for images; median over the log."""
    mfu: float
    """MFU in the run's log (vit_train.throughput); median over the log."""
    hardware: str

    @property
    def ratio(self) -> float:
        """Speed of the loop divided by that of the bare step: the median over rounds."""
        return statistics.median(loop / bare for loop, bare in zip(self.loop, self.bare, strict=True))


def config_of(
    spelled: str, batch_size: int, dtype: str, steps: int, rounds: int, threads: int, workers: int = 0
) -> TrainConfig:
    """The config of the run: AdamW with clipping and a moving average, random crops and flips. steps: number of steps
    of each round; the run has one more than all rounds, so that no round finishes it."""
    return TrainConfig(
        model=variant(spelled, 224, len(CLASSES)),
        augmentation=Augmentation(crop_area=(0.08, 1.0), flip=0.5),
        optimizer=Optimizer(weight_decay=0.05, clip_norm=1.0),
        schedule=Schedule(warmup_steps=1),
        compute_dtype=None if dtype == "float32" else dtype,
        steps=steps * rounds + 1,
        batch_size=batch_size,
        ema=0.999,
        threads=threads,
        workers=workers,
        log_every=max(2, steps // LOG_LINES),
    )


def measure(
    framework: Framework, config: TrainConfig, rounds: int, progress: Callable[[str], None] = lambda text: None
) -> LoopSpeed:
    """Measures the bare step and the loop in turns."""
    files, count = jpegs(FILES), max(4 * config.batch_size, FILES)
    split = Split([{"image": files[i % FILES], "label": i % len(CLASSES)} for i in range(count)], CLASSES, "generated")
    progress("starting, and compiling the step")
    engine = engine_class(framework, config.dtype)(config)
    batches = batches_for(engine, split)
    batch, steps = batches[0], (config.steps - 1) // rounds

    def bare(steps: int) -> float:
        start, result = time.perf_counter(), None
        for step in range(steps):
            result = engine.train_step(batch, step)
        float(result.loss if result else 0)  # waits for it
        return steps * config.batch_size / (time.perf_counter() - start)

    bare(min(WARM_UP, steps))
    found: tuple[list[float], list[float]] = [], []
    steady: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        run = Run(Path(folder), Request(config=config, labels=CLASSES))
        run.write()
        for i in range(rounds):
            progress(f"round {i + 1}: the bare step")
            found[0].append(bare(steps))
            progress(f"round {i + 1}: the loop")
            fit(engine, run, batches, split, start=i * steps, until=(i + 1) * steps)
            logged = [line for line in read_metrics(Path(folder) / METRICS) if line["step"] > i * steps]
            first, *others = logged
            passed = others[-1]["seconds"] - first["seconds"]
            found[1].append((others[-1]["step"] - first["step"]) * config.batch_size / passed)
            steady += others
    wait, mfu = (statistics.median(line[name] for line in steady) for name in ("data_wait", "mfu"))
    return LoopSpeed(tuple(found[0]), tuple(found[1]), wait, mfu, engine.hardware)
