"""Reads open_clip_config.json: fields of an image tower that shapes do not show, and the preprocessing of images.

The file has `model_cfg` (with `vision_cfg`) and `preprocess_cfg`. Its values are untrusted: each one that is used is
compared with the shapes or validated by ViTConfig. Source: mlfoundations/open_clip, src/open_clip/model.py
(CLIPVisionCfg) and transform.py (PreprocessCfg).
"""

from collections.abc import Mapping
from typing import Any

from vit_core.config import ViTConfig
from vit_core.errors import InputError
from vit_core.preprocess import Preprocessing

FILE = "open_clip_config.json"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""OpenAI's mean and std of images, which are open_clip's defaults."""
_POOLING = {"tok": "cls", "avg": "gap"}
_PLAIN = {
    "attentional_pool": (False, None),
    "pos_embed_type": ("learnable", "sin_cos_2d"),
    "act_kwargs": (None, {}),
    "scaled_cosine_attn": (False,),
    "scale_heads": (False,),
    "scale_attn_inner": (False,),
    "scale_attn": (False,),
    "scale_fc": (False,),
    "block_type": (None, "default"),
    "qk_norm": (False,),
}
"""Key of vision_cfg -> the values that ViTConfig can express."""
_RESIZE = {"shortest": "crop", "squash": "squash"}


def vision_fields(config: Mapping[str, Any], width: int, where: object) -> dict[str, Any]:
    """The fields of ViTConfig that the file states for a tower of open_clip's own VisionTransformer.

    Raises InputError for a tower that computes what ViTConfig cannot express.
    """
    model, vision = model_cfg(config, where), vision_cfg(config, where)
    if not vision:
        return {}
    for key, values in _PLAIN.items():
        if key in vision and vision[key] not in values:
            raise InputError(f"{where}: {FILE}: {key} {_shown(vision[key])} cannot be expressed by ViTConfig")
    head_width = vision.get("head_width", 64)
    if type(head_width) is not int or head_width < 1 or width % head_width:
        raise InputError(f"{where}: {FILE}: head_width {_shown(head_width)}, expected a divisor of the width {width}")
    pool = str(vision.get("pool_type", "tok"))
    if pool not in _POOLING:
        raise InputError(f"{where}: {FILE}: pool_type {_shown(pool)}, expected one of {', '.join(_POOLING)}")
    norm = vision.get("norm_kwargs") or {}
    if not isinstance(norm, Mapping) or set(norm) - {"eps"}:
        raise InputError(f"{where}: {FILE}: norm_kwargs {_shown(norm)}, expected an epsilon (eps) or nothing")
    after = _POOLING[pool] == "gap" and bool(vision.get("final_ln_after_pool"))
    return {
        "heads": width // head_width,
        "activation": "quick_gelu" if model.get("quick_gelu") else "gelu",
        "norm_epsilon": norm.get("eps", 1e-5),
        "pooling": _POOLING[pool],
        "final_norm": "after_pooling" if after else "before_pooling",
        **({"layer_scale": vision["ls_init_value"]} if vision.get("ls_init_value") is not None else {}),
    }


def image_size(config: Mapping[str, Any], where: object) -> tuple[int, int] | None:
    """The image size (height, width) that the file states, or open_clip's default; None if it describes no image tower.
    Raises InputError for an invalid value."""
    size = vision_cfg(config, where).get("image_size")
    if size is None:
        return (224, 224) if vision_cfg(config, where) else None
    pair = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, list) else ()
    if len(pair) != 2 or not all(type(side) is int and side > 0 for side in pair):
        raise InputError(f"{where}: {FILE}: image_size {_shown(size)}, expected pixels, or [height, width]")
    return pair[0], pair[1]


def timm_config(config: Mapping[str, Any], where: object) -> dict[str, Any]:
    """For a timm tower (`visual.trunk`), the equivalent config.json of timm; empty for another tower."""
    vision = vision_cfg(config, where)
    name, pool = vision.get("timm_model_name"), vision.get("timm_pool", "avg")
    if not isinstance(name, str) or not name:
        return {}
    preprocess = config.get("preprocess_cfg")
    preprocess = preprocess if isinstance(preprocess, Mapping) else {}
    mode = str(preprocess.get("resize_mode") or "shortest")
    size = image_size(config, where) or (224, 224)
    return {
        "architecture": name.partition(".")[0],
        "model_args": {"img_size": list(size), **({"global_pool": pool} if pool else {})},
        "pretrained_cfg": {
            "input_size": [3, *size],
            "mean": preprocess.get("mean") or MEAN,
            "std": preprocess.get("std") or STD,
            "interpolation": _interpolation(preprocess),
            "crop_pct": 1.0,
            "crop_mode": {"shortest": "center"}.get(mode, mode),
        },
    }


def read_preprocessing(
    config: Mapping[str, Any], model: ViTConfig, where: object
) -> tuple[Preprocessing | None, list[str]]:
    """The preprocessing for evaluation that preprocess_cfg states; and notes. It is None, with a note on the reason, if
    Preprocessing cannot express it."""
    stated = config.get("preprocess_cfg")
    if not isinstance(stated, Mapping):
        return None, [f"preprocessing: not stated in {FILE}"] if config else []
    mode = str(stated.get("resize_mode") or "shortest")[:60]
    if mode not in _RESIZE:
        return None, [f"left out: preprocessing (resize_mode {mode} cannot be expressed by Preprocessing)"]
    if mode == "shortest" and model.image_size[0] != model.image_size[1]:
        return None, ["left out: preprocessing (resize_mode shortest with an image size that is not square)"]
    try:
        fields = {
            "image_size": model.image_size,
            "channels": model.channels,
            "mean": stated.get("mean") or MEAN,
            "std": stated.get("std") or STD,
            "interpolation": _interpolation(stated),
            "resize": _RESIZE[mode],
        }
        return Preprocessing.parse(fields, f"{where}: {FILE}: preprocess_cfg"), []
    except InputError as reason:
        return None, [f"left out: preprocessing ({reason})"]


def _interpolation(preprocess: Mapping[str, Any]) -> object:
    """The name of the filter. "random" means bicubic outside training."""
    stated = preprocess.get("interpolation") or "bicubic"
    return "bicubic" if stated == "random" else stated


def model_cfg(config: Mapping[str, Any], where: object) -> Mapping[str, Any]:
    """model_cfg; or the whole file if it has none, as in open_clip's own model_configs."""
    model = config.get("model_cfg", config)
    if not isinstance(model, Mapping):
        raise InputError(f"{where}: {FILE}: model_cfg is {_shown(model)}, expected an object")
    return model


def vision_cfg(config: Mapping[str, Any], where: object) -> Mapping[str, Any]:
    """The fields for the image tower; empty if there are none."""
    vision = model_cfg(config, where).get("vision_cfg") or {}
    if not isinstance(vision, Mapping):
        raise InputError(f"{where}: {FILE}: vision_cfg is {_shown(vision)}, expected an object")
    return vision


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."
