"""Reads config.json of timm's hub folders: fields that the shapes do not show (create_model.py writes such files).

timm.create_model builds `architecture`, with the arguments in `model_args`; `pretrained_cfg` describes the images. What
no argument in JSON can set (epsilon, gated MLP, distillation token, stem) comes from the architecture.
"""

import re
from collections.abc import Mapping
from typing import Any

from vit_core.checkpoints.checkpoint import CheckpointConfig
from vit_core.checkpoints.formats.channel_constants import equal_in_one, per_channel
from vit_core.checkpoints.formats.shapes import Size
from vit_core.checkpoints.formats.timm import rotary
from vit_core.config import ViTConfig
from vit_core.errors import InputError
from vit_core.preprocess import Preprocessing

ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu")
"""Activations whose names are the same here and in timm's act_layer."""
_TANH = r"^naflexvit_.*_siglip$|_giantopt_|_(base_patch32|so400m_patch16)_siglip_|_large_patch16_siglip_(gap_)?512"
_MEAN_OF_NORMED = r"_dinov3|^vit_pe_(lang|spatial)_"
"""Architectures with the mean of tokens after their norm: the same arrays as with the class token."""
_ARCHITECTURES: tuple[tuple[str, dict[str, Any]], ...] = (
    (r"^(?!eva).*_clip_|^beit3_|^aimv2_|^vit_pe_|_dinov3|_lingbot$", {"norm_epsilon": 1e-5}),
    (r"_quickgelu_", {"activation": "quick_gelu"}),
    (_TANH, {"activation": "gelu_tanh"}),
    (r"_rpn_|^eva02_enormous_", {"branch_norm": "after"}),
    (_MEAN_OF_NORMED, {"pooling": "gap"}),
    (r"^vit_pe_(lang|spatial)_|_radio_v\d|_intern300m_", {"final_norm": "none"}),
    (r"_giantopt_|_base_patch16_gap_|^eva02_enormous_|^vit_pe_\w+_gigantic_", {"heads": 16}),
    (r"_huge_plus_patch16_dinov3", {"heads": 20}),
    (r"^vit_7b_", {"heads": 32}),
    (r"^aimv2_large_", {"heads": 8}),
    (r"^aimv2_huge_", {"heads": 12}),
    (r"^aimv2_1b_", {"heads": 16}),
    (r"^aimv2_3b_", {"heads": 24}),
    (r"^test_vit2?$", {"heads": 2}),
    (r"^naflexvit_.*_siglip$", {"position_resampling": "bilinear_antialias"}),
    (r"^naflexvit_.*_radio_v3$", {"position_resampling": "zoom_linear"}),
    (r"^naflexvit_.*_radio_v4$", {"position_resampling": "bilinear"}),
    (r"^test_vit[34]$", {"heads": 3}),
)
"""Pattern of architecture names -> fields that they set and no array shows."""
_POOLING_BY_NAME = (
    ("map", r"_siglip(?!_gap)|_map(_|$)|^vit_pe_core_|^test_vit3$"),
    (
        "gap",
        r"_gap(_|$)|_clsgap_|_rpn_|_s?relpos_(?!\w+_cls_)|^aimv2_|^beit|^eva(02)?_(?!\w+_clip_)|^test_vit([24]|_relpos)$",
    ),
    ("gap", rf"{_MEAN_OF_NORMED}|^samvit_"),
)
"""Pooling -> pattern of the architectures that use it if no argument says otherwise; it is the class token's in all
others."""
_HEADS = {
    "tiny": 3, "xsmall": 4, "wee": 4, "pwee": 4, "little": 5, "small": 6, "medium": 8, "mediumd": 8, "betwixt": 10,
    "base": 12, "so150m2": 13, "so150m": 14, "large": 16, "huge": 16, "so400m": 16, "gigantic": 16,
}  # fmt: skip
"""Size in an architecture's name -> its heads, whatever the width. `_ARCHITECTURES` has others, and names with
`_OTHER_HEADS` tell nothing."""
_OTHER_HEADS = r"_plus_|_resnet"
_POOLING_UNSEEN = ("class_token", "fc_norm", "use_fc_norm", "final_norm", "use_post_transformer_norm")
"""Arguments about the class token and the last norm. Without them, these arrays show the pooling; with them, only the
architecture's name does."""
_POOLS: tuple[tuple[str, dict[str, Any]], ...] = (
    (r"^vit_pe_core_", {"attn_pool_num_heads": 8}),
    (r"^test_vit3$", {"pool_include_prefix": True}),
)
"""Pattern of architecture names -> arguments of pooling that they set."""
_NEW = r"rope|^eva02|_pe_|dinov[3-9]"
"""Families with rotary positions. The positions of an unknown architecture of these cannot be guessed."""
_NORMS = {"layernorm": "layer_norm", "rmsnorm": "rms_norm"}
"""Name in timm's norm_layer -> ours."""
_GATE = "silu"
"""The activation of SwiGLU; ViTConfig has no other for gated MLPs."""
POOLING = {"token": "cls", "avg": "gap", "map": "map"}
CROPS = {"center": "crop", "squash": "squash", "border": "border"}
DROPS = {
    "dropout": ("pos_drop_rate", "proj_drop_rate"),
    "attention_dropout": ("attn_drop_rate",),
    "stochastic_depth": ("drop_path_rate",),
}


