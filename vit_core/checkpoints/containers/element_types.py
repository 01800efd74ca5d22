"""The element types that files may have and NumPy, with ml_dtypes, supports."""

import ml_dtypes
import numpy as np

ELEMENT_TYPES: dict[str, np.dtype] = {
    name: np.dtype(getattr(np, {"bool": "bool_"}.get(name, name)))
    for name in [
        "float16",
        "float32",
        "float64",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "bool",
        "complex64",
        "complex128",
    ]
} | {
    name: np.dtype(getattr(ml_dtypes, name))
    for name in ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"]
}
"""Name, the same in PyTorch and NumPy -> NumPy type."""
