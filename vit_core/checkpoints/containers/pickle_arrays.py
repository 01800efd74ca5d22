"""Replacements for the functions that pickles of NumPy and JAX arrays call to rebuild them."""

import math
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

from vit_core.arrays import LazyArray
from vit_core.checkpoints.containers.element_types import ELEMENT_TYPES
from vit_core.checkpoints.containers.pickle_reader import Budget, Constructor, Global, HasState, Instance

_MOST_DIMENSIONS = 32


class NumpyType(HasState):
    """A NumPy dtype while a pickle is read; `dtype` is None for a type that is not supported."""

    def __init__(self, dtype: np.dtype | None) -> None:
        self.dtype = dtype

    def set_state(self, state: Any) -> None:
        """state: (version, byte order, subtype, names, fields, ...)."""
        if not isinstance(state, tuple) or len(state) < 5:
            raise ValueError("a NumPy type has an unknown state")
        if any(part is not None for part in state[2:5]):
            self.dtype = None
        elif state[1] == ">" and self.dtype is not None:
            self.dtype = self.dtype.newbyteorder(">")


class NumpyArray(HasState):
    """A NumPy array while a pickle is read. `array` is None until its values are known, and for an array of objects."""

    def __init__(self) -> None:
        self.array: LazyArray | None = None

    def set_state(self, state: Any) -> None:
        """state: (version, shape, dtype, whether the order is Fortran's, the bytes); the version may be missing."""
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise ValueError("a NumPy array has an unknown state")
        shape, kind, fortran, content = state[-4:]
        self.array = _numpy_array(content, kind, shape, "F" if fortran is True else "C")


def numpy_constructors(budget: Budget) -> dict[str, Constructor]:
    """The replacements, by the full names of the functions in files."""
    table: dict[str, Constructor] = {
        "numpy.dtype": _numpy_type,
        "jax._src.array._reconstruct_array": _jax_array,
        "jax.array._reconstruct_array": _jax_array,
        "jax._src.device_array.reconstruct_device_array": _jax_array,
    }
    for module in ("numpy.core", "numpy._core"):
        table[f"{module}.multiarray._reconstruct"] = lambda *_: NumpyArray()
        table[f"{module}.multiarray.scalar"] = partial(_numpy_scalar, budget)
        table[f"{module}.numeric._frombuffer"] = _numpy_buffer
    return table


def _numpy_type(kind: object, *_: Any) -> NumpyType | Instance:
    if isinstance(kind, str) and re.fullmatch(r"b1|[iu][1248]|f[248]|c8|c16|V2|[SU]\d{1,6}", kind):
        return NumpyType(np.dtype(kind))
    if isinstance(kind, str) and kind in ELEMENT_TYPES:
        return NumpyType(ELEMENT_TYPES[kind])
    named = kind.name if isinstance(kind, Global) else ""
    if named.startswith(("ml_dtypes.", "jax.numpy.", "numpy.")) and named.rpartition(".")[2] in ELEMENT_TYPES:
        return NumpyType(ELEMENT_TYPES[named.rpartition(".")[2]])
    return NumpyType(None)


def _numpy_scalar(budget: Budget, kind: object, content: object = b"") -> object:
    """A NumPy scalar as a plain value, if its type has one."""
    dtype = kind.dtype if isinstance(kind, NumpyType) else None
    if dtype is None or not isinstance(content, bytes) or len(content) != dtype.itemsize or not dtype.itemsize:
        return Instance("a NumPy scalar")
    budget.copy(len(content))
    value = np.frombuffer(content, dtype)[0]
    if dtype.name in ELEMENT_TYPES and dtype.kind == "V":  # bfloat16 and the like
        return float(value)
    return value.item() if dtype.kind in "biufSU" else Instance(f"a NumPy scalar of type {dtype.name}")


def _numpy_buffer(content: object, kind: object, shape: object, order: object = "C", *_: Any) -> NumpyArray:
    made = NumpyArray()
    made.array = _numpy_array(content, kind, shape, "F" if order == "F" else "C")
    return made


def _numpy_array(content: object, kind: object, shape: object, order: str) -> LazyArray | None:
    dtype = kind.dtype if isinstance(kind, NumpyType) else None
    if isinstance(content, str):  # a string of Python 2 that happens to be UTF-8
        content = content.encode()
    if dtype is None or not isinstance(content, bytes):
        return None
    sizes = lengths(shape)
    if math.prod(sizes) * dtype.itemsize != len(content):
        raise ValueError(f"an array has {len(content)} bytes for shape {list(sizes)}")
    native = dtype.newbyteorder("=")
    name = "bfloat16" if native == np.dtype("V2") else native.name
    return LazyArray(sizes, name, partial(_read_numpy, content, dtype, sizes, order))


def _read_numpy(content: bytes, dtype: np.dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    array = np.frombuffer(bytearray(content), dtype).astype(dtype.newbyteorder("="), copy=False)
    if array.dtype == np.dtype("V2"):  # how NumPy writes bfloat16
        array = array.view(ml_dtypes.bfloat16)
    return array.reshape(shape, order=order)  # type: ignore[call-overload]


def _jax_array(function: object, arguments: object, state: object, *_: Any) -> NumpyArray:
    """A JAX array, which is pickled as a call that rebuilds a NumPy array, and that array's state."""
    if not isinstance(function, Global) or not function.name.endswith(".multiarray._reconstruct"):
        raise ValueError("a JAX array is stored in an unknown form")
    made = NumpyArray()
    made.set_state(state)
    return made


def is_length(value: object) -> bool:
    """Whether a value is an integer from 0 to 2**62 - 1, as sizes and offsets are."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


def lengths(values: object) -> tuple[int, ...]:
    """A shape, or strides, as a tuple. Raises ValueError unless `values` is a list or tuple of at most 32 such
    integers."""
    if not isinstance(values, Sequence) or len(values) > _MOST_DIMENSIONS or not all(map(is_length, values)):
        raise ValueError("a shape or strides are not a list of sizes")
    return tuple(values)
