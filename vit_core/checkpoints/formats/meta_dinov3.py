"""Reads and writes DINOv3's .pth files as Meta released them.

In addition to DINOv2's names they have the periods of the rotary positions (`rope_embed.periods`), which show the base
and the type to which they were rounded; a mask over the bias of queries, keys and values, which removes the keys' bias;
`storage_tokens` for registers; and three matrices in a gated MLP. Source: facebookresearch/dinov3,
dinov3/models/vision_transformer.py, dinov3/layers and dinov3/hub.
"""

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from vit_core.arrays import LazyArrays, convert
from vit_core.checkpoints.checkpoint import Assumption, Checkpoint, CheckpointConfig
from vit_core.checkpoints.formats.allowed_values import ANY, Values, plain_vit_with
from vit_core.checkpoints.formats.interface import (
    Fields,
    Reading,
    Source,
    Writing,
    axes_of,
    call,
    layers_of,
    mlp_ratio,
    not_carried,
)
from vit_core.checkpoints.formats.linear_head import with_linear_head
from vit_core.checkpoints.formats.rules import Rule, rule, write_by_rules
from vit_core.config import ViTConfig
from vit_core.errors import InputError, abbreviate
from vit_core.parameters import parameters
from vit_core.rope import Rope
from vit_core.rotations import frequencies

PERIODS = "rope_embed.periods"
"""The name by which these files are recognized."""
_LEFT_OUT = (
    r"^(rope_embed\.periods|mask_token)$|\.bias_mask$|^(local_cls_norm|projectors|dino_head|ibot_head)\.|"
    r"^(dino|ibot_patch|koleo|gram)_loss\."
)
"""The periods and masks, which become fields of the config, and arrays that only pretraining uses."""
_HUB = {
    (384, 12, "mlp"): "dinov3_vits16",
    (384, 12, "swiglu"): "dinov3_vits16plus",
    (768, 12, "mlp"): "dinov3_vitb16",
    (1024, 24, "mlp"): "dinov3_vitl16",
    (1024, 24, "swiglu"): "dinov3_vitl16plus",
    (1280, 32, "swiglu"): "dinov3_vith16plus",
    (4096, 40, "swiglu"): "dinov3_vit7b16",
}
"""Width, depth and MLP -> the entry of DINOv3's hub that builds such a model, in patches of 16."""


def read_source(source: Source, fields: Fields) -> Reading:
    """Finds the config and the rules, from the names, the shapes, and the values of periods and masks. Raises
    InputError for a model that ViTConfig cannot express."""
    where, entries = source.path, source.arrays.entries
    if untied := [name for name in entries if name.startswith("cls_norm.")]:
        raise InputError(
            f"{where}: {abbreviate(untied, most=1)} is a norm only of the class token and registers "
            "(untie_cls_and_patch_norms), which ViTConfig cannot express"
        )
    width = axes_of(source.arrays.shapes, "patch_embed.proj.weight", 4, where)[0]
    arrays, notes, used = with_linear_head(source.arrays, source, width, "head")
    found = _fields(arrays, where)
    if not found["key_bias"]:
        arrays = _without_key_biases(arrays, found["depth"])
    assumptions = [one for one in _assumptions(found) if one.field not in fields]
    found |= {one.field: one.value for one in assumptions}
    model = ViTConfig.parse({**found, **fields}, str(where))
    named = _rules(model, "", "head.")
    stated = frozenset(
        ("heads", "position_resampling")
    )  # the periods show the heads; there are no positions to resample
    config = CheckpointConfig(model=model)
    return Reading(config, named, arrays, _LEFT_OUT, tuple(notes), tuple(assumptions), stated, used)


