"""Computes a function of many images in batches of one shape: threads decode the next batches while a device
computes."""

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
from vit_core.preprocess import ImageSource, Preprocessing, decode, resize_image

AHEAD = 2
"""Number of batches that are decoded in advance."""
MOST_THREADS = 8
"""Largest default number of threads: more decode faster than most models compute."""


class DeviceFunction(Protocol):
    """A function of images that a twin computes on the devices of this machine."""

    @property
    def devices(self) -> int:
        """Number of devices; the size of a batch is a multiple of it."""

    @property
    def hardware(self) -> str:
        """Number and kind of the devices, as text for messages."""

    def start(self, images: ImageArrays) -> Callable[[], np.ndarray]:
        """Starts to compute the values [B, ...] of uint8 or uint16 images; returns a function that waits for them."""


@dataclass(frozen=True)
class ImageBatch:
    """Some images, decoded."""

    images: ImageArrays
    """uint8 or uint16; zeros for an image that could not be read, and in the padding rows of the last batch."""
    errors: tuple[InputError | None, ...]
    """For each image why it could not be read; None where it was."""


@dataclass(frozen=True)
class Computed:
    """The values of some images, in the order of the images."""

    values_N: np.ndarray
    """[N, ...]: the values of each image; without meaning if there is an error."""
    errors: tuple[InputError | None, ...]
    """For each image why it could not be read; None where it was."""


def compute(
    function: DeviceFunction,
    images: Iterable[ImageSource | InputError],
    preprocessing: Preprocessing,
    batch_size: int = 32,
    threads: int | None = None,
) -> Iterator[Computed]:
    """The values of images, batch by batch, in their order; images are read from the iterable as they are needed.

    images: an image that its data set could not read is given as the error.
    batch_size: rounded up to a multiple of the devices; the last batch is padded to this size, so that a compiled
    function gets one shape. threads: number of decoding threads; None: one for each processor, at most 8.
    """
    size = -(-batch_size // function.devices) * function.devices
    waiting: tuple[ImageBatch, Callable[[], np.ndarray]] | None = None
    for batch in decoded(images, preprocessing, size, threads):
        started = function.start(batch.images)
        if waiting is not None:  # only now, so that a device computes while the batch before it is used
            yield _result(*waiting)
        waiting = batch, started
    if waiting is not None:
        yield _result(*waiting)


def _result(batch: ImageBatch, values: Callable[[], np.ndarray]) -> Computed:
    return Computed(values()[: len(batch.errors)], batch.errors)


def decoded(
    images: Iterable[ImageSource | InputError], preprocessing: Preprocessing, size: int, threads: int | None = None
) -> Iterator[ImageBatch]:
    """Images in batches of `size`, of which `AHEAD` are decoded in advance by threads."""
    threads = threads or default_threads()
    left, pool = iter(images), ThreadPoolExecutor(threads, thread_name_prefix="decode")
    waiting: deque[tuple[Images, list[Future[InputError | None]]]] = deque()

    def start_next() -> None:
        if chosen := list(islice(left, size)):
            batch = Images(preprocessing, size)
            waiting.append((batch, [pool.submit(_decode, batch, row, image) for row, image in enumerate(chosen)]))

    try:
        for _ in range(AHEAD + threads // size):
            start_next()
        while waiting:
            made, futures = waiting.popleft()
            errors = tuple(future.result() for future in futures)
            start_next()
            yield ImageBatch(made.batch(), errors)
    finally:
        pool.shutdown(cancel_futures=True)


def default_threads() -> int:
    """One for each processor that this process may use, at most `MOST_THREADS`."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, MOST_THREADS)


def _decode(images: Images, row: int, image: ImageSource | InputError) -> InputError | None:
    """Sets a row to an image's pixels; returns the error if it cannot be read."""
    if isinstance(image, InputError):
        return image
    try:
        images[row] = resize_image(decode(image, images.preprocessing), images.preprocessing)
    except InputError as error:
        return error
    return None
