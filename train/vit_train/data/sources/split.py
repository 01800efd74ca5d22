"""The interface of every kind of source: random access to examples, and a name for each that the user can find."""

import hashlib
import os
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self

import numpy as np

from vit_train.display import SILENT, Display

Example = Mapping[str, Any]
"""{"image": the bytes of an image file, "label": the number of its class}; of a multi-label split the label is a
sequence of such numbers, which may be empty."""
Which = Literal["train", "eval", "test"]
"""Training examples; those that training evaluates on (a validation split, where there is one); those that a finished
model is measured on (a test split, where there is one)."""


class Source(Sequence[Example]):
    """Examples in one kind of storage, each read when it is used; picklable, so that other processes can read them.
    Reading one raises InputError for a file or record that cannot be read."""

    @abstractmethod
    def name(self, i: int) -> str:
        """Name of example i for the user: its file, or its position in a file."""

    @property
    @abstractmethod
    def identity(self) -> tuple[object, ...]:
        """A description of these examples, in their order, that differs from that of others; moving the data does not
        change it."""

    @abstractmethod
    def places(self) -> Iterable[object]:
        """Where each example is on this machine: two examples at equal places are the same."""

    def make_ready(self, display: Display = SILENT) -> None:
        """Does once what random access needs, such as unpacking."""


class Listed(Source):
    """Examples with a label and a key each, sorted by both; fields that end in _N are arrays with an entry for each."""

    labels_N: np.ndarray
    """int32; of a multi-label split objects: the tuple of each example's classes."""

    @property
    @abstractmethod
    def keys_N(self) -> np.ndarray:
        """Bytes: what the examples of a class are sorted by."""

    @abstractmethod
    def head(self, i: int, length: int) -> bytes:
        """The first bytes of image file i, at least as many as it has or `length`. InputError as for reading it."""

    @abstractmethod
    def sizes_and_times(self) -> np.ndarray:
        """int64 [N, 2]: the bytes of each image (of a parquet file an even share), and when its file was last changed,
        in ns; zeros for a file that is not there."""

    def take(self, indices_M: np.ndarray) -> Self:
        """The examples of these indices, in their order."""
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

    def name(self, i: int) -> str:
        """Name of example i for the user: its file, or its position ("cifar10 train[123]")."""
        return self.examples.name(i) if isinstance(self.examples, Source) else f"{self.title}[{i}]"

    def fault(self, i: int, error: object) -> str:
        """Why example i cannot be read, with its name, which the error may have already."""
        return str(error) if self.name(i) in str(error) else f"{self.name(i)}: {error}"

    def fingerprint(self) -> str:
        """A hash of the examples' identities, their order and the labels' names; moving the data does not change it."""
        identity = self.examples.identity if isinstance(self.examples, Source) else ()
        kind = ("multilabel",) if self.multilabel else ()
        return hashlib.sha256(repr((len(self), self.labels, *identity, *kind)).encode()).hexdigest()[:16]

    def make_ready(self, display: Display = SILENT) -> None:
        """Does once what reading the examples at random needs, such as unpacking."""
        if isinstance(self.examples, Source):
            self.examples.make_ready(display)

    def __len__(self) -> int:
        return len(self.examples)


def size_and_time(path: str) -> tuple[int, int]:
    """Bytes of a file, and when it was last changed, in ns; zeros where it is not there, as for a broken link."""
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns
