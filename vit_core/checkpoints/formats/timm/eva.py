"""Names of arrays in timm's Eva class, and of a separate gate in other classes, that differ from the canonical ones.

LayerScale is `gamma_1` and `gamma_2`, queries, keys and values may be three projections, the gate of an MLP may be a
layer of its own, and learned frequencies of all blocks are one array. Source: huggingface/pytorch-image-models,
timm/models/eva.py (EVA, EVA-02, PE, rope-vit, DINOv3, LingBot, Sapiens2).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from vit_core.arrays import LazyArray, LazyArrays
from vit_core.checkpoints.formats.interface import layers_of
from vit_core.checkpoints.formats.rules import Rule, rule
from vit_core.config import ViTConfig
from vit_core.errors import InputError
from vit_core.parameters import parameters

_FREQUENCIES = "rope.freqs"
_MARK = re.compile(r"blocks\.0\.(gamma_1|attn\.(q_proj\.weight|q_bias))|rope\.freqs")
"""Names that only Eva has among timm's classes without relative positions."""


@dataclass(frozen=True)
class Names:
    """Which variants of names a file has."""

    gamma: bool = False
    """LayerScale is `gamma_1` and `gamma_2`."""
    split_qkv: bool = False
    """Queries, keys and values are projected by `q_proj`, `k_proj` and `v_proj`."""
    split_gate: bool = False
    """The MLP's first layer is `fc1_g` (the gate) and `fc1_x`."""


def eva_mark(names: Mapping[str, object]) -> str | None:
    """An array name that only timm's Eva class has; None if there is none."""
    if any(name.endswith("relative_position_bias_table") for name in names):  # BEiT has names of Eva too
        return None
    return next((name for name in names if _MARK.match(name)), None)


def names_in(arrays: Mapping[str, object]) -> Names:
    """The variants of names in a file."""
    return Names(
        gamma="blocks.0.gamma_1" in arrays,
        split_qkv="blocks.0.attn.q_proj.weight" in arrays,
        split_gate="blocks.0.mlp.fc1_g.weight" in arrays,
    )


def is_eva(model: ViTConfig) -> bool:
    """Whether a model is one of timm's Eva class, and not of its VisionTransformer."""
    own_pool = model.pooling == "map" and (model.pooling_heads, model.pooling_mlp_dim) != (model.heads, model.mlp_dim)
    return model.relative_bias == "none" and (model.rope is not None or not model.key_bias or own_pool)


def names_for(model: ViTConfig) -> Names:
    """The variants of names that timm's published models of this kind have."""
    gated = model.mlp == "swiglu"
    if model.relative_bias == "table":  # Beit
        return Names(gamma=True, split_gate=gated)
    if not is_eva(model):
        return Names(split_gate=gated and (model.norm, model.norm_epsilon) == ("rms_norm", 1e-5))  # AIMv2
    of_dinov3 = model.rope is not None and model.rope.coordinates == "centered" and model.branch_norm == "before"
    return Names(True, split_qkv=gated and model.mlp_norm, split_gate=gated and (model.mlp_norm or of_dinov3))


def rules(model: ViTConfig, names: Names) -> list[Rule]:
    """A rule for every parameter, for these variants of names. Learned frequencies must be separate for each block
    (`with_frequencies_by_block`)."""
    return [_rule(name, names) for name in parameters(model)]


def _rule(name: str, names: Names) -> Rule:
    block, _, leaf = name.rpartition(".")
    if names.gamma and block.endswith((".ls1", ".ls2")):
        return rule(name, f"{block[:-4]}.gamma_{block[-1]}")
    if names.split_qkv and block.endswith("attn.qkv"):
        return rule(name, tuple(f"{block[:-3]}{part}_proj.{leaf}" for part in "qkv"))
    if names.split_qkv and leaf in ("q_bias", "v_bias"):
        return rule(name, f"{block}.{leaf[0]}_proj.bias")
    if names.split_gate and block.startswith("blocks.") and block.endswith("mlp.fc1"):
        return rule(name, tuple(f"{block}_{part}.{leaf}" for part in "gx"))
    return rule(name, name)


