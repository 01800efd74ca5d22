"""Functions that `vit predict`, `vit features` and `vit probe` share: they pass images through a twin."""

import importlib
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, TypeVar

import numpy as np

from vit_cli import console
from vit_cli.named_images import NamedImages
from vit_cli.option_types import Unreadable
from vit_cli.requirements import TWINS, require
from vit_cli.twins import Framework
from vit_core.checkpoints import Checkpoint
from vit_core.errors import InputError, one_line
from vit_core.features import Pool, check_features, features_shape
from vit_core.pipeline import preparation_with_warnings
from vit_core.preprocess import ImageSource, Preprocessing
from vit_core.streaming import DeviceFunction, compute

Item = TypeVar("Item")
Value = TypeVar("Value")


def import_twin(framework: Framework, dtype: str = "float32") -> Any:
    """The package of a twin, with 64-bit types enabled if `dtype` is one. Raises InputError if its framework is not
    installed."""
    require(framework, *TWINS[framework])
    twin = importlib.import_module(f"vit_{framework}")
    if framework == "jax" and dtype == "float64":
        importlib.import_module("jax").config.update("jax_enable_x64", True)
    return twin


@dataclass(frozen=True)
class Extraction:
    """Features of a checkpoint's model on the devices of this machine."""

    function: DeviceFunction
    preprocessing: Preprocessing
    shape: tuple[int, ...]
    """Shape of the features of one image."""

    @classmethod
    def of(
        cls,
        twin: Any,
        checkpoint: Checkpoint,
        *,
        layer: int = -1,
        pool: Pool | None = None,
        norm: bool = False,
        dtype: str = "float32",
        preprocessing: Mapping[str, Any] | None = None,
    ) -> Self:
        """The features after block `layer` (from 0; -1 is the last) of a checkpoint's model.

        twin: the package that computes. pool: None is the class token if there is one, otherwise the mean of the patch
        tokens. norm: apply the model's last norm first. dtype: of the weights and the computation. preprocessing:
        fields that replace the checkpoint's. Raises InputError for a layer or a token that the model does not have.
        """
        model = checkpoint.config.model
        pool = pool or ("cls" if model.class_token else "gap")
        check_features(model, layer, pool)
        made = preparation_with_warnings(checkpoint.config, preprocessing)
        if made.max_patches is not None and pool == "tokens":
            raise InputError(
                f"pool tokens: by preprocessing.max_patches ({made.max_patches}) images have different numbers of "
                "tokens; use gap, the mean of the patch tokens, or --preprocessing max_patches=none for one size of all"
            )
        extract = partial(twin.features, layer=layer, pool=pool, norm=norm)
        function = twin.OnDevices(twin.load(checkpoint, dtype=dtype), made, extract)
        return cls(function, made, features_shape(model, pool))

    def stream(
        self, images: Iterable[ImageSource | InputError], batch_size: int = 32, threads: int | None = None
    ) -> Iterator[np.ndarray | InputError]:
        """The features of each image, in their order; the error for an image that cannot be read."""
        for computed in compute(self.function, images, self.preprocessing, batch_size, threads):
            for values, error in zip(computed.values_N, computed.errors, strict=True):
                yield error or values


@contextmanager
def warnings_said() -> Iterator[None]:
    """Context in which warnings of this project's Python functions are printed on standard output, so that standard
    error contains only a later error."""
    with warnings.catch_warnings(record=True) as caught:
        yield
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            console.say(f"warning: {warning.message}")


def fitting_batch(named: NamedImages, batch_size: int) -> int:
    """The batch size; smaller for few images, because the last batch is padded."""
    return batch_size if named.count is None else min(batch_size, 1 << (named.count - 1).bit_length())


def each_image(
    title: str,
    images: Iterable[Item],
    count: int | None,
    compute: Callable[[Iterable[Item]], Iterator[Value | InputError]],
    use: Callable[[Item, Value], None],
    *,
    name: Callable[[Item], str] | None = None,
    unreadable: Unreadable,
    batch_size: int,
    hardware: str,
) -> int:
    """Computes the value of each image, uses it, shows progress, and prints the number of images per second.

    count: number of images, if it is known. compute: from images to values, in the same order, with an error for an
    image that cannot be read. name: gives the name of an image, if the error does not contain it. Returns the number of
    values. Raises InputError for an image that cannot be read if `unreadable` is "error", and if none can be read.
    """
    waiting: deque[Item] = deque()

    def remembered() -> Iterator[Item]:
        for image in images:
            waiting.append(image)
            yield image

    rate, used, skipped, first = _Rate(2 * batch_size), 0, 0, "no images on standard input"
    with console.progress() as bar:
        task = bar.add_task(title, total=count, note="starting")
        for found in compute(remembered()):
            image = waiting.popleft()
            if isinstance(found, InputError):
                error = f"{name(image)}: {found}" if name and name(image) not in str(found) else str(found)
                if unreadable == "error":
                    raise InputError(error)
                if count != 1:  # the error below names the only one
                    console.say(f"skipped: {error}")
                first = first if skipped else error
                skipped += 1
            else:
                use(image, found)
                used += 1
            rate.count()
            bar.update(task, advance=1, note=one_line(hardware))
    if not used:
        raise InputError(f"none of the {skipped:,} images can be read; the first: {first}" if skipped > 1 else first)
    console.say(f"{used:,} image{'s' * (used != 1)}{f' ({skipped:,} skipped)' if skipped else ''}: {rate}, {hardware}")
    return used


class _Rate:
    """Images per second without the start: the first `start` images are computed before the first value is returned."""

    def __init__(self, start: int) -> None:
        self.start, self.done, self.begun = start, 0, time.perf_counter()
        self.first = self.last = self.begun

    def count(self) -> None:
        self.done, self.last = self.done + 1, time.perf_counter()
        if self.done == 1:
            self.first = self.last

    def __str__(self) -> str:
        if self.done > 2 * self.start:
            return f"{(self.done - self.start) / (self.last - self.first):,.1f} images/s"
        return f"{self.last - self.begun:.1f} s including the start"
