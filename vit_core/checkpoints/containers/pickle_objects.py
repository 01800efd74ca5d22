"""Replacements for the functions that pickles of PyTorch's tensors and of Python's collections call to rebuild them.

`constructors` lists them by the names that files use. They return lazy arrays, plain values and the objects below,
which `pickle_tree` converts to plain data.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from vit_core.arrays import LazyArray
from vit_core.checkpoints.containers.element_types import ELEMENT_TYPES
from vit_core.checkpoints.containers.pickle_arrays import NumpyArray, is_length, lengths, numpy_constructors
from vit_core.checkpoints.containers.pickle_reader import Budget, Constructor, Global, Instance, as_key

_STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "",
}
_SMALL_EXPANSION = 2**16
"""A tensor with a stride of 0 repeats elements of its storage. It may have more elements than the storage up to this
number."""


@dataclass(eq=False)
class Storage:
    """A block of memory of the process that saved the file. Tensors are views of its parts."""

    dtype: str
    """PyTorch's name of the element type; "" for plain bytes; the name of the storage class if NumPy has no such
    type."""
    size: int
    """Number of elements; of bytes if it has no type."""
    fetch: Callable[[int, int], np.ndarray] | None = None
    """(first byte, number of bytes) -> uint8 [number of bytes]. None until the position of the values in the file is
    known."""
    available: int = 0
    """Bytes of this storage that the file has."""
    first: int = 0
    """For a view: the element of `base` at which it begins."""
    big_endian: bool = False
    base: "Storage | None" = None
    """The storage that this one is a view of (only in files before PyTorch 1.6)."""


@dataclass(eq=False)
class UnreadTensor:
    """A tensor that cannot be read as an array."""

    kind: str
    shape: tuple[int, ...] | None = None
    dtype: str = ""
    reason: str = ""
    """The fault, if the tensor is damaged; "" if it is intact but of a kind that cannot be read."""


def storage_type(target: object) -> str | None:
    """PyTorch's name of the type of a storage class; None for anything else."""
    name = target.name if isinstance(target, Global) else ""
    match = re.fullmatch(r"torch(?:\.cuda|\.storage)?\.(\w+Storage)", name)
    return _STORAGES.get(match[1], match[1]) if match else None


def constructors(budget: Budget, load_bytes: Callable[[bytes], Any] | None = None) -> Mapping[str, Constructor]:
    """The replacements, by the full names of the functions in files. load_bytes: reads a PyTorch file inside a
    pickle."""
    rebuild: dict[str, Constructor] = {
        "_rebuild_tensor": _tensor,
        "_rebuild_tensor_v2": _tensor_v2,
        "_rebuild_tensor_v3": _tensor_v3,
        "_rebuild_parameter": _first,
        "_rebuild_parameter_with_state": _first,
        "_rebuild_device_tensor_from_numpy": _device_tensor,
        "_rebuild_device_tensor_from_cpu_tensor": _first,
        "_rebuild_xla_tensor": _device_tensor,
        "_rebuild_sparse_tensor": _other_kind("a sparse tensor"),
        "_rebuild_sparse_csr_tensor": _other_kind("a sparse tensor"),
        "_rebuild_nested_tensor": _other_kind("a nested tensor"),
        "_rebuild_qtensor": _other_kind("a quantized tensor"),
        "_rebuild_meta_tensor_no_storage": _other_kind("a tensor without values (of the meta device)"),
        "_rebuild_wrapper_subclass": _subclass,
    }
    table: dict[str, Constructor] = {f"torch._utils.{name}": function for name, function in rebuild.items()}
    table |= {
        "torch._tensor._rebuild_from_type": lambda function, kind, arguments, state: _typed(
            table, function, kind, arguments
        ),
        "torch._tensor._rebuild_from_type_v2": lambda function, kind, arguments, state: _typed(
            table, function, kind, arguments
        ),
        "torch.Size": lambda sizes=(): sizes,
        "_codecs.encode": partial(_encode, budget),
        "copyreg._reconstructor": _reconstructor,
        "copy_reg._reconstructor": _reconstructor,
    }
    if load_bytes:
        table["torch.storage._load_from_bytes"] = load_bytes
    return table | numpy_constructors(budget) | _collections(budget)


def _collections(budget: Budget) -> dict[str, Constructor]:
    """Python's own containers, as lists and dictionaries."""

    def pairs(items: Any = ()) -> dict[Any, Any]:
        if isinstance(items, dict):
            return items
        budget.copy(64 * len(items))
        return {as_key(key): value for key, value in items}

    def elements(items: Any = (), *_: Any) -> list[Any]:
        if isinstance(items, list):
            return items
        if not isinstance(items, tuple):
            raise ValueError("the elements of a collection are not a list")
        budget.copy(8 * len(items))
        return list(items)

    def content(items: Any = b"", *_: Any) -> bytes | Instance:
        return items if isinstance(items, bytes) else Instance("bytes", (items,))

    table: dict[str, Constructor] = {
        "collections.OrderedDict": pairs,
        "collections.defaultdict": lambda *arguments: pairs(*arguments[1:]),
        "collections.Counter": pairs,
        "collections.deque": elements,
    }
    for module in ("builtins", "__builtin__"):
        table |= {f"{module}.dict": pairs, f"{module}.list": elements, f"{module}.set": elements}
        table |= {f"{module}.frozenset": elements, f"{module}.bytearray": content, f"{module}.bytes": content}
    return table


# PyTorch


