"""Writes presets of keras_hub: folders that `from_preset` of its backbones and classifiers opens."""

import json
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from vit_core.arrays import LazyArrays
from vit_core.checkpoints.checkpoint import Checkpoint
from vit_core.checkpoints.containers.keras import CONFIGS, TASK_WEIGHTS, WEIGHTS
from vit_core.checkpoints.formats.allowed_values import ANY, Values, plain_vit_with
from vit_core.checkpoints.formats.interface import Writing
from vit_core.checkpoints.formats.keras_hub.families import (
    CLIP,
    DEIT,
    DINOV2,
    DINOV3,
    PROBE,
    SIGLIP,
    VIT,
    Family,
    rules,
)
from vit_core.checkpoints.formats.keras_hub.head import DENSE
from vit_core.checkpoints.formats.keras_hub.image_converter import converter_fields
from vit_core.checkpoints.formats.rules import write_by_rules
from vit_core.config import ViTConfig
from vit_core.errors import InputError
from vit_core.parameters import parameters
from vit_core.rope import Rope

_MODULES = {
    VIT.name: "vit",
    DEIT.name: "deit",
    DINOV2.name: "dinov2",
    DINOV3.name: "dinov3",
    SIGLIP.name: "siglip",
    CLIP.name: "clip",
}
_ACTIVATIONS = {
    SIGLIP.name: {"gelu_tanh": "gelu_approximate", "gelu": "gelu"},
    CLIP.name: {"quick_gelu": "quick_gelu", "gelu": "gelu"},
}
"""Family -> our activations -> the names that its class has for them; the other classes have only the exact GELU."""
_CONFIG, _TASK, _PREPROCESSOR, _CONVERTER = CONFIGS


def family_for(model: ViTConfig) -> Family:
    """The family whose class is most like a model."""
    if model.rope is not None:
        return DINOV3
    if model.pooling == "map" or model.pre_norm:
        return SIGLIP if model.pooling == "map" else CLIP
    if model.layer_scale is not None or model.registers:
        return DINOV2
    return VIT if model.distillation == "none" else DEIT


def allowed_values(model: ViTConfig) -> Mapping[str, Values]:
    """Field -> the values that the classes of the nearest family can express. Raises InputError for images and patches
    that its class does not accept."""
    family = family_for(model)
    _check_squares(family, model)
    either = (True, False)
    biases = (model.qkv_bias or model.proj_bias,)  # one argument of MultiHeadAttention for both
    size = model.width // model.heads
    own: dict[str, dict[str, Values]] = {
        VIT.name: {**_vit_pooling(model), "patch_bias": either, "qkv_bias": biases, "proj_bias": biases},
        DEIT.name: {"distillation": ("token",)},
        DINOV2.name: {
            "layer_scale": (1.0,) if model.layer_scale is None else ANY,
            "registers": ANY,
            "mlp": ("mlp", "swiglu") if model.mlp_dim % 8 == 0 else ("mlp",),
        },
        DINOV3.name: {
            "position_embedding": ("none",),
            "class_token_position": (False,),
            "rope": (Rope(base=(model.rope or Rope()).base),),
            "layer_scale": (1.0,) if model.layer_scale is None else ANY,
            "registers": ANY,
            "mlp": ("mlp", "swiglu"),
            "qkv_bias": either,
            "key_bias": either,
            "proj_bias": either,
        },
        SIGLIP.name: {"class_token": (False,), "class_token_position": (False,), "pooling": ("map",)},
        CLIP.name: {"pre_norm": (True,), "patch_bias": (False,)},
    }
    no_head: dict[str, Values] = {} if family.classifier else {"num_classes": (0,)}
    return plain_vit_with(
        model,
        activation=tuple(_ACTIVATIONS.get(family.name, ("gelu",))),
        norm_epsilon=ANY if family.epsilon_key and family is not SIGLIP else (family.epsilon,),
        **{"head_dim": (None, size) if model.width % model.heads == 0 else (size,), **no_head, **own[family.name]},
    )


