"""The interface of every kind of source: random access to examples, and a name for each that the user can look up."""

import hashlib
import os
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self

import numpy as np

from vit_train.data.sources.groups import Groups
from vit_train.display import SILENT, Display

Example = Mapping[str, Any]
"""{"image": the bytes of an image file, "label": the number of its class}; of a multi-label split the label is a
sequence of such numbers, which may be empty."""
Which = Literal["train", "eval", "test"]
"""train: training examples. eval: examples for evaluation during training (a validation split if there is one). test:
examples to measure a finished model (a test split if there is one)."""


class Source(Sequence[Example]):
    """Examples in one kind of storage, each read when it is used; picklable, so that other processes can read them.
    Reading one raises InputError for a file or record that cannot be read."""

    @abstractmethod
    def name(self, i: int) -> str:
        """Name of example i for the user: its file, or its position in a file."""

    @property
    @abstractmethod
    def identity(self) -> tuple[object, ...]:
        """A description of these examples, in their order, that differs from that of any others. Moving the data does
        not change it."""

    @abstractmethod
    def places(self) -> Iterable[object]:
        """The place of each example on this machine. Examples with equal places are the same."""

    def make_ready(self, display: Display = SILENT) -> None:
        """Does what random access needs once, such as unpacking."""


class Listed(Source):
    """Examples that have a label and a key each, and are sorted by both. Fields that end in _N are arrays with an entry
    for each."""

    labels_N: np.ndarray
    """int32 [N]; for a multi-label split object [N]: the tuple of each example's classes."""

    @property
    @abstractmethod
    def keys_N(self) -> np.ndarray:
        """bytes [N]: the keys by which the examples of a class are sorted."""

    @abstractmethod
    def head(self, i: int, length: int) -> bytes:
        """The first `length` bytes of image file i, or more; all bytes if it is shorter. Raises InputError if it cannot
        be read."""

    @abstractmethod
    def sizes_and_times(self) -> np.ndarray:
        """int64 [N, 2]: the size in bytes of each image (for a parquet file its average), and the time of the last
        change of its file, in ns; zeros for a missing file."""

    def take(self, indices_M: np.ndarray) -> Self:
        """The examples with these indices, in this order."""
        arrays = [field.name for field in fields(self) if field.name.endswith("_N")]  # type: ignore[arg-type]
        return replace(self, **{name: getattr(self, name)[indices_M] for name in arrays})  # type: ignore[type-var]


@dataclass(frozen=True)
class Split:
    """Examples of a split, each read when it is used; picklable, so that other processes can read them."""

    examples: Sequence[Example]
    """A Source, or examples in memory. They may have an attribute `labels_N`, the label of each: then class weights and
    balanced sampling need not read every example first."""
    labels: tuple[str, ...]
    """Names of the classes, by label."""
    title: str
    """Name of the split for the user: "cifar10 train", "photos/val"."""
    notes: tuple[str, ...] = ()
    """Messages for the user on how the data were read, such as ignored files."""
    multilabel: bool = False
    """Whether an example may have any number of classes, instead of exactly one."""
    groups: Groups | None = None
    """The group of each example, if the data name groups. It is no part of the fingerprint: which examples a split has
    is."""

    def name(self, i: int) -> str:
        """Name of example i for the user: its file, or its position ("cifar10 train[123]")."""
        return self.examples.name(i) if isinstance(self.examples, Source) else f"{self.title}[{i}]"

    def fault(self, i: int, error: object) -> str:
        """The reason why example i cannot be read, with its name, which `error` may already contain."""
        return str(error) if self.name(i) in str(error) else f"{self.name(i)}: {error}"

    def fingerprint(self) -> str:
        """A hash of the examples' identities, their order and the labels' names; moving the data does not change it."""
        identity = self.examples.identity if isinstance(self.examples, Source) else ()
        kind = ("multilabel",) if self.multilabel else ()
        return hashlib.sha256(repr((len(self), self.labels, *identity, *kind)).encode()).hexdigest()[:16]

    def make_ready(self, display: Display = SILENT) -> None:
        """Does what random access to the examples needs once, such as unpacking."""
        if isinstance(self.examples, Source):
            self.examples.make_ready(display)

    def __len__(self) -> int:
        return len(self.examples)


def size_and_time(path: str) -> tuple[int, int]:
    """The size of a file in bytes, and the time of its last change, in ns; zeros if it does not exist, for example for
    a broken link."""
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns
