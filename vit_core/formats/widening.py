"""One model under another config: what a target format cannot leave out is filled in with what changes no value.

A format has, for some fields, only certain values. From ours one gets there by zeros in the place of a bias or position
that there was none of, by ones for LayerScale, by the table that a formula gives; what these do not reach is refused.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from vit_core import parity
from vit_core.arrays import convert
from vit_core.checkpoint import Checkpoint
from vit_core.config import ViTConfig
from vit_core.errors import InputError
from vit_core.parameters import parameters
from vit_core.position_embeddings import sincos2d

_BIASES = ("qkv_bias", "proj_bias", "patch_bias", "head_bias")
_LOSSY = {"activation": ("gelu", "gelu_tanh"), "norm_epsilon": None}
"""Fields that --allow-lossy may change, and among which values: the logits change little."""
_ROUNDED = ", rounded to float32"


def express(
    checkpoint: Checkpoint, allowed: Mapping[str, tuple[Any, ...]], target: str, allow_lossy: bool
) -> tuple[Checkpoint, list[str]]:
    """The checkpoint under a config whose fields have allowed values only, and notes of what was done.

    allowed: field -> the values that the format can hold, the preferred one first. InputError naming what it cannot.
    """
    refused, lossy, notes = [], [], []
    for field, values in allowed.items():
        value = getattr(checkpoint.config.model, field)
        if value in values:
            continue
        widened = next((w for v in values if (w := _widened(checkpoint, field, v)) is not None), None)
        if widened is not None:
            checkpoint, how = widened
            notes.append(how)
        elif _is_lossy(field, value, values):
            lossy.append(f"{field} {_shown(value)} (there: {_shown(values[0])})")
            checkpoint = _with_model(checkpoint, **{field: values[0]})
        else:
            refused.append(f"{field} {_shown(value)} (there: {' or '.join(map(_shown, values))})")
    if refused or (lossy and not allow_lossy):
        hint = "; --allow-lossy goes on with theirs" if not refused else ""
        raise InputError(f"{checkpoint.path}: {target} cannot hold {', '.join(refused + lossy)}{hint}")
    notes += [f"lossy: {target} has no {what}" for what in lossy]
    return checkpoint, notes


def bound_of(notes: Iterable[str]) -> float:
    """How far outputs may be, relatively, after what `express` noted: one rounding more is float32's arithmetic."""
    return parity.FLOAT32_BOUND if any(_ROUNDED in note for note in notes) else parity.FLOAT64_BOUND


def precise(dtype: str) -> str:
    """What a sum or a formula is kept in beside arrays of this type: no coarser than float32."""
    return "float64" if dtype == "float64" else "float32"


def _rounding(dtype: str) -> str:
    return "" if precise(dtype) == "float64" else _ROUNDED


def _is_lossy(field: str, value: object, values: tuple[Any, ...]) -> bool:
    if field not in _LOSSY:
        return False
    among = _LOSSY[field]
    return among is None or (value in among and values[0] in among)


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _widened(checkpoint: Checkpoint, field: str, value: object) -> tuple[Checkpoint, str] | None:
    """The same model with another value of a field, and how; none where there is no way."""
    model = checkpoint.config.model
    if field in _BIASES and value is True:
        return _filled(checkpoint, 0.0, **{field: True}), f"{field}: zeros"
    if field == "layer_scale" and model.layer_scale is None:
        return _filled(checkpoint, 1.0, layer_scale=1.0), "layer_scale: ones"
    if field == "position_embedding" and value == "learned":
        rounded = _rounding(_dtype(checkpoint)) if model.position_embedding != "none" else ""
        return _positions_learned(checkpoint), f"positions: the table of '{model.position_embedding}'{rounded}"
    if field == "class_token_position" and model.class_token and model.position_embedding == "learned":
        return _position_of_class_token(checkpoint, bool(value))
    if field == "pooling" and value == "cls_gap" and model.pooling in ("cls", "gap"):
        return _pooled_by_both(checkpoint)
    return None


def _with_model(checkpoint: Checkpoint, **fields: Any) -> Checkpoint:
    return checkpoint.with_config(checkpoint.config.replace(model=checkpoint.config.model.replace(**fields)))


