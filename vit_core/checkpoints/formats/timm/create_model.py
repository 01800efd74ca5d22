"""Writes the config.json from which timm.create_model("local-dir:…") builds a model, and lists the values it can
express.

The architecture is chosen for what no argument in JSON can set: epsilon, gated MLP, kind of block, stem. Arguments set
the rest. Source: huggingface/pytorch-image-models, timm/models/vision_transformer.py, vision_transformer_hybrid.py,
eva.py.
"""

import json
from collections.abc import Mapping
from typing import Any

from vit_core.checkpoints.checkpoint import CheckpointConfig
from vit_core.checkpoints.formats.allowed_values import ANY, Values, plain_vit_with
from vit_core.checkpoints.formats.interface import mlp_ratio
from vit_core.checkpoints.formats.timm.config_json import ACTIVATIONS, CROPS, DROPS, POOLING
from vit_core.checkpoints.formats.timm.eva import is_eva, names_for
from vit_core.checkpoints.formats.timm.relative import is_beit
from vit_core.checkpoints.formats.timm.rotary import nearest, rope_args
from vit_core.config import ViTConfig

STEMS: dict[tuple[int, ...], str] = {
    (): "vit_tiny_r_s16_p8_224",
    (2, 2, 2, 2): "vit_small_r26_s32_224",
    (3, 4, 9): "vit_base_r50_s16_224",
    (3, 4, 6, 3): "vit_large_r50_s32_224",
}
"""stem_layers -> an architecture of timm with this stem."""


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
            "crop_mode": next(theirs for theirs, ours in CROPS.items() if ours == seen.resize),
        }
    args = model_args(model)
    fields = {
        "architecture": architecture(model),
        "num_classes": model.num_classes,
        "num_features": model.width,
        "global_pool": args["global_pool"],
        **({"label_names": config.labels} if config.labels else {}),
        "model_args": args,
        "pretrained_cfg": pretrained,
    }
    return json.dumps(fields, indent=2) + "\n"


def architecture(model: ViTConfig) -> str:
    """The name of an architecture that has the properties of the model which no argument can set."""
    if is_eva(model):
        rms = model.norm == "rms_norm"
        of_epsilon = {1e-5: "vit_base_patch16_dinov3", 1e-6: "eva02_base_patch14_224"}
        return "vit_base_patch16_sapiens2" if rms else of_epsilon[model.norm_epsilon]
    if model.relative_bias != "none":
        after = "_rpn" if model.branch_norm == "after" else ""
        return "beit_base_patch16_224" if is_beit(model) else f"vit_relpos_base_patch16{after}_224"
    if model.parallel:
        return "vit_base_patch16_xp_224" if model.norm == "rms_norm" else "vit_pwee_patch16_reg1_gap_256"
    if model.stem_layers is not None:
        return STEMS[model.stem_layers]
    if model.distillation == "head":
        return "deit_base_distilled_patch16_224"
    if model.branch_norm == "after":
        return "vit_base_patch16_rpn_224"
    if model.mlp == "swiglu":
        return "aimv2_large_patch14_224" if names_for(model).split_gate else "vit_giant_patch14_dinov2"
    return "vit_base_patch16_clip_224" if model.norm_epsilon == 1e-5 else "vit_base_patch16_224"


def model_args(model: ViTConfig) -> dict[str, Any]:
    """The arguments of timm's class for the model, which override those of the architecture."""
    args: dict[str, Any] = {
        "img_size": model.image_size,
        "patch_size": model.patch_kernel,
        "in_chans": model.channels,
        "global_pool": next(theirs for theirs, ours in POOLING.items() if ours == model.pooling),
        "embed_dim": model.width,
        "depth": model.depth,
        "num_heads": model.heads,
        "qkv_bias": model.qkv_bias,
    }
    if model.relative_bias != "none":
        args |= _beit_args(model) if is_beit(model) else _relpos_args(model)
    else:
        args |= {
            "qk_norm": model.qk_norm,
            "class_token": model.class_token,
            "no_embed_class": not model.prefix_positions,
        }
        args |= _eva_args(model) if is_eva(model) else _vision_transformer_args(model)
    for ours, keys in DROPS.items():
        if rate := getattr(model, ours):
            args |= dict.fromkeys(keys, rate)
    return args


