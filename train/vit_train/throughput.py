"""Speed of training between two log lines."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Throughput:
    """Measures images per second, and the fraction of the time that training waited for data, between log lines."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size, self.start, self.steps = batch_size, time.perf_counter(), 0
        self.since, self.waited = self.start, 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within the context, training waits for a batch."""
        begin = time.perf_counter()
        yield
        self.waited += time.perf_counter() - begin
        self.steps += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within the context nothing is trained, as while a step is saved: the time does not count."""
        begin = time.perf_counter()
        yield
        self.since += time.perf_counter() - begin

    def values(self) -> dict[str, float]:
        """The values since the last call, for a log line; `seconds` are those since the beginning."""
        now = time.perf_counter()
        passed = now - self.since
        values = {
            "images_per_second": round(self.batch_size * self.steps / passed, 2),
            "data_wait": round(self.waited / passed, 4),
            "seconds": round(now - self.start, 3),
        }
        self.since, self.waited, self.steps = now, 0.0, 0
        return values
