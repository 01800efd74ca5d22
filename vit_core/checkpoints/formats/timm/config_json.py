"""config.json of timm's hub folders, both ways: what it says of a model beyond the shapes, and one that builds a model.

timm.create_model takes `architecture` as the base, puts `model_args` over it, and keeps `pretrained_cfg` for the data.
What no argument in JSON can set (an epsilon, a gated MLP, a distillation token, a stem) comes from the architecture.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from vit_core.checkpoints.checkpoint import CheckpointConfig
from vit_core.checkpoints.formats.channel_constants import equal_in_one, per_channel
from vit_core.checkpoints.formats.interface import mlp_ratio
from vit_core.checkpoints.formats.shapes import Size
from vit_core.config import ViTConfig
from vit_core.errors import InputError
from vit_core.preprocess import Preprocessing

ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu")
"""Names of ours, and of timm's act_layer."""
STEMS: dict[tuple[int, ...], str] = {
    (): "vit_tiny_r_s16_p8_224",
    (2, 2, 2, 2): "vit_small_r26_s32_224",
    (3, 4, 9): "vit_base_r50_s16_224",
    (3, 4, 6, 3): "vit_large_r50_s32_224",
}
"""The architectures with each stem that timm has."""
_TANH = r"_giantopt_|_(base_patch32|so400m_patch16)_siglip_|_large_patch16_siglip_(gap_)?512"
_ARCHITECTURES: tuple[tuple[str, dict[str, Any]], ...] = (
    (r"_clip_", {"norm_epsilon": 1e-5}),
    (r"_quickgelu_", {"activation": "quick_gelu"}),
    (_TANH, {"activation": "gelu_tanh"}),
    (r"_giantopt_|_base_patch16_gap_", {"heads": 16}),
    (r"^test_vit2?$", {"heads": 2}),
)
"""What architectures set that no array shows."""
_OTHERS = r"^eva|_rpn_|_rope_|_pe_|^test_vit3$"
"""Architectures that compute something else from the same arrays (rotary positions, norms after the branches)."""
_GATE = "silu"
"""The activation of SwiGLU, of which the schema says no more."""
_POOLING = {"token": "cls", "avg": "gap", "map": "map"}
_CROPS = {"center": "crop", "squash": "squash", "border": "border"}
_DROPS = {
    "dropout": ("pos_drop_rate", "proj_drop_rate"),
    "attention_dropout": ("attn_drop_rate",),
    "stochastic_depth": ("drop_path_rate",),
}


def stated_fields(config: Mapping[str, Any], where: object) -> tuple[dict[str, Any], Size | None]:
    """The fields of ViTConfig that config.json states, by the architecture's name and by its arguments; and the image
    size that it states."""
    name = str(config.get("architecture", ""))
    if re.search(_OTHERS, name):
        raise InputError(
            f"{where}: architecture {name[:60]} computes other outputs from these arrays than ViTConfig can express"
        )
    fields: dict[str, Any] = {}
    for pattern, own in _ARCHITECTURES:
        fields |= own if re.search(pattern, name) else {}
    args = {key: value for key, value in _object(config, "model_args", where).items() if value is not None}
    pool = args.get("global_pool", config.get("global_pool"))
    if pool is not None and pool != "":  # "" returns every token: pooling is then assumed
        fields["pooling"] = _one_of(_POOLING, "global_pool", pool, where)
    if "act_layer" in args and args["act_layer"] != _GATE:
        same = {name: name for name in ACTIVATIONS}
        fields["activation"] = _one_of(same, "act_layer", args["act_layer"], where)
    if "norm_layer" in args:
        fields["norm_epsilon"] = _one_of({"layernorm": 1e-6}, "norm_layer", args["norm_layer"], where)
    for key, plain in {"pool_include_prefix": False, "attn_layer": "attn"}.items():
        if args.get(key) not in (None, "", False, plain):
            raise InputError(f"{where}: config.json: {key} {str(args[key])[:60]} cannot be expressed by ViTConfig")
    if "num_heads" in args:
        fields["heads"] = args["num_heads"]
    if args.get("init_values"):
        fields["layer_scale"] = args["init_values"]
    fields |= {ours: args[keys[0]] for ours, keys in _DROPS.items() if keys[0] in args}
    size = args.get("img_size") or (_pretrained(config, where).get("input_size") or [])[1:]
    return fields, _size(size, where)


def check_gate(config: Mapping[str, Any], mlp: str, where: object) -> None:
    """InputError where act_layer is not what the schema has for such an MLP."""
    said = _object(config, "model_args", where).get("act_layer")
    if said is not None and (said == _GATE) != (mlp == "swiglu"):
        raise InputError(
            f"{where}: config.json: act_layer {str(said)[:60]} in an MLP {'with' if mlp == 'swiglu' else 'without'} "
            "a gate cannot be expressed by ViTConfig"
        )