def stated_fields(config: Mapping[str, Any], where: object) -> tuple[dict[str, Any], Size | None]:
    """The fields of ViTConfig that config.json states by the architecture's name and by arguments; and the image size
    (height, width), or None. Raises InputError for a value that ViTConfig cannot express."""
    name = str(config.get("architecture", ""))
    fields = fields_by_name(name)
    given, args = _object(config, "model_args", where), arguments(config, where)
    if rotary.is_eva(name) or "use_rot_pos_emb" in args:
        fields["rope"] = rotary.read_rope(name, given, where)
    elif name.startswith("beit"):
        fields["rope"] = None
    elif re.search(_NEW, name):
        raise InputError(
            f"{where}: architecture {name[:60]} is unknown and may have rotary positions, so it is not read"
        )
    pool = args.get("global_pool", config.get("global_pool"))
    if pool is not None and pool != "":  # for "" timm returns all tokens: pooling is then assumed
        fields["pooling"] = _one_of(POOLING, "global_pool", pool, where)
    elif pool is None and name and any(key in args for key in _POOLING_UNSEEN):
        fields["pooling"] = pooling_by_name(name)
    if "act_layer" in args and args["act_layer"] != _GATE:
        same = {name: name for name in ACTIVATIONS}
        fields["activation"] = _one_of(same, "act_layer", args["act_layer"], where)
    if "norm_layer" in args:
        fields["norm_epsilon"] = _one_of(dict.fromkeys(_NORMS, 1e-6), "norm_layer", args["norm_layer"], where)
    if args.get("attn_layer") not in (None, "", "attn"):
        raise InputError(
            f"{where}: config.json: attn_layer {str(args['attn_layer'])[:60]} cannot be expressed by ViTConfig"
        )
    if False in (args.get("final_norm"), args.get("use_post_transformer_norm")):
        fields["final_norm"] = "none"  # if the arrays have none
    if "use_post_norm" in args:
        fields["branch_norm"] = "after" if args["use_post_norm"] else "before"
    if "num_heads" in args:
        fields["heads"] = args["num_heads"]
    elif "embed_dim" in args and (heads := heads_by_name(name)) is not None:
        fields.setdefault("heads", heads)
    if "init_values" in args:
        fields["layer_scale"] = args["init_values"]
    fields |= {ours: args[keys[0]] for ours, keys in DROPS.items() if keys[0] in args}
    size = args.get("img_size") or (_pretrained(config, where).get("input_size") or [])[1:]
    return fields, _size(size, where)


def fields_by_name(architecture: str) -> dict[str, Any]:
    """The fields that the name of one of timm's architectures sets and no array shows."""
    fields: dict[str, Any] = {}
    for pattern, own in _ARCHITECTURES:
        fields |= own if re.search(pattern, architecture) else {}
    return fields


def arguments(config: Mapping[str, Any], where: object) -> dict[str, Any]:
    """The arguments of timm.create_model that config.json states with a value."""
    return {key: value for key, value in _object(config, "model_args", where).items() if value is not None}


def heads_by_name(architecture: str) -> int | None:
    """The heads of one of timm's architectures by the size in its name; None if they are not known by it."""
    if re.search(_OTHER_HEADS, architecture):
        return None
    return next((_HEADS[word] for word in architecture.split("_") if word in _HEADS), None)


def pooling_by_name(architecture: str) -> str:
    """The pooling of one of timm's architectures if no argument says otherwise."""
    return next((pooling for pooling, pattern in _POOLING_BY_NAME if re.search(pattern, architecture)), "cls")