def _filled(checkpoint: Checkpoint, value: float, **fields: Any) -> Checkpoint:
    """With other fields, and every parameter that they bring constant."""
    changed = _with_model(checkpoint, **fields)
    dtype, rows = _dtype(checkpoint), parameters(changed.config.model)
    arrays = checkpoint.arrays
    for name, row in rows.items():
        if name not in arrays:
            arrays = arrays.with_array(name, convert(np.full(row.shape, value), dtype))
    return Checkpoint(checkpoint.path, changed.config, arrays.select(rows))


def _positions_learned(checkpoint: Checkpoint) -> Checkpoint:
    model = checkpoint.config.model
    if model.position_embedding == "none":
        table_ND = np.zeros((model.grid[0] * model.grid[1], model.width))
    else:
        table_ND = sincos2d(model.grid, model.width, model.sincos_formula)
    changed = _with_model(checkpoint, position_embedding="learned", class_token_position=False)
    arrays = checkpoint.arrays.with_array("pos_embed", convert(table_ND[None], precise(_dtype(checkpoint))))
    return Checkpoint(checkpoint.path, changed.config, arrays.select(parameters(changed.config.model)))


def _position_of_class_token(checkpoint: Checkpoint, own: bool) -> tuple[Checkpoint, str]:
    """With a position of zero for the class token (and DeiT's second); or without, what it was added to the token."""
    pos_1ND = checkpoint.arrays["pos_embed"]
    changed = _with_model(checkpoint, class_token_position=own)
    if own:
        prefix = changed.config.model.prefix_positions
        zeros_1PD = np.zeros((1, prefix, pos_1ND.shape[2]), pos_1ND.dtype)
        arrays = checkpoint.arrays.with_array("pos_embed", np.concatenate([zeros_1PD, pos_1ND], axis=1))
        return Checkpoint(checkpoint.path, changed.config, arrays), "position of the class token: zeros"
    arrays = checkpoint.arrays
    tokens = [name for name in ("cls_token", "dist_token") if name in arrays]
    for i, name in enumerate(tokens):
        dtype = precise(arrays.entries[name].dtype)
        token_11D = arrays[name].astype("float64") + pos_1ND[:, i : i + 1].astype("float64")
        arrays = arrays.with_array(name, convert(token_11D, dtype))
    arrays = arrays.with_array("pos_embed", pos_1ND[:, len(tokens) :])
    return Checkpoint(
        checkpoint.path, changed.config, arrays
    ), f"position of the class token: added to it{_rounding(_dtype(checkpoint))}"


def _pooled_by_both(checkpoint: Checkpoint) -> tuple[Checkpoint, str] | None:
    """With a head that reads class token and mean side by side, and by zeros makes nothing of one of them."""
    model = checkpoint.config.model
    alike = model.class_token and model.final_norm == "before_pooling" and model.distillation == "none"
    if not (alike and model.num_classes) or model.representation:
        return None
    head_CD = checkpoint.arrays["head.weight"]
    halves = [head_CD, np.zeros_like(head_CD)]
    changed = _with_model(checkpoint, pooling="cls_gap")
    arrays = checkpoint.arrays.with_array("head.weight", np.hstack(halves if model.pooling == "cls" else halves[::-1]))
    unread = "mean" if model.pooling == "cls" else "class token"
    return Checkpoint(checkpoint.path, changed.config, arrays), f"pooling: zeros in the head for the {unread}"


def _dtype(checkpoint: Checkpoint) -> str:
    return checkpoint.arrays.entries["patch_embed.proj.weight"].dtype


def fixed(model: ViTConfig, **fields: Any) -> dict[str, tuple[Any, ...]]:
    """What a format allows that has one value for each of most fields: those of the plain ViT, and `fields` instead
    (a tuple of values, or none for any)."""
    plain: dict[str, tuple[Any, ...] | None] = {
        "class_token": (True,),
        "position_embedding": ("learned",),  # before what only learned ones have
        "class_token_position": (True,),
        "distillation": ("none",),
        "registers": (0,),
        "pre_norm": (False,),
        "qk_norm": (False,),
        "mlp": ("mlp",),
        "pooling": ("cls",),
        "final_norm": ("before_pooling",),
        "representation": (None,),
        "layer_scale": (None,),
        "qkv_bias": (True,),
        "proj_bias": (True,),
        "patch_bias": (True,),
        "head_bias": (True,),
        "patch_norms": (False,),
        "stem_layers": (None,),
        "head_dim": (None,) if model.width % model.heads else (None, model.width // model.heads),
    }
    return {field: values for field, values in {**plain, **fields}.items() if values is not None}