def _check_squares(family: Family, model: ViTConfig) -> None:
    square = {"patch_size": family not in (VIT, DEIT), "image_size": family in (DINOV2, SIGLIP, CLIP)}
    for field, needed in square.items():
        height, width = getattr(model, field)
        if needed and height != width:
            raise InputError(f"--to keras_hub: {field} {height}x{width}; {family.name} accepts only squares")


def _vit_pooling(model: ViTConfig) -> dict[str, Values]:
    """The fields of ViT's tokens and pooling. Without a head, all tokens are the output."""
    token = model.class_token
    first: Values = ("cls",) if token else ("first",)
    if model.num_classes:
        pooling: Values = (*first, "gap")
    else:
        pooling = ("cls",) if token else ("gap",)
    return {
        "class_token": (True, False),
        "class_token_position": (token,),
        "pooling": pooling,
        "pool_prefix": (bool(token and model.num_classes and model.pooling == "gap"),),
        "representation": ANY if model.num_classes else (None,),
    }


def write_checkpoint(checkpoint: Checkpoint) -> Writing:
    """The weights and the config files of a preset."""
    model = checkpoint.config.model
    family = family_for(model)
    tokens, layers = _tokens(family, model), _heads(model)
    arrays = write_by_rules(rules(family, model, tokens, layers), model, checkpoint.arrays)
    module = "vision_encoder" if family.whole else "backbone"
    backbone = _class(family, family.name, module, backbone_fields(family, model))
    files = {WEIGHTS: arrays.select(name for name in arrays if not name.startswith(DENSE))}
    if family is DINOV2:  # its class keeps the positions for the image size beside the table
        resampled = f"{family.embeddings}/vars/{int(tokens['pos_embed'][-1]) - 1}"
        table = arrays.entries[tokens["pos_embed"]]
        files[WEIGHTS] = LazyArrays({**files[WEIGHTS].entries, resampled: table})
    if family.whole:  # the numbers of the positions
        numbers = f"{family.embeddings}/vars/{int(model.class_token)}"
        files[WEIGHTS] = files[WEIGHTS].with_array(numbers, np.arange(model.positions, dtype=np.int32)[None])
    texts, notes = _image_texts(family, checkpoint)
    if model.num_classes:
        files[TASK_WEIGHTS] = arrays.select(name for name in arrays if name.startswith(DENSE))
        preprocessor = json.loads(texts[_PREPROCESSOR]) if texts else None
        texts[_TASK] = _text(_task(family, checkpoint, backbone, preprocessor))
    texts |= {_CONFIG: _text(backbone), "metadata.json": _text(_metadata(family, model))}
    if checkpoint.config.labels:
        notes.append("labels: a preset of keras_hub does not contain them")
    return Writing(arrays, texts, tuple(notes), files)


def _tokens(family: Family, model: ViTConfig) -> dict[str, str]:
    """Our tokens and positions -> the names of their arrays."""
    numbers = {
        VIT.name: ["cls_token"],
        DEIT.name: ["cls_token", "dist_token", "pos_embed"],
        DINOV2.name: ["cls_token", *["reg_token"] * bool(model.registers), "", "pos_embed"],
        DINOV3.name: ["cls_token", "reg_token"],
        SIGLIP.name: [],
        CLIP.name: ["cls_token"],
    }[family.name]
    names = {ours: f"{family.embeddings}/vars/{number}" for number, ours in enumerate(numbers) if ours}
    table = {"pos_embed": f"{family.embeddings}/position_embedding/vars/0", "attn_pool.latent": PROBE}
    return names | table if family in (VIT, SIGLIP, CLIP) else names


def _heads(model: ViTConfig) -> dict[str, str]:
    layers = [name for name in ("pre_logits.fc", "head") if f"{name}.weight" in parameters(model)]
    return {name: f"{DENSE}_{number}" if number else DENSE for number, name in enumerate(layers)}