def _object(config: Mapping[str, Any], key: str, where: object) -> Mapping[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise InputError(f"{where}: config.json: {key} is {type(value).__name__}, expected an object")
    return value


def _pretrained(config: Mapping[str, Any], where: object) -> Mapping[str, Any]:
    """How it was trained; in early files it was no object of its own."""
    return _object(config, "pretrained_cfg", where) or config


def _one_of(known: Mapping[str, Any], key: str, value: object, where: object) -> Any:
    if str(value) not in known:
        raise InputError(f"{where}: config.json: {key} {str(value)[:60]!r}, expected one of {', '.join(known)}")
    return known[str(value)]


def _size(size: Any, where: object) -> Size | None:
    if not size:
        return None
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(type(side) is int and side > 0 for side in pair):
        raise InputError(f"{where}: config.json: image size {str(size)[:60]}, expected [height, width]")
    return pair


def checkpoint_config(
    model: ViTConfig, config: Mapping[str, Any], where: object
) -> tuple[CheckpointConfig, tuple[str, ...]]:
    """The config with the preprocessing and the labels that config.json states; and notes of what is left out."""
    preprocessing, notes = _preprocessing(model, _pretrained(config, where))
    labels, label_notes = _labels(model, config, _pretrained(config, where))
    checkpoint_config = CheckpointConfig(model=model, preprocessing=preprocessing, labels=labels)
    return checkpoint_config, (*notes, *label_notes)


def _preprocessing(model: ViTConfig, pretrained: Mapping[str, Any]) -> tuple[Preprocessing | None, list[str]]:
    """What cannot be expressed costs only itself: the model opens, and a note says why there is no preprocessing."""
    if "mean" not in pretrained or "std" not in pretrained:
        return None, ["preprocessing: the file states no mean and std"] if pretrained else []
    crop = str(pretrained.get("crop_mode") or "center")[:60]
    try:
        if model.channels not in (1, 3):
            raise InputError(f"images of {model.channels} channels")
        if crop not in _CROPS:
            raise InputError(f"crop_mode {crop} cannot be expressed by Preprocessing")
        fields = {
            "image_size": model.image_size,
            "channels": model.channels,
            "mean": per_channel(pretrained["mean"], model.channels),
            "std": per_channel(pretrained["std"], model.channels),
            "interpolation": pretrained.get("interpolation") or "bicubic",
            "resize": _CROPS[crop],
            "crop_fraction": pretrained.get("crop_pct") or 0.875,
        }
        constants = {key: pretrained[key] for key in ("mean", "std")}
        return Preprocessing(**fields), equal_in_one("pretrained_cfg", constants, model.channels)
    except InputError as reason:
        return None, [f"left out: preprocessing ({reason})"]


def _labels(
    model: ViTConfig, config: Mapping[str, Any], pretrained: Mapping[str, Any]
) -> tuple[tuple[str, ...] | None, list[str]]:
    labels = config.get("label_names") or pretrained.get("label_names") or config.get("labels")
    if isinstance(labels, dict):
        labels = [labels.get(str(i)) for i in range(len(labels))]
    if not labels or list(labels) == [f"LABEL_{i}" for i in range(len(labels))]:  # transformers' names for no names
        return None, []
    if isinstance(labels, list) and len(labels) == model.num_classes and all(isinstance(x, str) for x in labels):
        return tuple(labels), []
    return None, [f"left out: label_names, which are not {model.num_classes} names"]


def text_of(config: CheckpointConfig) -> str:
    """A config.json from which timm.create_model("local-dir:…") builds the model."""
    model, seen = config.model, config.preprocessing
    pretrained: dict[str, Any] = {
        "num_classes": model.num_classes,
        "input_size": [model.channels, *model.image_size],
        "fixed_input_size": True,
        "first_conv": "patch_embed.proj",
        "classifier": ["head", "head_dist"] if model.distillation == "head" else "head",
    }
    if seen:
        pretrained |= {"mean": seen.mean, "std": seen.std, "interpolation": seen.interpolation}
        pretrained |= {
            "crop_pct": seen.crop_fraction,
            "crop_mode": next(theirs for theirs, ours in _CROPS.items() if ours == seen.resize),
        }
    args = _model_args(model)
    fields = {
        "architecture": _architecture(model),
        "num_classes": model.num_classes,
        "num_features": model.width,
        "global_pool": args["global_pool"],
        **({"label_names": config.labels} if config.labels else {}),
        "model_args": args,
        "pretrained_cfg": pretrained,
    }
    return json.dumps(fields, indent=2) + "\n"


def _architecture(model: ViTConfig) -> str:
    """One that has what no argument sets."""
    if model.stem_layers is not None:
        return STEMS[model.stem_layers]
    if model.distillation == "head":
        return "deit_base_distilled_patch16_224"
    if model.mlp == "swiglu":
        return "vit_giant_patch14_dinov2"
    return "vit_base_patch16_clip_224" if model.norm_epsilon == 1e-5 else "vit_base_patch16_224"


def _model_args(model: ViTConfig) -> dict[str, Any]:
    """Arguments of timm's VisionTransformer."""
    args: dict[str, Any] = {
        "img_size": model.image_size,
        "patch_size": model.patch_kernel,
        "in_chans": model.channels,
        "global_pool": next(theirs for theirs, ours in _POOLING.items() if ours == model.pooling),
        "embed_dim": model.width,
        "depth": model.depth,
        "num_heads": model.heads,
        "mlp_ratio": mlp_ratio(model.mlp_dim * (2 if model.mlp == "swiglu" else 1), model.width),
        "qkv_bias": model.qkv_bias,
        "qk_norm": model.qk_norm,
        "proj_bias": model.proj_bias,
        "init_values": None if model.layer_scale is None else model.layer_scale or 1.0,
        "class_token": model.class_token,
        "pos_embed": "none" if model.position_embedding == "none" else "learn",
        "no_embed_class": not model.prefix_positions,
        "reg_tokens": model.registers,
        "pre_norm": model.pre_norm,
        "fc_norm": model.final_norm == "after_pooling",
    }
    if model.mlp == "mlp":
        args["act_layer"] = model.activation
    for ours, keys in _DROPS.items():
        if rate := getattr(model, ours):
            args |= dict.fromkeys(keys, rate)
    return args
