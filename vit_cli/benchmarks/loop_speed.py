"""`vit bench train`: a run's loop, with its input, log and saved steps, compared with the bare train step in the same
process.

Both take turns: half of a number of steps on one existing batch, that number of steps of the run, and the other half.
The run is measured from its first log line to its last, because starting worker processes and saving the last step
happen only once in a run; another step is saved between these two lines. Images are generated JPEG files, decoded,
cropped at random and flipped; the run writes into a folder that is removed afterwards.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
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
    """Images per second of the run, with its input, its log and a saved step."""
    saving: float
    """Fraction of the run's time in which a step was saved and training stood still; median over the rounds."""
    data_wait: float
    """Fraction of the steps' time that the run waited for images; median over the log."""
    mfu: float
    """MFU in the run's log (vit_train.throughput); median over the log."""
    hardware: str

    @property
    def ratios(self) -> tuple[float, ...]:
        """Speed of the loop divided by that of the bare step, in each round. The loop contains the step, so a ratio
        above 1 is an error of the measurement."""
        return tuple(loop / bare for loop, bare in zip(self.loop, self.bare, strict=True))

    @property
    def ratio(self) -> float:
        """The median of the ratios."""
        return statistics.median(self.ratios)


@dataclass(frozen=True)
class Window:
    """The steps of a run between the first and the last of several log lines, with the keys of metrics.jsonl."""

    lines: tuple[dict[str, Any], ...]

    @property
    def steps(self) -> int:
        passed: int = self.lines[-1]["step"] - self.lines[0]["step"]
        return passed

    @property
    def seconds(self) -> float:
        """The time of all these steps, and of saving between them."""
        passed: float = self.lines[-1]["seconds"] - self.lines[0]["seconds"]
        return passed

    @property
    def saving(self) -> float:
        """Fraction of the time that is not part of a step: `step_seconds` leaves out the time of saving."""
        trained = sum(b["step_seconds"] * (b["step"] - a["step"]) for a, b in pairwise(self.lines))
        return max(0.0, 1 - trained / self.seconds)


def config_of(
    spelled: str, batch_size: int, dtype: str, steps: int, rounds: int, threads: int, workers: int = 0
) -> TrainConfig:
    """The config of the run: AdamW with clipping and a moving average, random crops and flips. steps: number of steps
    of each round, of which half is the distance of saved steps, so that one is between a round's first and last log
    line; the run has one more than all rounds, so that no round finishes it."""
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
        save_every=ceil(steps / 2),
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
        return time.perf_counter() - start

    bare(min(WARM_UP, steps))
    speeds: list[float] = []
    windows: list[Window] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        run = Run(Path(folder), Request(config=config, labels=CLASSES))
        run.write()
        for i in range(rounds):
            progress(f"round {i + 1}: the bare step")
            seconds = bare(steps - steps // 2)
            progress(f"round {i + 1}: the loop")
            fit(engine, run, batches, split, start=i * steps, until=(i + 1) * steps)
            lines = read_metrics(Path(folder) / METRICS)
            windows.append(Window(tuple(line for line in lines if line["step"] > i * steps)))
            progress(f"round {i + 1}: the bare step again")
            speeds.append(steps * config.batch_size / (seconds + bare(steps // 2)))
    steady = [line for window in windows for line in window.lines[1:]]
    return LoopSpeed(
        bare=tuple(speeds),
        loop=tuple(window.steps * config.batch_size / window.seconds for window in windows),
        saving=statistics.median(window.saving for window in windows),
        data_wait=statistics.median(line["data_wait"] for line in steady),
        mfu=statistics.median(line["mfu"] for line in steady),
        hardware=engine.hardware,
    )