def _vision_transformer_args(model: ViTConfig) -> dict[str, Any]:
    apart = names_for(model).split_gate  # otherwise timm's gated MLP counts both halves as its hidden width
    args: dict[str, Any] = {
        "mlp_ratio": mlp_ratio(model.mlp_dim * (2 if model.mlp == "swiglu" and not apart else 1), model.width),
        "proj_bias": model.proj_bias,
        "init_values": None if model.layer_scale is None else model.layer_scale or 1.0,
        "pos_embed": "none" if model.position_embedding == "none" else "learn",
        "reg_tokens": model.registers,
        "pre_norm": model.pre_norm,
        "final_norm": model.final_norm != "none",
        "fc_norm": model.final_norm == "after_pooling",
        "scale_attn_norm": model.attention_norm,
        "scale_mlp_norm": model.mlp_norm,
        "pool_include_prefix": model.pool_prefix,
    }
    if model.mlp == "mlp":
        args["act_layer"] = model.activation
    norm = {"layer_norm": "layernorm", "rms_norm": "rmsnorm"}[model.norm]
    if model.norm == "rms_norm" and not apart:
        args["norm_layer"] = norm
    if apart != model.embed_norm:  # set by default only in the architecture with a separate gate
        args["embed_norm_layer"] = norm if model.embed_norm else None
    return args


def _beit_args(model: ViTConfig) -> dict[str, Any]:
    return {
        "mlp_ratio": mlp_ratio(model.mlp_dim, model.width),
        "init_values": model.layer_scale,
        "use_abs_pos_emb": model.position_embedding == "learned",
        "use_rel_pos_bias": not model.relative_bias_shared,
        "use_shared_rel_pos_bias": model.relative_bias_shared,
        "swiglu_mlp": model.mlp == "swiglu",
        "scale_mlp": model.mlp_norm,
        "use_fc_norm": model.final_norm == "after_pooling",
    }


def _relpos_args(model: ViTConfig) -> dict[str, Any]:
    return {
        "mlp_ratio": mlp_ratio(model.mlp_dim, model.width),
        "init_values": model.layer_scale,
        "class_token": model.class_token,
        "qk_norm": model.qk_norm,
        "fc_norm": model.final_norm == "after_pooling",
        "rel_pos_type": "mlp",
        "rel_pos_dim": model.relative_bias_dim,
        "shared_rel_pos": model.relative_bias_shared,
    }


def _eva_args(model: ViTConfig) -> dict[str, Any]:
    names = names_for(model)
    return {
        "mlp_ratio": mlp_ratio(model.mlp_dim, model.width),
        "init_values": model.layer_scale,
        "attn_only_layer_scale": False,
        "num_kv_heads": None,
        "attn_type": "rope" if model.key_bias else "eva",
        "qkv_fused": not names.split_qkv,
        "swiglu_mlp": model.mlp == "swiglu",
        "swiglu_align_to": int(names.split_gate),
        "scale_mlp": model.mlp_norm,
        "scale_attn_inner": model.attention_norm,
        "use_abs_pos_emb": model.position_embedding == "learned",
        "num_reg_tokens": model.registers,
        "use_pre_transformer_norm": model.pre_norm,
        "use_post_norm": model.branch_norm == "after",
        "use_post_transformer_norm": model.final_norm == "before_pooling",
        "use_fc_norm": model.final_norm == "after_pooling",
        "dynamic_img_size": model.rope is not None and model.rope.coordinates == "centered",  # as in timm's DINOv3
        **rope_args(model.rope),
        **(
            {
                "attn_pool_num_heads": model.pooling_heads,
                "attn_pool_mlp_ratio": mlp_ratio(model.pooling_mlp_dim, model.width),
            }
            if model.pooling == "map"
            else {}
        ),
    }


def allowed_values(model: ViTConfig) -> Mapping[str, Values]:
    """Field -> the values that one of timm's classes can express."""
    if model.relative_bias != "none":
        return _in_beit(model) if is_beit(model) else _in_relpos(model)
    return _in_eva(model) if is_eva(model) else _in_vision_transformer(model)


