"""Changes the config of a checkpoint to one that a format can express, without changing the model's outputs.

A format allows only certain values of some fields. Missing biases and positions become zeros, a missing LayerScale
becomes ones, and positions from a formula become a table. Any other difference is an error.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vit_core import parity
from vit_core.arrays import convert
from vit_core.checkpoints.checkpoint import Checkpoint
from vit_core.checkpoints.formats.allowed_values import ANY, Values
from vit_core.config import ViTConfig
from vit_core.errors import InputError
from vit_core.parameters import parameters
from vit_core.position_embeddings import sincos2d
from vit_core.rope import Rope

_BIASES = ("qkv_bias", "proj_bias", "patch_bias", "head_bias")
_ROUNDED = ", rounded to float32"
_LOSSY = {"activation": ("gelu", "gelu_tanh"), "norm_epsilon": None}
"""Field -> the values between which --allow-lossy may change it (None: all). The logits change only slightly.
(_LOSSY_ROPE: rounding the periods changes them slightly; the other fields affect only training.)"""
_LOSSY_ROPE = ("periods", "shift", "jitter", "rescale")


@dataclass(frozen=True)
class Expressed:
    """A checkpoint whose config a format can express."""

    checkpoint: Checkpoint
    notes: tuple[str, ...] = ()
    """Messages for the user on values that were added or changed."""
    rounded: bool = False
    """Whether a value was computed in float64 and rounded to float32, the type that the format stores."""

    @property
    def bound(self) -> float:
        """Bound of the relative difference of outputs in float64; if a value was rounded to float32, it is float32's
        precision."""
        return parity.FLOAT32_BOUND if self.rounded else parity.FLOAT64_BOUND


def express(checkpoint: Checkpoint, allowed: Mapping[str, Values], target: str, allow_lossy: bool) -> Expressed:
    """The same model with a config whose fields have only allowed values.

    allowed: every field of ViTConfig -> the values that the format can express. target: its name, for messages. Raises
    InputError that names the fields with other values, and AssertionError if `allowed` lacks a field.
    """
    if undecided := set(ViTConfig.model_fields) - set(allowed):
        raise AssertionError(f"the format {target} does not list allowed values of {', '.join(sorted(undecided))}")
    refused, lossy = list[str](), list[str]()
    changes: list[Expressed] = []
    for field, values in allowed.items():
        value = getattr(checkpoint.config.model, field)
        if values == ANY or value in values:
            continue
        change = next((c for v in values if (c := _with_value(checkpoint, field, v)) is not None), None)
        if change is not None:
            checkpoint = change.checkpoint
            changes.append(change)
        elif _is_lossy(field, value, values):
            lossy.append(_compared(field, value, values))
            checkpoint = checkpoint.with_model(**{field: values[0]})
        else:
            refused.append(_compared(field, value, values))
    if refused or (lossy and not allow_lossy):
        hint = "; --allow-lossy uses that value instead" if not refused else ""
        raise InputError(f"{checkpoint.origin}: {target} cannot express {', '.join(refused + lossy)}{hint}")
    notes = [note for change in changes for note in change.notes]
    notes += [f"lossy: {target} cannot express {field}" for field in lossy]
    return Expressed(checkpoint, tuple(notes), any(change.rounded for change in changes))


def at_least_float32(dtype: str) -> str:
    """The type for a computed value in a checkpoint of this type: float64 if it is float64, otherwise float32."""
    return "float64" if dtype == "float64" else "float32"


def _is_lossy(field: str, value: object, values: tuple[Any, ...]) -> bool:
    if isinstance(value, Rope) and isinstance(values[0], Rope):
        return value.replace(**{name: getattr(values[0], name) for name in _LOSSY_ROPE}) == values[0]
    if field not in _LOSSY:
        return False
    among = _LOSSY[field]
    return among is None or (value in among and values[0] in among)


def _compared(field: str, value: object, values: tuple[Any, ...]) -> str:
    """A field's value and those that the format allows, as text. For rotary positions, only the parts that differ."""
    there = values[0]
    if isinstance(value, Rope) and isinstance(there, Rope):
        parts = [name for name in Rope.model_fields if getattr(value, name) != getattr(there, name)]
        return ", ".join(_compared(f"{field}.{part}", getattr(value, part), (getattr(there, part),)) for part in parts)
    return f"{field} {_shown(value)} (it has {' or '.join(map(_shown, values))})"


def _shown(value: object) -> str:
    if isinstance(value, Rope):
        return str(value.model_dump(exclude_defaults=True) or "dinov3")
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _with_value(checkpoint: Checkpoint, field: str, value: object) -> Expressed | None:
    """The same model with another value of a field; None if that is not possible."""
    model = checkpoint.config.model
    if field in _BIASES and value is True:
        return Expressed(_filled(checkpoint, 0.0, **{field: True}), (f"{field}: zeros",))
    if field == "key_bias":
        return _with_key_bias(checkpoint) if value else _without_key_bias(checkpoint)
    rope = model.rope
    fixed = field == "rope" and rope is not None and (rope.periods, rope.frequencies) == ("float64", "axial")
    if fixed and rope is not None and value == rope.replace(periods="float32"):
        return Expressed(checkpoint.with_model(rope=value), ("rope.periods: rounded to float32",), rounded=True)
    if field == "layer_scale" and model.layer_scale is None:
        return Expressed(_filled(checkpoint, 1.0, layer_scale=1.0), ("layer_scale: ones",))
    if field == "position_embedding" and value == "learned":
        rounded = model.position_embedding != "none" and at_least_float32(checkpoint.dtype) == "float32"
        note = f"positions: the table of '{model.position_embedding}'{_ROUNDED if rounded else ''}"
        return Expressed(_with_learned_positions(checkpoint), (note,), rounded)
    if field == "class_token_position" and model.class_token and model.position_embedding == "learned":
        return _with_class_token_position(checkpoint) if value else _without_class_token_position(checkpoint)
    if field == "pooling" and value == "cls_gap" and model.pooling in ("cls", "gap"):
        return _with_both_poolings(checkpoint)
    return None


