"""Pictures through a model in batches of one shape: threads decode the next batches while a device computes."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np

from vit_core.errors import InputError
from vit_core.image_batches import ImageArrays, Images
from vit_core.preprocess import PictureSource, Preprocessing, decode, resize_image

AHEAD = 2
"""Batches that are decoded before they are asked for."""
MOST_THREADS = 8
"""By default: more than this many decode faster than most models compute."""


class DeviceFunction(Protocol):
    """A function of images that a twin computes on the devices of this machine."""

    @property
    def devices(self) -> int:
        """Number of devices; the size of a batch is a multiple of it."""

    @property
    def hardware(self) -> str:
        """The devices in words."""

    def start(self, images: ImageArrays) -> Callable[[], np.ndarray]:
        """Begins to compute the values [B, ...] of uint8 or uint16 images; what it returns waits for them."""


@dataclass(frozen=True)
class PictureBatch:
    """Some pictures, decoded."""

    images: ImageArrays
    """uint8 or uint16; zeros where a picture could not be read, and in the rows that fill up the last batch."""
    errors: tuple[InputError | None, ...]
    """For each picture why it could not be read; None where it was."""


@dataclass(frozen=True)
class Computed:
    """The values of some pictures, in the order of the pictures."""

    values_N: np.ndarray
    """[N, ...]: of each picture; meaningless where there is an error."""
    errors: tuple[InputError | None, ...]
    """For each picture why it could not be read; None where it was."""


def compute(
    function: DeviceFunction,
    pictures: Iterable[PictureSource],
    preprocessing: Preprocessing,
    batch_size: int = 32,
    threads: int | None = None,
) -> Iterator[Computed]:
    """The values of pictures, batch by batch, in their order; pictures are taken as they are needed.

    batch_size: rounded up to a multiple of the devices; the last batch is filled up to this size, so that a compiled
    function sees one shape. threads: that decode; None: one for each processor, at most 8.
    """
    size = -(-batch_size // function.devices) * function.devices
    waiting: tuple[PictureBatch, Callable[[], np.ndarray]] | None = None
    for batch in decoded(pictures, preprocessing, size, threads):
        started = function.start(batch.images)
        if waiting is not None:  # only now, so that a device computes while the batch before it is used
            yield _result(*waiting)
        waiting = batch, started
    if waiting is not None:
        yield _result(*waiting)


def _result(batch: PictureBatch, values: Callable[[], np.ndarray]) -> Computed:
    return Computed(values()[: len(batch.errors)], batch.errors)


def decoded(
    pictures: Iterable[PictureSource], preprocessing: Preprocessing, size: int, threads: int | None = None
) -> Iterator[PictureBatch]:
    """Pictures in batches of `size`, of which `AHEAD` are decoded in advance by threads."""
    threads = threads or default_threads()
    left, pool = iter(pictures), ThreadPoolExecutor(threads, thread_name_prefix="decode")
    waiting: deque[tuple[Images, list[Future[InputError | None]]]] = deque()

    def start_next() -> None:
        if chosen := list(islice(left, size)):
            images = Images(preprocessing, size)
            waiting.append((images, [pool.submit(_decode, images, row, one) for row, one in enumerate(chosen)]))

    try:
        for _ in range(AHEAD + threads // size):
            start_next()
        while waiting:
            images, futures = waiting.popleft()
            errors = tuple(future.result() for future in futures)
            start_next()
            yield PictureBatch(images.batch(), errors)
    finally:
        pool.shutdown(cancel_futures=True)


def default_threads() -> int:
    """One for each processor that this process may use, at most `MOST_THREADS`."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, MOST_THREADS)


def _decode(images: Images, row: int, picture: PictureSource) -> InputError | None:
    """Sets a row to a picture's pixels; returns the reason where it cannot be read."""
    try:
        images[row] = resize_image(decode(picture, images.preprocessing), images.preprocessing)
    except InputError as error:
        return error
    return None