def _in_vision_transformer(model: ViTConfig) -> Mapping[str, Values]:
    """The allowed values for timm's VisionTransformer. Epsilon 1e-5, a gated MLP, norms after the branches, parallel
    blocks, a distillation token and a stem exist only as architectures, so that a model can have only one of them."""
    distilled, gated, stem = model.distillation != "none", model.mlp == "swiglu", model.stem_layers is not None
    after = model.branch_norm == "after"
    special = distilled or gated or stem or after
    rms = model.norm == "rms_norm"
    both = (gated and not after) if rms else not (special or model.parallel or model.embed_norm)
    own: dict[str, Values] = {
        "distillation": ("none", "head"),
        "class_token": ANY,
        "class_token_position": (True,) if distilled else (False,) if model.registers else (True, False),
        "registers": (0,) if distilled else ANY,
        "pre_norm": ANY,
        "norm": ("layer_norm",) if distilled or stem else ANY,
        "branch_norm": ("before",) if distilled or gated or stem else ANY,
        "parallel": (False,) if special or gated else ANY,
        "qk_norm": ANY,
        "attention_norm": (False,) if model.parallel else ANY,
        "mlp_norm": (False,) if model.parallel else ANY,
        "mlp": ("mlp",) if distilled or stem or after else ("mlp", "swiglu"),
        "pooling": ("cls", "gap") if gated else ("cls", "gap", "map"),
        "pool_prefix": ANY,
        "final_norm": ANY,
        "layer_scale": (None,) if after else ANY,
        "qkv_bias": ANY,
        "proj_bias": (True,) if model.parallel else ANY,
        "patch_bias": (not model.pre_norm,),
        "embed_norm": (False,) if stem else ANY,
        "stem_layers": (None,) if distilled or gated or after else (None, *STEMS),
        "stem_width": (64,) if stem else ANY,
        "norm_epsilon": (1e-6, 1e-5) if both else (1e-6,),
        "activation": ACTIVATIONS,
    }
    # Positions come first, because only learned positions may have a row for the class token.
    positions = ("learned",) if distilled else ("learned", "none")
    return plain_vit_with(model, position_embedding=positions, **own)


def _in_beit(model: ViTConfig) -> Mapping[str, Values]:
    return plain_vit_with(
        model,
        position_embedding=("none", "learned"),
        relative_bias=("table",),
        relative_bias_shared=ANY,
        class_token_position=(model.position_embedding == "learned",),
        mlp_norm=(model.mlp_norm and model.mlp == "swiglu",),
        mlp=("mlp", "swiglu") if model.mlp_norm else ("mlp",),
        pooling=("cls", "gap"),
        final_norm=("before_pooling", "after_pooling"),
        layer_scale=ANY,
        qkv_bias=ANY,
        key_bias=(not model.qkv_bias,),
        norm_epsilon=(1e-6,),
        activation=("gelu",),
    )


def _in_relpos(model: ViTConfig) -> Mapping[str, Values]:
    return plain_vit_with(
        model,
        position_embedding=("none",),
        relative_bias=("mlp",),
        relative_bias_shared=ANY,
        class_token=ANY,
        class_token_position=(False,),
        branch_norm=ANY,
        qk_norm=ANY,
        pooling=("cls", "gap"),
        final_norm=("before_pooling", "after_pooling"),
        layer_scale=(None,) if model.branch_norm == "after" else ANY,
        qkv_bias=ANY,
        norm_epsilon=(1e-6,),
        activation=("gelu",),
    )


def _in_eva(model: ViTConfig) -> Mapping[str, Values]:
    """The allowed values for timm's Eva. Only the epsilon depends on the architecture; arguments set the rest."""
    after = model.branch_norm == "after"
    takes_all = model.pooling == "map" and model.prefix_tokens > 0
    own: dict[str, Values] = {
        "rope": (None if model.rope is None else nearest(model.rope),),
        "class_token": ANY,
        "class_token_position": (False,) if model.registers else (True, False),
        "registers": ANY,
        "pre_norm": ANY,
        "norm": ANY,
        "branch_norm": ANY,
        "key_bias": ANY,
        "qk_norm": (False,) if after else ANY,
        "attention_norm": ANY,
        "mlp_norm": ANY,
        "mlp": ("mlp", "swiglu"),
        "pooling": ("cls", "gap", "map"),
        "pool_heads": ANY,
        "pool_mlp_dim": ANY,
        "pool_prefix": (True,) if takes_all else ANY if model.pooling == "map" else (False,),
        "final_norm": ANY,
        "layer_scale": (None,) if after else ANY,
        "qkv_bias": ANY,
        "patch_bias": (not model.pre_norm,),
        "norm_epsilon": (1e-6,) if model.norm == "rms_norm" else (1e-6, 1e-5),
        "activation": ("gelu",) if model.mlp == "mlp" or model.pooling == "map" else ACTIVATIONS,
    }
    return plain_vit_with(model, position_embedding=("learned", "none"), **own)