def _filled(checkpoint: Checkpoint, value: float, **fields: Any) -> Checkpoint:
    """The checkpoint with changed fields. Parameters that this adds are filled with `value`."""
    changed = checkpoint.with_model(**fields)
    dtype, rows = checkpoint.dtype, parameters(changed.config.model)
    arrays = checkpoint.arrays
    for name, row in rows.items():
        if name not in arrays:
            arrays = arrays.with_array(name, convert(np.full(row.shape, value), dtype))
    return changed.with_arrays(arrays)


def _with_key_bias(checkpoint: Checkpoint) -> Expressed:
    """The checkpoint with a bias of zeros for the keys."""
    changed, arrays = checkpoint.with_model(key_bias=True), checkpoint.arrays
    for layer in range(checkpoint.config.model.depth):
        attn = f"blocks.{layer}.attn."
        q_A, v_A = arrays[f"{attn}q_bias"], arrays[f"{attn}v_bias"]
        arrays = arrays.with_array(f"{attn}qkv.bias", np.concatenate([q_A, np.zeros_like(q_A), v_A]))
    return Expressed(changed.with_arrays(arrays), ("key_bias: zeros",))


def _without_key_bias(checkpoint: Checkpoint) -> Expressed | None:
    """The checkpoint without the bias of the keys; None if that changes the outputs. Unless keys are rotated or
    normalized, the bias adds the same number to all scores of a query, which does not change the softmax."""
    model, arrays = checkpoint.config.model, checkpoint.arrays
    if model.rope is not None or model.qk_norm:
        return None
    for layer in range(model.depth):
        attn = f"blocks.{layer}.attn."
        q_A, _, v_A = np.split(arrays[f"{attn}qkv.bias"], 3)
        arrays = arrays.with_array(f"{attn}q_bias", q_A).with_array(f"{attn}v_bias", v_A)
    changed = checkpoint.with_model(key_bias=False).with_arrays(arrays)
    return Expressed(changed, ("key_bias: left out, because it changes no attention weight",))


def _with_learned_positions(checkpoint: Checkpoint) -> Checkpoint:
    model = checkpoint.config.model
    if model.position_embedding == "none":
        table_ND = np.zeros((model.grid[0] * model.grid[1], model.width))
    else:
        table_ND = sincos2d(model.grid, model.width, model.sincos_formula)
    changed = checkpoint.with_model(position_embedding="learned", class_token_position=False)
    arrays = checkpoint.arrays.with_array("pos_embed", convert(table_ND[None], at_least_float32(checkpoint.dtype)))
    return changed.with_arrays(arrays)


def _with_class_token_position(checkpoint: Checkpoint) -> Expressed:
    """The checkpoint with a position of zeros for the class token, and for DeiT's distillation token."""
    pos_1ND = checkpoint.arrays["pos_embed"]
    changed = checkpoint.with_model(class_token_position=True)
    zeros_1PD = np.zeros((1, changed.config.model.prefix_positions, pos_1ND.shape[2]), pos_1ND.dtype)
    arrays = checkpoint.arrays.with_array("pos_embed", np.concatenate([zeros_1PD, pos_1ND], axis=1))
    return Expressed(changed.with_arrays(arrays), ("position of the class token: zeros",))


def _without_class_token_position(checkpoint: Checkpoint) -> Expressed:
    """The checkpoint with the positions of the class token and of DeiT's distillation token added to the tokens."""
    pos_1ND, arrays = checkpoint.arrays["pos_embed"], checkpoint.arrays
    tokens = [name for name in ("cls_token", "dist_token") if name in arrays]
    for i, name in enumerate(tokens):
        dtype = at_least_float32(arrays.entries[name].dtype)
        token_11D = arrays[name].astype("float64") + pos_1ND[:, i : i + 1].astype("float64")
        arrays = arrays.with_array(name, convert(token_11D, dtype))
    arrays = arrays.with_array("pos_embed", pos_1ND[:, len(tokens) :])
    rounded = at_least_float32(checkpoint.dtype) == "float32"
    note = f"position of the class token: added to the token{_ROUNDED if rounded else ''}"
    return Expressed(checkpoint.with_model(class_token_position=False).with_arrays(arrays), (note,), rounded)


def _with_both_poolings(checkpoint: Checkpoint) -> Expressed | None:
    """The checkpoint with a head over the concatenated class token and mean; weights for the one that was not used are
    zeros. None if the model cannot have such a head."""
    model = checkpoint.config.model
    has_both = model.class_token and model.final_norm == "before_pooling" and model.distillation == "none"
    if not (has_both and model.num_classes) or model.representation:
        return None
    head_CD = checkpoint.arrays["head.weight"]
    halves = [head_CD, np.zeros_like(head_CD)]
    arrays = checkpoint.arrays.with_array("head.weight", np.hstack(halves if model.pooling == "cls" else halves[::-1]))
    unused = "mean" if model.pooling == "cls" else "class token"
    changed = checkpoint.with_model(pooling="cls_gap").with_arrays(arrays)
    return Expressed(changed, (f"pooling: zeros in the head for the {unused}",))
