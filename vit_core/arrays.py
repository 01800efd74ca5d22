"""Arrays by name whose values are read on access: the contents of a checkpoint of any format."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import ml_dtypes
import numpy as np

from vit_core.errors import unknown_name

DTYPES: dict[str, np.dtype] = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}
"""The types that parameters can have."""

_STRIP = 16
"""Elements of float32 in a cache line."""


@dataclass(frozen=True)
class LazyArray:
    """An array that is read on access: its shape and type, and the function that reads it."""

    shape: tuple[int, ...]
    dtype: str
    """NumPy's name of its type, or the file's own name if NumPy has none."""
    read: Callable[[], np.ndarray]
    """Returns a new array at each call, which the caller may modify."""

    @classmethod
    def of(cls, array: np.ndarray) -> "LazyArray":
        """An array in memory as a LazyArray."""
        return cls(array.shape, array.dtype.name, array.copy)

    def then(self, function: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...], dtype: str) -> "LazyArray":
        """The result of a function on this array, computed on access; shape and type are those of the result."""
        return LazyArray(shape, dtype, lambda: function(self.read()))


class LazyArrays(Mapping[str, np.ndarray]):
    """Arrays by name, read on access; `entries` has their shapes and types."""

    def __init__(self, entries: Mapping[str, LazyArray]) -> None:
        self.entries = entries

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> "LazyArrays":
        """The arrays themselves if they are lazy, otherwise arrays in memory as lazy ones."""
        return arrays if isinstance(arrays, cls) else cls({name: LazyArray.of(array) for name, array in arrays.items()})

    def with_array(self, name: str, array: np.ndarray) -> "LazyArrays":
        """The arrays with one added or replaced."""
        return LazyArrays({**self.entries, name: LazyArray.of(array)})

    def select(self, names: Iterable[str]) -> "LazyArrays":
        """Only these arrays, in this order."""
        return LazyArrays({name: self.entries[name] for name in names})

    def as_type(self, dtype: object) -> "LazyArrays":
        """The arrays converted on access to a floating type; unchanged for None. Raises InputError for other types."""
        if dtype is None:
            return self
        kind, to = as_dtype(dtype).name, partial(convert, dtype=dtype)
        return LazyArrays({name: entry.then(to, entry.shape, kind) for name, entry in self.entries.items()})

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each array."""
        return {name: entry.shape for name, entry in self.entries.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        return self.entries[name].read()

    def __contains__(self, name: object) -> bool:
        return name in self.entries  # Mapping's own would read the array

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def convert(array: np.ndarray, dtype: object = None) -> np.ndarray:
    """The array in another floating type, given by name or as a NumPy, JAX or PyTorch dtype; unchanged for None."""
    return array if dtype is None else array.astype(as_dtype(dtype), copy=False)


def as_dtype(dtype: object) -> np.dtype:
    """The NumPy type for a floating dtype: a name such as "bfloat16", or a NumPy, JAX or PyTorch dtype.

    Raises InputError for any other type.
    """
    try:
        name = dtype.removeprefix("torch.") if isinstance(dtype, str) else np.dtype(dtype).name  # type: ignore
    except TypeError:
        name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise unknown_name("dtype", name, DTYPES)
    return DTYPES[name]


def contiguous(array: np.ndarray) -> np.ndarray:
    """The array with its elements in C order in memory.

    A transposed array is copied in strips of the width of a cache line, which takes a fifth of the time of NumPy's own
    copy.
    """
    if array.flags.c_contiguous:
        return array
    if array.strides[-1] == array.itemsize:
        return np.ascontiguousarray(array)
    copied = np.empty(array.shape, array.dtype)
    for start in range(0, array.shape[-1], _STRIP):
        copied[..., start : start + _STRIP] = array[..., start : start + _STRIP]
    return copied