def _fields(arrays: LazyArrays, where: object) -> dict[str, Any]:
    shapes = arrays.shapes
    width, channels, *patch = axes_of(shapes, "patch_embed.proj.weight", 4, where)
    bands = axes_of(shapes, PERIODS, 1, where)[0]
    if not bands or width % (4 * bands):
        raise InputError(
            f"{where}: {PERIODS} has {bands} values, for heads of {4 * bands}, but {width} is not a multiple of it"
        )
    depth, gated = layers_of(shapes, "blocks."), "blocks.0.mlp.w3.weight" in shapes
    last = "blocks.0.mlp.w3" if gated else "blocks.0.mlp.fc2"
    classes, columns = shapes.get("head.weight", (0, 2 * width))
    if columns != 2 * width:
        raise InputError(
            f"{where}: linear_head.weight {[classes, columns]} uses other features than ViTConfig can express; "
            f"expected {2 * width} columns (class token and mean)"
        )
    proj_bias = f"{last}.bias" in shapes
    if proj_bias != ("blocks.0.attn.proj.bias" in shapes):
        raise InputError(f"{where}: a bias on only one of the attention's projection and the MLP (proj_bias, ffn_bias)")
    return {
        "patch_size": tuple(patch),
        "channels": channels,
        "width": width,
        "depth": depth,
        "heads": width // (4 * bands),
        "mlp_dim": axes_of(shapes, f"{last}.weight", 2, where)[1],
        "mlp": "swiglu" if gated else "mlp",
        "num_classes": classes,
        "pooling": "cls_gap" if classes else "cls",
        "registers": shapes["storage_tokens"][1] if "storage_tokens" in shapes else 0,
        "position_embedding": "none",
        "rope": rope_of(arrays[PERIODS], arrays.entries[PERIODS].dtype, where),
        "norm": "layer_norm" if "norm.bias" in shapes else "rms_norm",
        "layer_scale": 1.0 if "blocks.0.ls1.gamma" in shapes else None,
        "qkv_bias": "blocks.0.attn.qkv.bias" in shapes,
        "key_bias": _has_key_bias(arrays, depth, where),
        "proj_bias": proj_bias,
    }


def rope_of(periods: np.ndarray, dtype: str, where: object) -> Rope:
    """The rotary positions for a file's periods: their base, and the type to which they were rounded.

    Raises InputError if they are not powers of one base. A difference of one unit in the last place of float32 is
    accepted, because torch's powers may have it.
    """
    values = periods.astype(np.float64)
    rounded = bool(np.all(values == values.astype(ml_dtypes.bfloat16).astype(np.float64)))
    kind: Any = "bfloat16" if rounded or dtype == "bfloat16" else "float64" if dtype == "float64" else "float32"
    bands = len(values)
    guess = float(values[-1]) ** (bands / (bands - 1)) if bands > 1 and values[-1] > 0 else 100.0
    bases = dict.fromkeys([100.0, *(float(f"{guess:.{digits}g}") for digits in range(1, 8))])
    for base in bases:
        rope = Rope(base=base, periods=kind) if base > 0 and np.isfinite(base) else None
        if rope and np.allclose(2 * np.pi / frequencies(rope, 4 * bands), values, rtol=_SLACK[kind], atol=0):
            return rope
    shown = ", ".join(f"{value:.4g}" for value in values[:4])
    raise InputError(
        f"{where}: {PERIODS} ({shown}, ...) are not powers base^(i / {bands}) of one base, which is all that ViTConfig "
        "can express"
    )


_SLACK = {"bfloat16": 1e-12, "float32": 2.0**-22, "float64": 1e-12}
"""Type -> maximum relative difference between periods and the rounded powers."""


def _has_key_bias(arrays: LazyArrays, depth: int, where: object) -> bool:
    """Whether keys have a bias: they have none if a mask removes it. A mask of NaN was not filled, and means the same.
    Raises InputError for any other mask."""
    masks = {i: arrays[name] for i in range(depth) if (name := f"blocks.{i}.attn.qkv.bias_mask") in arrays}
    kinds = {_kind_of_mask(mask.astype(np.float64)) for mask in masks.values()}
    kinds |= {"all"} if len(masks) < depth else set()
    if len(kinds) > 1 or "other" in kinds:
        raise InputError(
            f"{where}: attn.qkv.bias_mask is neither 1 for all biases of all blocks nor 0 only for those of the keys, "
            "which ViTConfig cannot express"
        )
    return kinds == {"all"}


def _kind_of_mask(mask: np.ndarray) -> str:
    if np.isnan(mask).all():
        return "keys out"
    query, key, value = np.split(mask, 3) if mask.size % 3 == 0 else (mask, mask, mask)
    if not (query == 1).all() or not (value == 1).all():
        return "other"
    without = (key == 0).all() or np.isnan(key).all()
    return "keys out" if without else "all" if (key == 1).all() else "other"


