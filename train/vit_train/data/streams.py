"""Batches made in advance, by threads or by worker processes, while the device computes the earlier ones."""

import gc
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vit_train.data.batches import Batch, Batches, EvaluationBatch, EvaluationBatches
from vit_train.processes import end_with_parent

SHARED_FROM = 2**20
"""Smallest number of bytes of an array that a worker process passes in shared memory. Receiving a smaller array through
a pipe takes Python less time than opening and unlinking shared memory, and training waits for Python meanwhile."""


def stream(batches: Batches | EvaluationBatches, which: slice, threads: int = 2, workers: int = 0) -> Iterator[Any]:
    """The batches `which` in order, made in advance by `threads` threads, or by `workers` processes with `threads`
    threads each.

    The threads share the images of a batch, so at most two batches are being made, and two are ready.
    """
    import grain  # it imports jax, which the PyTorch engine does not need before
    from absl import flags

    options = grain.ReadOptions(num_threads=min(threads, 2), prefetch_buffer_size=2)
    dataset = grain.MapDataset.source(_InThreads(batches, threads)).slice(which).to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain's workers need absl's flags, which this command line does not use
        processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        chosen = grain.experimental.DatasetOptions(min_shm_size=SHARED_FROM)
        dataset = grain.experimental.WithOptionsIterDataset(dataset, chosen)
        dataset = dataset.mp_prefetch(processes, worker_init_fn=_start_worker)
    made = iter(dataset)
    try:
        yield from made
    finally:
        if workers:
            made.close()
            del made
            gc.collect()  # grain's iterators form cycles, which keep shared memory that Python warns of when it ends


@dataclass(frozen=True)
class _InThreads:
    """Batches by index; the images of each are made by `threads` threads."""

    batches: Batches | EvaluationBatches
    threads: int

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, i: int) -> Batch | EvaluationBatch:
        return self.batches.make(i, self.threads)


def _start_worker(worker: int, workers: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the training loop stops after a step that may still need batches
    end_with_parent()
