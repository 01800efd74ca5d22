"""Checks of the parameters of an opened checkpoint: types when it is opened, values when they are read."""

import warnings
from functools import partial

import numpy as np

from vit_core.arrays import DTYPES, LazyArrays
from vit_core.errors import InputError


def with_value_checks(origin: object, arrays: LazyArrays) -> LazyArrays:
    """The same parameters, with a warning when one is read whose values are not all finite.

    origin: their file or folder, for messages. Raises InputError for a type that parameters cannot have.
    """
    checked = {}
    for name, entry in arrays.entries.items():
        if entry.dtype not in DTYPES:
            quantized = entry.dtype.startswith(("int8", "uint8", "float8", "float4"))
            step = "; quantized weights cannot be read: save the model before quantization" if quantized else ""
            raise InputError(
                f"{origin}: parameter {name} has type {entry.dtype}; expected one of {', '.join(DTYPES)}{step}"
            )
        checked[name] = entry.then(partial(_warn_not_finite, origin, name), entry.shape, entry.dtype)
    return LazyArrays(checked)


def with_zero_head_warning(origin: object, arrays: LazyArrays) -> LazyArrays:
    """The same parameters, with a warning when the head is read and contains only zeros.

    Some models released after pretraining on ImageNet-21k have such a head, which cannot classify.
    """
    if "head.weight" not in arrays:
        return arrays
    head = arrays.entries["head.weight"]
    warned = head.then(partial(_warn_zero_head, origin), head.shape, head.dtype)
    return LazyArrays({**arrays.entries, "head.weight": warned})


def _warn_not_finite(origin: object, name: str, array: np.ndarray) -> np.ndarray:
    if not np.isfinite(array).all():
        warnings.warn(f"{origin}: parameter {name} has values that are not finite", stacklevel=2)
    return array


def _warn_zero_head(origin: object, head_CD: np.ndarray) -> np.ndarray:
    if not head_CD.any():
        warnings.warn(
            f"{origin}: all weights of the head are zeros, so it cannot classify; replace it by setting num_classes",
            stacklevel=2,
        )
    return head_CD