def _without_key_biases(arrays: LazyArrays, depth: int) -> LazyArrays:
    """The arrays with only the biases of queries and values in each `qkv.bias`."""
    changed = dict(arrays.entries)
    for name in (f"blocks.{i}.attn.qkv.bias" for i in range(depth)):
        if name in changed and len(changed[name].shape) == 1 and changed[name].shape[0] % 3 == 0:
            third = changed[name].shape[0] // 3
            changed[name] = changed[name].then(_first_and_last_third, (2 * third,), changed[name].dtype)
    return LazyArrays(changed)


def _first_and_last_third(bias: np.ndarray) -> np.ndarray:
    query, _, value = np.split(bias, 3)
    return np.concatenate([query, value])


def _assumptions(found: Mapping[str, Any]) -> list[Assumption]:
    rows, columns = found["patch_size"]
    rope: Rope = found["rope"].replace(rescale=2.0)
    image = (14 * rows, 14 * columns)
    return [
        Assumption("image_size", image, "the released models' 14x14 patches, because rotary positions fit every size"),
        Assumption("pooling", found["pooling"], "by the names of the arrays", "--set pooling=gap or another"),
        Assumption("activation", "gelu", "as in DINOv3's code"),
        Assumption("norm_epsilon", 1e-5, "as in DINOv3's hub", "--set norm_epsilon=1e-6 for norm_layer 'layernorm'"),
        Assumption("rope", rope, f"base and periods from {PERIODS}, the rest as in DINOv3's hub"),
    ]


def _rules(model: ViTConfig, prefix: str, head: str) -> list[Rule]:
    """A rule for every parameter. prefix: of the backbone's names. head: of the classifier's names."""
    rules = []
    for name in parameters(model):
        stem, _, leaf = name.rpartition(".")
        if stem.endswith(".mlp.fc1") and model.mlp == "swiglu":
            gates = tuple(f"{prefix}{stem.removesuffix('fc1')}{w}.{leaf}" for w in ("w1", "w2"))
            rules.append(rule(name, gates))
        elif stem.endswith(".mlp.fc2") and model.mlp == "swiglu":
            rules.append(rule(name, f"{prefix}{stem.removesuffix('fc2')}w3.{leaf}"))
        elif leaf == "q_bias":
            rules.append(rule((name, f"{stem}.v_bias"), f"{prefix}{stem}.qkv.bias"))
        elif name.startswith("head."):
            rules.append(rule(name, head + leaf))
        elif leaf != "v_bias":
            rules.append(rule(name, prefix + ("storage_tokens" if name == "reg_token" else name)))
    return rules


def allowed_values(model: ViTConfig) -> Mapping[str, Values]:
    """Field -> the values that DINOv3's class can express. Raises InputError for sizes that it does not support."""
    rows, columns = model.patch_size
    if rows != columns:
        raise InputError(f"--to meta: patch_size {rows}x{columns}; DINOv3's code has only square patches")
    if model.mlp == "swiglu" and model.mlp_dim % 8:
        raise InputError(f"--to meta: mlp_dim {model.mlp_dim}; DINOv3's gated MLPs need a multiple of 8")
    either, rope = (True, False), model.rope or Rope()
    kept = {name: getattr(rope, name) for name in ("normalize", "base", "shift", "jitter", "rescale")}
    ropes = [Rope(**kept, periods=periods) for periods in ("float32", "bfloat16")]
    return plain_vit_with(
        model,
        activation=("gelu",) if model.mlp == "mlp" else ANY,
        norm_epsilon=(1e-5, 1e-6) if model.norm == "layer_norm" else (1e-5,),
        norm=("layer_norm", "rms_norm"),
        position_embedding=("none",),
        class_token_position=(False,),
        rope=tuple(ropes),
        registers=ANY,
        mlp=("mlp", "swiglu"),
        layer_scale=ANY,
        pooling=("cls_gap",) if model.num_classes else ("cls",),
        qkv_bias=either,
        key_bias=either,
        proj_bias=either,
    )


