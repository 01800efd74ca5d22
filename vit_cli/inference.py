"""What `vit predict` and `vit features` share: a twin, and pictures that pass through it one after the other."""

import importlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, TypeVar

from vit_cli import console
from vit_cli.pictures import Pictures
from vit_cli.requirements import TWINS, require
from vit_cli.twins import Framework
from vit_core.errors import InputError, one_line

Unreadable = Literal["skip", "error"]
Value = TypeVar("Value")


def import_twin(framework: Framework, dtype: str = "float32") -> Any:
    """The package of a twin, with 64-bit types allowed where `dtype` is one. InputError where its framework is not
    installed."""
    require(framework, *TWINS[framework])
    twin = importlib.import_module(f"vit_{framework}")
    if framework == "jax" and dtype == "float64":
        importlib.import_module("jax").config.update("jax_enable_x64", True)
    return twin


def positive(**options: int | None) -> None:
    """InputError for an option that is below 1."""
    for name, value in options.items():
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} {value}: expected 1 or more")


def fitting_batch(named: Pictures, batch_size: int) -> int:
    """The size of a batch: for few pictures a smaller one, because the last batch is filled up."""
    return batch_size if named.count is None else min(batch_size, 1 << (named.count - 1).bit_length())


def each_picture(
    title: str,
    named: Pictures,
    compute: Callable[[Iterable[str]], Iterator[Value | InputError]],
    use: Callable[[str, Value], None],
    *,
    unreadable: Unreadable,
    batch_size: int,
    hardware: str,
) -> int:
    """Computes the value of each picture, uses it, shows progress, and prints how many images each second passed.

    compute: from paths to values, in the same order, an error for a picture that cannot be read. Returns the number of
    values. InputError for a picture that cannot be read where `unreadable` is "error", and where none can be read.
    """
    waiting: deque[str] = deque()

    def paths() -> Iterator[str]:
        for path in named.paths:
            waiting.append(path)
            yield path

    rate, used, skipped = _Rate(2 * batch_size), 0, 0
    with console.progress() as bar:
        task = bar.add_task(title, total=named.count, note="starting")
        for found in compute(paths()):
            path = waiting.popleft()
            if isinstance(found, InputError):
                if unreadable == "error":
                    raise found
                console.say(f"skipped: {found}")
                skipped += 1
            else:
                use(path, found)
                used += 1
            rate.count()
            bar.update(task, advance=1, note=one_line(hardware))
    if not used:
        raise InputError(f"none of the {skipped} pictures can be read" if skipped else "no pictures on standard input")
    console.say(f"{used:,} images{f' ({skipped:,} skipped)' if skipped else ''}: {rate}, {hardware}")
    return used


class _Rate:
    """Images each second, without the start: the first `start` images are computed before the first value is seen."""

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
        return f"{self.last - self.begun:.1f} s with the start"
