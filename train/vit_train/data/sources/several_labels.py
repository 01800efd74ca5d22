"""Images that may have several classes each, given by one cell with a separator, or by one column for each class."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from vit_core.errors import InputError
from vit_train.data.sources.split import Listed
from vit_train.display import SILENT, Display

_TRUE, _FALSE = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no", "")
"""Values that a cell of a class's column may have, in any case."""


@dataclass(frozen=True, eq=False)
class SeveralLabels(Listed):
    """Images of another source, each with any number of classes instead of one."""

    images: Listed
    labels_N: np.ndarray
    """object [N]: a tuple of class numbers for each image."""

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: Any) -> Any:
        return {**self.images[i], "label": self.labels_N[i]}

    def name(self, i: int) -> str:
        """The name in the other source."""
        return self.images.name(i)

    @property
    def keys_N(self) -> np.ndarray:
        """The keys of the other source."""
        return self.images.keys_N

    @property
    def identity(self) -> tuple[object, ...]:
        """The identity of the images, and their classes."""
        return *self.images.identity, repr(self.labels_N.tolist()).encode()

    def places(self) -> Iterable[object]:
        """The same as for the other source."""
        return self.images.places()

    def sizes_and_times(self) -> np.ndarray:
        """The same as for the other source."""
        return self.images.sizes_and_times()

    def head(self, i: int, length: int) -> bytes:
        """The first bytes of image file i, from the other source."""
        return self.images.head(i, length)

    def make_ready(self, display: Display = SILENT) -> None:
        """Calls the same method of the other source."""
        self.images.make_ready(display)

    def take(self, indices_M: np.ndarray) -> Self:
        """The examples with these indices, in this order."""
        return replace(self, images=self.images.take(indices_M), labels_N=self.labels_N[indices_M])


def with_labels(images: Listed, labels: Sequence[tuple[int, ...]]) -> SeveralLabels:
    """Images with the numbers of their classes."""
    labels_N = np.empty(len(labels), object)
    for i, numbers in enumerate(labels):
        labels_N[i] = numbers
    return SeveralLabels(images, labels_N)


def split_cell(cell: str, separator: str) -> tuple[str, ...]:
    """The names in a cell, each once, in order: "cat; dog" -> ("cat", "dog"). Empty for an empty cell."""
    return tuple(dict.fromkeys(name for part in cell.split(separator) if (name := part.strip())))


def names_of_list(where: str, column: str, cell: Sequence[object]) -> tuple[str, ...]:
    """The names in a cell that is a list: ["cat", 7] -> ("cat", "7"). Raises InputError for an entry that is no text or
    integer, and for one that is there twice, as in a list of 1 and 0."""
    if other := [
        one for one in cell if isinstance(one, bool) or not isinstance(one, str | int) or not str(one).strip()
    ]:
        raise InputError(f"{where}: {column} has {other[0]!r} in its list; expected names or numbers of classes")
    names = tuple(str(one).strip() for one in cell)
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(
            f"{where}: {column} has {twice[0]} twice in its list; expected the names or numbers of the image's "
            "classes, each once (for 1 or 0 for each class, use a table with a column for each: --data.label-columns)"
        )
    return names


def columns_of_flags(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The columns of a table whose every cell is true or false, such as 1 or 0."""
    words = {*_TRUE, *_FALSE} - {""}
    return [name for i, name in enumerate(names) if all(row[i].strip().lower() in words for row in rows)]


def names_of_columns(where: str, columns: Sequence[str], cells: Sequence[str]) -> tuple[str, ...]:
    """The columns whose cells in a row are true, that is, the classes of the image. Raises InputError for a cell that
    is neither true nor false."""
    found = []
    for column, cell in zip(columns, cells, strict=True):
        word = cell.strip().lower()
        if word in _TRUE:
            found.append(column)
        elif word not in _FALSE:
            raise InputError(f"{where}: {column} is {cell!r}; expected 1 or 0")
    return tuple(found)