def canonical_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The shapes, with those of the first block added under canonical names."""
    found, attn, mlp = dict(shapes), "blocks.0.attn.", "blocks.0.mlp.fc1"
    if "blocks.0.gamma_1" in shapes:
        found["blocks.0.ls1.gamma"] = shapes["blocks.0.gamma_1"]
    for leaf in ("weight", "bias"):
        parts = [shapes[name] for part in "qkv" if (name := f"{attn}{part}_proj.{leaf}") in shapes]
        if len(parts) == 3:
            found[f"{attn}qkv.{leaf}"] = (sum(shape[0] for shape in parts if shape), *parts[0][1:])
        elif len(parts) == 2:
            found |= {f"{attn}q_bias": parts[0], f"{attn}v_bias": parts[1]}
        if gate := shapes.get(f"{mlp}_g.{leaf}"):
            found[f"{mlp}.{leaf}"] = (2 * gate[0], *gate[1:])
    return found


def with_frequencies_by_block(arrays: LazyArrays, where: object) -> LazyArrays:
    """The arrays with learned frequencies [2, L, T, K / 2] split into one array [2, T, K / 2] for each block. Raises
    InputError for another shape."""
    if _FREQUENCIES not in arrays:
        return arrays
    entries = dict(arrays.entries)
    joined, depth = entries.pop(_FREQUENCIES), layers_of(entries, "blocks.")
    if len(joined.shape) != 4 or joined.shape[1] != depth:
        raise InputError(f"{where}: {_FREQUENCIES} has shape {list(joined.shape)}; expected [2, {depth}, heads, pairs]")
    for i in range(depth):
        shape = (joined.shape[0], *joined.shape[2:])
        entries[f"blocks.{i}.attn.{_FREQUENCIES}"] = joined.then(
            partial(np.take, indices=i, axis=1), shape, joined.dtype
        )
    return LazyArrays(entries)


def with_frequencies_joined(arrays: LazyArrays) -> LazyArrays:
    """The opposite of `with_frequencies_by_block`."""
    names = [name for name in arrays if name.endswith(f".attn.{_FREQUENCIES}")]
    if not names:
        return arrays
    entries, first = dict(arrays.entries), arrays.entries[names[0]]
    parts = [entries.pop(name) for name in names]
    shape = (first.shape[0], len(parts), *first.shape[1:])
    joined = LazyArray(shape, first.dtype, lambda: np.stack([part.read() for part in parts], axis=1))
    return LazyArrays({**entries, _FREQUENCIES: joined})


def with_whole_blocks(arrays: LazyArrays, where: object) -> tuple[LazyArrays, list[str]]:
    """The arrays of Sapiens2 with keys and values repeated for each head, if groups of heads share them, and with a
    LayerScale of ones for the MLP, if only attention has one; and notes. The outputs are the same."""
    entries, shared, unscaled = dict(arrays.entries), 0, 0
    for i in range(layers_of(arrays, "blocks.")):
        block = f"blocks.{i}."
        if f"{block}gamma_1" in entries and f"{block}gamma_2" not in entries:
            gamma = entries[f"{block}gamma_1"]
            entries[f"{block}gamma_2"] = gamma.then(np.ones_like, gamma.shape, gamma.dtype)
            unscaled += 1
        shared += _repeat_shared(entries, f"{block}attn.", where)
    notes = [f"layer_scale: ones for the MLP in {unscaled} blocks, which have it only for attention"] * bool(unscaled)
    notes += [f"keys and values: repeated for each head in {shared} blocks, where groups of heads share them"] * bool(
        shared
    )
    return LazyArrays(entries), notes


def _repeat_shared(entries: dict[str, LazyArray], attn: str, where: object) -> bool:
    rows = [(entries[name].shape or (0,))[0] for part in "qk" if (name := f"{attn}{part}_proj.weight") in entries]
    if len(rows) < 2 or rows[0] == rows[1]:
        return False
    head_dim = (entries[f"{attn}q_norm.weight"].shape or (0,))[0] if f"{attn}q_norm.weight" in entries else 0
    if not head_dim or not rows[1] or rows[0] % rows[1] or rows[1] % head_dim:
        raise InputError(
            f"{where}: {attn}k_proj.weight has {rows[1]} rows and q_proj {rows[0]}: groups of heads share keys; their "
            "width is known only if queries and keys have norms"
        )
    for name in [f"{attn}{part}_proj.{leaf}" for part in "kv" for leaf in ("weight", "bias")]:
        if name in entries:
            one = entries[name]
            repeat = partial(_for_each_head, head_dim=head_dim, times=rows[0] // rows[1])
            entries[name] = one.then(repeat, (rows[0], *one.shape[1:]), one.dtype)
    return True


def _for_each_head(array: np.ndarray, head_dim: int, times: int) -> np.ndarray:
    heads = array.reshape(-1, head_dim, *array.shape[1:])
    return heads.repeat(times, axis=0).reshape(-1, *array.shape[1:])
