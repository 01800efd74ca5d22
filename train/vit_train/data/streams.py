"""Batches made in advance, by threads or by worker processes, while the device is busy with those before."""

import gc
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vit_train.data.batches import Batch, Batches, EvaluationBatch, EvaluationBatches
from vit_train.processes import end_with_parent

SHARED_FROM = 2**20
"""Bytes of an array from which a worker process hands it over in shared memory. To open and to unlink that takes Python
longer, while training waits for Python, than to receive a smaller array through a pipe."""


def stream(batches: Batches | EvaluationBatches, which: slice, threads: int = 2, workers: int = 0) -> Iterator[Any]:
    """The batches `which` in order, made in advance by threads, or by `workers` processes of so many threads each.

    The threads share the images of a batch, so that no more than two are in the making, and two wait to be used.
    """
    import grain  # it imports jax, which the PyTorch engine does not need before
    from absl import flags

    options = grain.ReadOptions(num_threads=min(threads, 2), prefetch_buffer_size=2)
    dataset = grain.MapDataset.source(_InThreads(batches, threads)).slice(which).to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain's workers want absl's flags, which this command line does not use
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
    """Batches by index, the images of each made by so many threads."""

    batches: Batches | EvaluationBatches
    threads: int

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, i: int) -> Batch | EvaluationBatch:
        return self.batches.make(i, self.threads)


def _start_worker(worker: int, workers: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the training loop stops after a step that may still need batches
    end_with_parent()