def backbone_fields(family: Family, model: ViTConfig) -> dict[str, Any]:
    """The arguments of the class of a backbone."""
    shape = [*model.image_size, model.channels]
    fields: dict[str, Any] = {
        "image_shape": shape,
        "patch_size": list(model.patch_size) if family in (VIT, DEIT) else model.patch_size[0],
        "num_layers": model.depth,
        "num_heads": model.heads,
        "hidden_dim": model.width,
        family.mlp_key: model.mlp_dim,
        **({family.epsilon_key: model.norm_epsilon} if family.epsilon_key else {}),
    }
    if family.whole:
        return {**fields, "intermediate_activation": _ACTIVATIONS[family.name][model.activation]}
    gated, dino = model.mlp == "swiglu", {"num_register_tokens": model.registers, "use_mask_token": False}
    own: dict[str, dict[str, Any]] = {
        VIT.name: {
            "use_mha_bias": model.qkv_bias,
            "use_mlp_bias": model.proj_bias,
            "use_class_token": model.class_token,
            "use_patch_bias": model.patch_bias,
        },
        DEIT.name: {"use_mha_bias": True},
        DINOV2.name: {
            **dino,
            "layer_scale_init_value": model.layer_scale,
            "use_swiglu_ffn": gated,
            "position_embedding_shape": shape,
            "antialias_in_interpolation": model.position_resampling == "bicubic_antialias",
            **({"intermediate_dim": model.mlp_dim * 3 // 2} if gated else {}),
        },
        DINOV3.name: {
            **dino,
            "layer_scale_init_value": model.layer_scale,
            "hidden_activation": "silu" if gated else "gelu",
            "use_gated_mlp": gated,
            "use_query_bias": model.qkv_bias,
            "use_key_bias": model.qkv_bias and model.key_bias,
            "use_value_bias": model.qkv_bias,
            "use_proj_bias": model.proj_bias,
            "use_mlp_bias": model.proj_bias,
            "rope_theta": (model.rope or Rope()).base,
        },
    }
    return fields | own[family.name]


def _task(
    family: Family, checkpoint: Checkpoint, backbone: Mapping[str, Any], preprocessor: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The config of a classifier."""
    model = checkpoint.config.model
    fields = {
        "backbone": backbone,
        "preprocessor": preprocessor,
        "num_classes": model.num_classes,
        "pooling": "gap" if model.pooling == "gap" else "token",
        "activation": None,
        **({"intermediate_dim": model.representation} if family is VIT else {}),
    }
    return _class(family, str(family.classifier), "image_classifier", fields)


def _image_texts(family: Family, checkpoint: Checkpoint) -> tuple[dict[str, str], list[str]]:
    """The files of the image converter and of the preprocessor, and notes. Without them, and with a note, if no
    converter does the same."""
    preprocessing = checkpoint.config.preprocessing
    if preprocessing is None:
        return {}, []
    if family.whole:
        return {}, [f"preprocessing: a preset of {family.name} alone does not contain it"]
    if (fields := converter_fields(preprocessing)) is None:
        return {}, [f"no {_CONVERTER}: no image converter of keras_hub does the same as this model's preprocessing"]
    start = family.name.removesuffix("Backbone")
    converter = _class(family, f"{start}ImageConverter", "image_converter", fields)
    texts = {_CONVERTER: _text(converter)}
    if checkpoint.config.model.num_classes:
        preprocessor = f"{start}ImageClassifierPreprocessor"
        inner = {"image_converter": converter}
        texts[_PREPROCESSOR] = _text(_class(family, preprocessor, "image_classifier_preprocessor", inner))
    return texts, []


def _class(family: Family, name: str, module: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The config of an object, as Keras writes it."""
    package = _MODULES[family.name]
    return {
        "module": f"keras_hub.src.models.{package}.{package}_{module}",
        "class_name": name,
        "config": dict(fields),
        "registered_name": f"keras_hub>{name}",
    }


def _metadata(family: Family, model: ViTConfig) -> dict[str, Any]:
    """What keras_hub reads before it opens a preset."""
    count = sum(
        prod(row.shape) for row in parameters(model).values() if not row.name.startswith(("head", "pre_logits"))
    )
    return {"parameter_count": count, "tasks": ["ImageClassifier"] if family.classifier else []}


def _text(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, indent=4) + "\n"
