"""Arrays of transformers' former Flax classes (FlaxViT, FlaxCLIP, FlaxDinov2) under the names of its PyTorch classes.

`flax_model.msgpack` has the same modules under the same names, with Flax's names and axes for the parameters of a
layer: `kernel` for the `weight` of a Linear [inputs, outputs] and of a convolution [height, width, inputs, outputs],
`scale` for that of a norm, `embedding` for that of a table. The classes were removed in transformers 5.
"""

from functools import partial

import numpy as np

from vit_core.arrays import LazyArray, LazyArrays, contiguous

_AXES = {2: (1, 0), 4: (3, 2, 0, 1)}
"""Number of a kernel's axes -> the order of these axes in PyTorch."""
_LEAVES = ("scale", "embedding")


def is_flax(arrays: LazyArrays) -> bool:
    """Whether the names are those of a Flax tree."""
    return any(name.endswith(("/kernel", ".kernel")) for name in arrays)


def as_pytorch(arrays: LazyArrays) -> LazyArrays:
    """The arrays under the names and in the layouts of PyTorch; each is transposed when it is read."""
    renamed: dict[str, LazyArray] = {}
    for name, entry in arrays.entries.items():
        module, _, leaf = name.replace("/", ".").rpartition(".")
        dot = "." if module else ""
        if leaf == "kernel" and (axes := _AXES.get(len(entry.shape))):
            shape = tuple(entry.shape[axis] for axis in axes)
            renamed[f"{module}{dot}weight"] = entry.then(partial(_transposed, axes), shape, entry.dtype)
        else:
            renamed[f"{module}{dot}{'weight' if leaf in _LEAVES else leaf}"] = entry
    return LazyArrays(renamed)


def _transposed(axes: tuple[int, ...], array: np.ndarray) -> np.ndarray:
    return contiguous(array.transpose(axes))