def pooling_fields(config: Mapping[str, Any], pooling: str, where: object, *, eva: bool) -> dict[str, Any]:
    """The fields of pooling that config.json states: the heads of attention pooling, and whether pooling includes the
    tokens before the patches. eva: whether the model is of timm's Eva class and has such tokens, which its attention
    pooling always includes."""
    said: dict[str, Any] = {}
    for pattern, own in _POOLS:
        said |= own if re.search(pattern, str(config.get("architecture", ""))) else {}
    said |= _object(config, "model_args", where)
    if pooling == "map":
        return {
            "pool_heads": said.get("attn_pool_num_heads"),
            "pool_prefix": eva or bool(said.get("pool_include_prefix")),
        }
    return {"pool_prefix": pooling == "gap" and bool(said.get("pool_include_prefix"))}


def check_layers(config: Mapping[str, Any], model: ViTConfig, where: object) -> None:
    """Raises InputError if arguments state other layers than the arrays have."""
    name, args = str(config.get("architecture", "")), arguments(config, where)
    gated = model.mlp == "swiglu"
    if args.get("act_layer") is not None and (args["act_layer"] == _GATE) != gated:
        raise InputError(
            f"{where}: config.json: act_layer {str(args['act_layer'])[:60]} in an MLP {'with' if gated else 'without'} "
            "a gate cannot be expressed by ViTConfig"
        )
    if "norm_layer" in args and "embed_norm_layer" not in args and model.embed_norm and name.startswith("aimv2_"):
        raise InputError(
            f"{where}: config.json: norm_layer {str(args['norm_layer'])[:60]!r}, whose epsilon is 1e-6, but the norm "
            "of the patches is that of AIMv2 with 1e-5; ViTConfig cannot express two kinds"
        )
    for key in ("norm_layer", "embed_norm_layer"):
        said = args.get(key)
        if said is not None and (_NORMS.get(str(said)), 1e-6) != (model.norm, model.norm_epsilon):
            raise InputError(
                f"{where}: config.json: {key} {str(said)[:60]!r}, whose epsilon is 1e-6, but the other norms are "
                f"{model.norm} with {model.norm_epsilon}; ViTConfig cannot express two kinds"
            )


def _object(config: Mapping[str, Any], key: str, where: object) -> Mapping[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise InputError(f"{where}: config.json: {key} is {type(value).__name__}, expected an object")
    return value


def _pretrained(config: Mapping[str, Any], where: object) -> Mapping[str, Any]:
    """The object pretrained_cfg; early files have its keys at the top level."""
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
    """The config with the preprocessing and the labels that config.json states; and notes on what is left out."""
    preprocessing, notes = preprocessing_of(model, _pretrained(config, where))
    labels, label_notes = _labels(model, config, _pretrained(config, where))
    checkpoint_config = CheckpointConfig(model=model, preprocessing=preprocessing, labels=labels)
    return checkpoint_config, (*notes, *label_notes)


def preprocessing_of(model: ViTConfig, pretrained: Mapping[str, Any]) -> tuple[Preprocessing | None, list[str]]:
    """The preprocessing in a pretrained_cfg, and notes. If it cannot be expressed, it is None, with a note on the
    reason."""
    if "mean" not in pretrained or "std" not in pretrained:
        return None, ["preprocessing: the file does not state a mean and a std"] if pretrained else []
    crop = str(pretrained.get("crop_mode") or "center")[:60]
    try:
        if model.channels not in (1, 3):
            raise InputError(f"the model has {model.channels} channels, expected 1 or 3")
        if crop not in CROPS:
            raise InputError(f"crop_mode {crop} cannot be expressed by Preprocessing")
        fields = {
            "image_size": model.image_size,
            "channels": model.channels,
            "mean": per_channel(pretrained["mean"], model.channels),
            "std": per_channel(pretrained["std"], model.channels),
            "interpolation": pretrained.get("interpolation") or "bicubic",
            "resize": CROPS[crop],
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
    if not labels or list(labels) == [f"LABEL_{i}" for i in range(len(labels))]:  # transformers' default names
        return None, []
    if isinstance(labels, list) and len(labels) == model.num_classes and all(isinstance(x, str) for x in labels):
        return tuple(labels), []
    return None, [f"left out: label_names, because they are not {model.num_classes} names"]
