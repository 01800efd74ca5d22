"""Names of arrays in timm's Beit and VisionTransformerRelPos classes, and in its parallel blocks, that differ from the
canonical ones.

Source: huggingface/pytorch-image-models, timm/models/beit.py, vision_transformer_relpos.py and (ParallelScalingBlock)
vision_transformer.py.
"""

import re
from collections.abc import Mapping
from functools import partial

import numpy as np

from vit_core.arrays import LazyArray, LazyArrays
from vit_core.config import ViTConfig

_TABLE = "relative_position_bias_table"
_OF_BEIT = (
    (r"^rel_pos_bias\.", "shared_rel_pos."),
    (rf"^(blocks\.\d+\.attn\.)(?={_TABLE}$)", r"\1rel_pos."),
)
_OF_PARALLEL = (
    (r"\.in_norm\.", ".norm1."),
    (r"\.([qk]_norm)\.", r".attn.\1."),
    (r"\.attn_out_proj\.", ".attn.proj."),
    (r"\.mlp_out_proj\.", ".mlp.fc2."),
    (r"\.mlp_bias$", ".mlp.fc1.bias"),
    (r"\.ls\.gamma$", ".ls1.gamma"),
)
_BUFFERS = r"\.relative_position_index$|\.rel_coords_log$"
"""Buffers that timm computes itself and other projects' files contain."""


def has_relative_bias(names: Mapping[str, object]) -> bool:
    """Whether the canonical names include a relative position bias."""
    return any(re.match(r"(shared_rel_pos|blocks\.0\.attn\.rel_pos)\.", name) for name in names)


def is_parallel(names: Mapping[str, object]) -> bool:
    """Whether the names are those of timm's parallel blocks."""
    return "blocks.0.in_proj.weight" in names


def with_canonical_names(arrays: LazyArrays) -> LazyArrays:
    """The arrays under canonical names; the joint projection of parallel blocks is split."""
    parallel = is_parallel(arrays)
    entries: dict[str, LazyArray] = {}
    for name, array in arrays.entries.items():
        if re.search(_BUFFERS, name):
            continue
        if parallel and ".in_proj." in name:
            entries |= _split(name, array, arrays)
            continue
        for pattern, replacement in (*_OF_BEIT, *(_OF_PARALLEL if parallel else ())):
            name = re.sub(pattern, replacement, name)
        entries[name] = array
    return LazyArrays(entries)


def _split(name: str, array: LazyArray, arrays: LazyArrays) -> dict[str, LazyArray]:
    """The two parts of a joint projection: the first layer of the MLP, then queries, keys and values."""
    block, leaf = name.split(".in_proj.")
    out = arrays.entries.get(f"{block}.mlp_out_proj.weight")
    hidden = out.shape[1] if out is not None and len(out.shape) == 2 else 0
    parts = {f"{block}.mlp.fc1.{leaf}": slice(0, hidden), f"{block}.attn.qkv.{leaf}": slice(hidden, None)}
    rows = array.shape[0] if array.shape else 0
    return {
        ours: array.then(partial(_rows, part), (len(range(rows)[part]), *array.shape[1:]), array.dtype)
        for ours, part in parts.items()
    }


def _rows(part: slice, array: np.ndarray) -> np.ndarray:
    return array[part]


def with_timm_names(arrays: LazyArrays, model: ViTConfig) -> LazyArrays:
    """The inverse of `with_canonical_names`: the arrays under the names of timm's class for the model."""
    entries = dict(arrays.entries)
    if is_beit(model):
        entries = {name.replace("attn.rel_pos.", "attn."): array for name, array in entries.items()}
        entries = {name.replace("shared_rel_pos.", "rel_pos_bias."): array for name, array in entries.items()}
    if not model.parallel:
        return LazyArrays(entries)
    written: dict[str, LazyArray] = {}
    for name, array in entries.items():
        if not name.startswith("blocks."):
            written[name] = array
            continue
        block, _, rest = name.partition(".mlp.fc1.")
        if rest == "weight" or (rest == "bias" and model.qkv_bias):
            qkv = entries[f"{block}.attn.qkv.{rest}"]
            shape = (array.shape[0] + qkv.shape[0], *array.shape[1:])
            written[f"{block}.in_proj.{rest}"] = LazyArray(shape, array.dtype, partial(_joined, array, qkv))
        elif rest:
            written[f"{block}.mlp_bias"] = array
        elif ".attn.qkv." not in name:
            written[_parallel_name(name)] = array
    return LazyArrays(written)


def _joined(*parts: LazyArray) -> np.ndarray:
    return np.concatenate([part.read() for part in parts])


def _parallel_name(name: str) -> str:
    for ours, theirs in (
        (".norm1.", ".in_norm."),
        (".attn.q_norm.", ".q_norm."),
        (".attn.k_norm.", ".k_norm."),
        (".attn.proj.", ".attn_out_proj."),
        (".mlp.fc2.", ".mlp_out_proj."),
        (".ls1.", ".ls."),
    ):
        name = name.replace(ours, theirs)
    return name


def is_beit(model: ViTConfig) -> bool:
    """Whether a model with relative position bias is written for timm's Beit class, which has tables, instead of
    VisionTransformerRelPos, which has networks."""
    return model.relative_bias == "table"
