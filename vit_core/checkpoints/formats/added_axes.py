"""Arrays of timm's names that other projects keep in another form: tokens without axes of length 1, and LayerNorms
without biases.
"""

import re
from functools import partial

import numpy as np

from vit_core.arrays import LazyArrays, convert

_TOKENS = ("cls_token", "dist_token", "reg_token", "register_tokens", "pos_embed")
_NORM = re.compile(r"(?:blocks\.\d+\.(?:attn\.|mlp\.)?)?(?:[qk]_)?(?:fc_)?norm(?:_pre|\d)?\.weight")


def with_all_axes(arrays: LazyArrays) -> LazyArrays:
    """With tokens [D] or [N, D] and positions [N, D] as [1, N, D]; D is the width of the patch projection."""
    width = next(iter(arrays.shapes.get("patch_embed.proj.weight", ())), 0)
    entries = dict(arrays.entries)
    for name in _TOKENS:
        shape = arrays.shapes.get(name, ())
        if 0 < len(shape) < 3 and shape[-1] == width:
            whole = (1, *((1, *shape)[-2:]))
            entries[name] = entries[name].then(partial(_reshaped, whole), whole, entries[name].dtype)
    return LazyArrays(entries)


def _reshaped(shape: tuple[int, ...], array: np.ndarray) -> np.ndarray:
    return array.reshape(shape)


def with_norm_biases(arrays: LazyArrays) -> LazyArrays:
    """With zeros for the biases of norms that have none, as torch.nn.LayerNorm(bias=False) has none."""
    for name, entry in arrays.entries.items():
        bias = name.replace(".weight", ".bias")
        if _NORM.fullmatch(name) and len(entry.shape) == 1 and bias not in arrays:
            arrays = arrays.with_array(bias, convert(np.zeros(entry.shape), entry.dtype))
    return arrays
