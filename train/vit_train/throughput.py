"""Speed of training between two log lines.

MFU, the model FLOP utilisation, is the FLOPs that the model needs divided by those that the devices could compute in
the same time, at the speed of a product of two large matrices of the compute dtype, measured when training begins. If
training itself reaches a higher speed later, because other programs slowed the measurement, that speed takes its place,
so MFU is at most 1. The model needs three forward passes for each image, independent of frozen parameters and
recomputation (of a masked autoencoder for the visible patches; the mean if patch sizes are drawn), and one forward pass
of a teacher, if any.
"""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from vit_train.config import TrainConfig

logger = logging.getLogger("vit")

LONG_WAIT = 0.3
"""Fraction of the time above which waiting for images is reported."""
MOST_WORKERS = 32
"""Largest proposed number of workers, because each keeps the decoded images of a small set."""


class Throughput:
    """Measures the time of a step, the fraction of it that training waited for data, and MFU, between log lines.

    peak: FLOP/s of all devices, as measured. teacher: FLOPs of a teacher's forward pass of one image.
    """

    def __init__(self, config: TrainConfig, peak: float, teacher: int = 0) -> None:
        self.batch_size, self.peak = config.batch_size, peak
        self.step_flops = (3 * sum(config.forward_flops.values()) + teacher) * config.batch_size
        self.start, self.steps = time.perf_counter(), 0
        self.since, self.waited = self.start, 0.0
        self.workers, self.lines = config.workers, 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Context in which training waits for a batch."""
        begin = time.perf_counter()
        yield
        self.waited += time.perf_counter() - begin
        self.steps += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Context in which nothing is trained, for example while a step is saved; its time is not counted."""
        begin = time.perf_counter()
        yield
        self.since += time.perf_counter() - begin

    def values(self) -> dict[str, float]:
        """The values since the last call, for a log line; `seconds` is the time since the beginning."""
        now = time.perf_counter()
        passed = now - self.since
        reached = self.step_flops * self.steps / passed
        self.peak = max(self.peak, reached)
        values = {
            "images_per_second": round(self.batch_size * self.steps / passed, 2),
            "step_seconds": round(passed / self.steps, 6),
            "data_wait": round(self.waited / passed, 4),
            "mfu": round(reached / self.peak, 4),
            "seconds": round(now - self.start, 3),
        }
        self.since, self.waited, self.steps = now, 0.0, 0
        return values

    def mention_wait(self, data_wait: float, hardware: str) -> None:
        """Logs once that an accelerator waits for images, and how to fix it. The first log line is ignored, because it
        includes compiling and starting workers. On a CPU nothing is logged, because no cores are left for workers."""
        self.lines += 1
        proposed = min((os.cpu_count() or 1) - 2, MOST_WORKERS)
        if self.lines == 2 and data_wait > LONG_WAIT and proposed > self.workers and not hardware.endswith("cpu"):
            logger.info(
                f"the device waits for images {data_wait:.0%} of the time; resume the run with "
                f"--workers {proposed} (processes that make batches; now {self.workers})"
            )