def _first(value: Any, *_: Any) -> Any:
    return value


def _other_kind(kind: str) -> Constructor:
    return lambda *_: UnreadTensor(kind)


def _subclass(kind: object, *_: Any) -> UnreadTensor:
    return UnreadTensor(f"a tensor of class {kind.name}" if isinstance(kind, Global) else "a tensor of another class")


def _typed(table: Mapping[str, Constructor], function: object, kind: object, arguments: object) -> Any:
    """A tensor that was saved with attributes, or as an object of a subclass of Tensor."""
    if isinstance(function, Global) and isinstance(kind, Global):
        known = table.get(function.name)
        if kind.name in ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"):
            if known and function.name.startswith("torch._utils.") and isinstance(arguments, tuple):
                return known(*arguments)
            return UnreadTensor(f"a tensor made by {function.name}")
    return _subclass(kind)


def _tensor(storage: object, offset: object, size: object, stride: object, *_: Any) -> Any:
    return _strided(storage, offset, size, stride, storage.dtype if isinstance(storage, Storage) else "")


def _tensor_v2(storage: object, offset: object, size: object, stride: object, *others: Any) -> Any:
    """`others`: requires_grad, hooks, and since 1.12 the bits for lazy negation and conjugation."""
    if len(others) > 2 and others[2]:
        return UnreadTensor("a tensor with a lazy negation or conjugation")
    return _tensor(storage, offset, size, stride)


def _tensor_v3(storage: object, offset: object, size: object, stride: object, *others: Any) -> Any:
    """`others`: requires_grad, hooks, dtype, and the bits as above. Its storage has no type."""
    dtype = others[2] if len(others) > 2 else None
    if len(others) > 3 and others[3]:
        return UnreadTensor("a tensor with a lazy negation or conjugation")
    if not isinstance(dtype, Global):
        raise ValueError("a tensor has no type")
    return _strided(storage, offset, size, stride, dtype.name.removeprefix("torch."))


def _strided(storage: object, offset: object, size: object, stride: object, dtype: str) -> Any:
    shape, steps = lengths(size), lengths(stride)
    if not isinstance(storage, Storage) or len(shape) != len(steps) or not is_length(offset):
        raise ValueError("a tensor has no valid storage, shape or strides")
    assert isinstance(offset, int)
    if dtype not in ELEMENT_TYPES:
        return UnreadTensor(f"a tensor of type {dtype or 'bytes'}", shape, dtype)
    kind = ELEMENT_TYPES[dtype]
    if storage.dtype not in ("", dtype):
        raise ValueError(f"a tensor of type {dtype} is in a storage of type {storage.dtype}")
    size_of_storage = storage.size if storage.dtype else storage.size // kind.itemsize
    count, extent = math.prod(shape), _extent(shape, steps)
    if extent and offset + extent > size_of_storage:
        return UnreadTensor("a broken tensor", shape, kind.name, "which is partly outside its storage")
    if count > max(size_of_storage, _SMALL_EXPANSION):
        return UnreadTensor("a broken tensor", shape, kind.name, "but the file has fewer elements")
    return LazyArray(shape, kind.name, partial(_read_tensor, storage, kind, offset, shape, steps))


def _read_tensor(
    storage: Storage, dtype: np.dtype, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> np.ndarray:
    extent = _extent(shape, strides)
    if not extent:
        return np.empty(shape, dtype)
    block = storage.base or storage
    start, length = (storage.first + offset) * dtype.itemsize, extent * dtype.itemsize
    if block.fetch is None or start + length > block.available:
        raise ValueError(f"a tensor needs {start + length} bytes, but its storage has {block.available}")
    content = block.fetch(start, length)
    if content.ctypes.data % dtype.itemsize:
        content = content.copy()
    elements = content.view(dtype.newbyteorder(">") if block.big_endian else dtype)
    if strides == _contiguous_strides(shape) or extent == math.prod(shape) == 1:
        array = elements.reshape(shape)
    else:
        steps = [stride * dtype.itemsize for stride in strides]
        array = np.lib.stride_tricks.as_strided(elements, shape, steps).copy(order="C")
    return array.astype(dtype) if block.big_endian else array


def _contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Number of elements of the storage from a tensor's first element to its last one."""
    return 0 if 0 in shape else 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))


def _device_tensor(array: object, dtype: object, *_: Any) -> Any:
    """A tensor of a device without storages, such as a TPU: saved as a NumPy array, with the type that it had there."""
    name = dtype.name.removeprefix("torch.") if isinstance(dtype, Global) else ""
    if not isinstance(array, NumpyArray) or array.array is None or name not in ELEMENT_TYPES:
        return UnreadTensor("a tensor of another device")
    known, target = array.array, ELEMENT_TYPES[name]
    return known.then(lambda values: values.astype(target, copy=False), known.shape, target.name)


# Python


def _encode(budget: Budget, text: object, encoding: object = "utf-8", *_: Any) -> bytes:
    """Bytes, which Python 3 pickles in protocol 2 as encoded text."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8", "utf8", "ascii"):
        raise ValueError("bytes are not stored as text in a known encoding")
    budget.copy(len(text))
    return text.encode(encoding)


def _reconstructor(kind: object, base: object = None, state: object = None) -> Instance:
    """An object as protocols 0 and 1 pickle it."""
    made = Instance(kind.name if isinstance(kind, Global) else "an object")
    if isinstance(state, dict):
        made.entries = state
    elif isinstance(state, list):
        made.elements = state
    return made