def write_checkpoint(checkpoint: Checkpoint) -> Writing:
    """The state dict of a backbone, or of a linear classifier that contains it, with all buffers of its class."""
    model, dtype = checkpoint.config.model, checkpoint.dtype
    prefix = "backbone." if model.num_classes else ""
    arrays = write_by_rules(_rules(model, prefix, "linear_head."), model, checkpoint.arrays)
    if model.qkv_bias and not model.key_bias:
        arrays = _with_masks(arrays, model, prefix)
    rope = model.rope or Rope()
    periods = (2 * np.pi / frequencies(rope, model.head_width)).astype(np.float32)
    arrays = arrays.with_array(f"{prefix}{PERIODS}", convert(periods, rope.periods))
    arrays = arrays.with_array(f"{prefix}mask_token", convert(np.zeros((1, model.width)), dtype))
    notes = (f"opens in {opened_by(model)}", f"{prefix}mask_token: zeros, because it does not affect outputs")
    return Writing(arrays, notes=(*notes, *not_carried(checkpoint, model.position_resampling)))


def _with_masks(arrays: LazyArrays, model: ViTConfig, prefix: str) -> LazyArrays:
    """The arrays with zeros as biases of the keys, and masks that remove them."""
    entries, inner = dict(arrays.entries), model.heads * model.head_width
    for attn in (f"{prefix}blocks.{i}.attn.qkv." for i in range(model.depth)):
        entry = entries[f"{attn}bias"]
        entries[f"{attn}bias"] = entry.then(_zeros_between, (3 * inner,), entry.dtype)
    arrays = LazyArrays(entries)
    for attn in (f"{prefix}blocks.{i}.attn.qkv." for i in range(model.depth)):
        mask = np.repeat([1.0, 0.0, 1.0], inner)
        arrays = arrays.with_array(f"{attn}bias_mask", convert(mask, entries[f"{attn}bias"].dtype))
    return arrays


def _zeros_between(biases: np.ndarray) -> np.ndarray:
    query, value = np.split(biases, 2)
    return np.concatenate([query, np.zeros_like(query), value])


def opened_by(model: ViTConfig) -> str:
    """The text of the call that builds the module for the file."""
    entry = _HUB.get((model.width, model.depth, model.mlp))
    text = f"facebookresearch/dinov3: {call('DinoVisionTransformer', arguments(model))}"
    if entry and model.patch_size == (16, 16) and model.registers == 4 and model.norm_epsilon == 1e-5:
        text += f" (torch.hub: {entry}, pretrained=False)"
    if model.num_classes:
        head = f"torch.nn.Linear({model.pooled}, {model.num_classes})"
        text += f", within _LinearClassifierWrapper(backbone=..., linear_head={head})"
    return text


def arguments(model: ViTConfig) -> dict[str, Any]:
    """The arguments of DINOv3's DinoVisionTransformer."""
    rope, gated = model.rope or Rope(), model.mlp == "swiglu"
    hidden = (
        model.mlp_dim * 3 // 2 if gated else model.mlp_dim
    )  # its SwiGLU uses two thirds of it, rounded up to a multiple of 8
    norms = {("layer_norm", 1e-5): "layernormbf16", ("layer_norm", 1e-6): "layernorm", ("rms_norm", 1e-5): "rmsnorm"}
    return {
        "img_size": model.image_size[0],
        "patch_size": model.patch_size[0],
        "in_chans": model.channels,
        "pos_embed_rope_base": rope.base,
        "pos_embed_rope_normalize_coords": rope.normalize,
        "pos_embed_rope_shift_coords": rope.shift,
        "pos_embed_rope_jitter_coords": rope.jitter,
        "pos_embed_rope_rescale_coords": rope.rescale,
        "pos_embed_rope_dtype": "fp32",
        "embed_dim": model.width,
        "depth": model.depth,
        "num_heads": model.heads,
        "ffn_ratio": mlp_ratio(hidden, model.width),
        "qkv_bias": model.qkv_bias,
        "layerscale_init": model.layer_scale,
        "norm_layer": norms[model.norm, model.norm_epsilon],
        "ffn_layer": "swiglu" if gated else "mlp",
        "ffn_bias": model.proj_bias,
        "proj_bias": model.proj_bias,
        "n_storage_tokens": model.registers,
        "mask_k_bias": model.qkv_bias and not model.key_bias,
    }
