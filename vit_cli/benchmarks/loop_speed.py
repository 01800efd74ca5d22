"""`vit bench train`: a run's loop, with its input, log and saved steps, beside the bare train step in the same process.

Both take turns: so many steps on one batch that is there already, then as many steps of the run, until its step is
saved. Images are generated JPEG files, decoded, cropped at random and flipped; the run writes into a folder that is
removed afterwards.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
"""Steps that are not measured: they compile, and choose kernels."""
FILES = 64
"""Different images; a split repeats them, since decoding one does not get faster by repetition."""


@dataclass(frozen=True)
class LoopSpeed:
    """Images per second in each round."""

    bare: tuple[float, ...]
    """The train step alone."""
    loop: tuple[float, ...]
    """The run, with everything around the steps."""
    data_wait: float
    """Fraction of the time of steps in the run in which they waited for images; median over the log."""
    mfu: float
    """As the run's log says (vit_train.throughput); median over the log."""
    hardware: str

    @property
    def ratio(self) -> float:
        """The loop's speed over the bare step's: the median over rounds."""
        return statistics.median(loop / bare for loop, bare in zip(self.loop, self.bare, strict=True))


def config_of(spelled: str, batch_size: int, dtype: str, steps: int, threads: int) -> TrainConfig:
    """The run: AdamW with clipping and a moving average, random crops and flips."""
    return TrainConfig(
        model=variant(spelled, 224, len(CLASSES)),
        augmentation=Augmentation(crop_area=(0.08, 1.0), flip=0.5),
        optimizer=Optimizer(weight_decay=0.05, clip_norm=1.0),
        schedule=Schedule(warmup_steps=1),
        compute_dtype=None if dtype == "float32" else dtype,
        steps=steps,
        batch_size=batch_size,
        ema=0.999,
        threads=threads,
        log_every=10,
    )


def measure(
    framework: Framework, config: TrainConfig, rounds: int, progress: Callable[[str], None] = lambda text: None
) -> LoopSpeed:
    """The speed of both. config.steps: of all rounds together, and one more, so that no round finishes the run."""
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
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        run = Run(Path(folder), Request(config=config, labels=CLASSES))
        run.write()
        for i in range(rounds):
            progress(f"round {i + 1}: the bare step")
            found[0].append(bare(steps))
            progress(f"round {i + 1}: the loop")
            start = time.perf_counter()
            fit(engine, run, batches, split, start=i * steps, until=(i + 1) * steps)
            found[1].append(steps * config.batch_size / (time.perf_counter() - start))
        lines = read_metrics(Path(folder) / METRICS)
    wait, mfu = (statistics.median(line[name] for line in lines if name in line) for name in ("data_wait", "mfu"))
    return LoopSpeed(tuple(found[0]), tuple(found[1]), wait, mfu, engine.hardware)
