"""Hugging Face transformers' folders of ViT, DeiT, ViTMAE, Dinov2 (with registers too), SigLIP and CLIP image towers.

Sizes come from the arrays' shapes, with which config.json has to agree; heads, activation, epsilon and image size from
config.json, or, where a file comes without, from its names and the defaults of their config class.
Lineage: huggingface/transformers, src/transformers/models/{vit,deit,vit_mae,dinov2,dinov2_with_registers,siglip,clip}.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_core.arrays import LazyArrays, convert
from vit_core.checkpoint import Checkpoint, CheckpointConfig
from vit_core.config import ViTConfig
from vit_core.errors import InputError
from vit_core.formats import transformers_images as images
from vit_core.formats.lineage import Fields, Reading, Source, Writing, without_prefix
from vit_core.formats.rules import write as written
from vit_core.formats.transformers_configs import (
    ACTIVATIONS,
    Tower,
    check_grid,
    dinov2_mlp_dim,
    labels_of,
    model_type_of,
)
from vit_core.formats.transformers_names import FAMILIES, TOWER_OF, Names
from vit_core.formats.widening import fixed

NAME = "transformers"
CONTAINERS = ("folder",)

_PATCHES = (".patch_embeddings.projection.weight", ".patch_embedding.weight")
_LEFT_OUT = (
    r"^decoder\.",  # ViTMAE's, masked image modelling's
    r"(^|\.)mask_token$",
    r"^(text_model|text_projection)\.",
    r"^logit_(scale|bias)$",
    r"(^|\.)position_ids$",  # a buffer that old versions saved
)


def recognises(source: Source) -> bool:
    """By the patch projection's name, or a config.json with a model_type (which may be refused then, by its name)."""
    return "model_type" in source.config or any(name.endswith(_PATCHES) for name in source.arrays)


def read(source: Source, fields: Fields) -> Reading:
    """From the shapes and config.json."""
    arrays = without_prefix(source.arrays, "module.", "_orig_mod.")
    names = Names.found(model_type_of(source, arrays), arrays)
    tower = Tower(source, arrays.shapes, names, fields)
    model = ViTConfig.parse(tower.config(), f"{source.path}: as transformers' {names.model_type}")
    preprocessing, notes = images.read(source, model, names.model_type, tower.said_image_size)
    config = CheckpointConfig(model=model, labels=labels_of(source, model), preprocessing=preprocessing)
    left_out = "|".join([*_LEFT_OUT, *tower.left_out])
    return Reading(config, names.rules(model), arrays, left_out, (*tower.notes, *notes))


def holds(model: ViTConfig) -> Mapping[str, tuple[Any, ...]]:
    """The fields of the one family that comes into question."""
    model_type, architecture = _architecture_of(model)
    either = (True, False)
    match FAMILIES[TOWER_OF.get(model_type, model_type)].kind:
        case "dinov2":
            check_grid(model.image_size, model.patch_size, "--to transformers")
            _dinov2_mlp_ratio(model)
            return fixed(
                model,
                registers=None,
                mlp=None,
                layer_scale=(1.0,) if model.layer_scale is None else None,
                pooling=("cls",) if architecture.endswith("Model") else ("cls_gap",),
                qkv_bias=either,
            )
        case "clip":
            for field in ("image_size", "patch_size"):
                height, width = getattr(model, field)
                if height != width:
                    raise InputError(
                        f"--to transformers: its {architecture} takes squares only, found {field} {height}x{width}"
                    )
            if model_type == "clip_vision_model":
                head_bias = (False,) if model.num_classes else either
                return fixed(model, pre_norm=(True,), patch_bias=(False,), head_bias=head_bias)
            without = {"class_token": (False,), "class_token_position": (False,)}
            if model_type == "siglip":
                return fixed(model, **without, pooling=("gap",))
            return fixed(model, **without, pooling=("map", "gap")) | {"num_classes": (0,)}
    representation = None if architecture.endswith("Model") else (None,)
    return fixed(model, distillation=None, representation=representation, qkv_bias=either)


def write(checkpoint: Checkpoint) -> Writing:
    """config.json, the files' names of all versions, preprocessor_config.json."""
    config, model = checkpoint.config, checkpoint.config.model
    model_type, architecture = _architecture_of(model)
    tower = TOWER_OF.get(model_type, model_type)
    # The tower's classes had the prefix too before transformers 5, which takes it off.
    prefixed = FAMILIES[tower].kind == "clip" or not architecture.endswith("Model")
    names = Names(tower, prefixed, gated=model.mlp == "swiglu")
    arrays = written(names.rules(model), model, checkpoint.arrays)
    dtype = checkpoint.arrays.entries["patch_embed.proj.weight"].dtype
    texts, notes = images.write(config.preprocessing)
    if FAMILIES[tower].kind == "dinov2":
        arrays = LazyArrays.with_array(arrays, names.of("mask_token"), convert(np.zeros((1, model.width)), dtype))
        notes.append(f"{names.of('mask_token')}: zeros, as no image needs it")
    if (tower, model.pooling, model.num_classes) == ("siglip_vision_model", "gap", 0):
        notes.append("SiglipVisionModel gives tokens: their mean is left to whoever opens it")
    if model.position_embedding == "learned" and model.position_resampling != FAMILIES[tower].resampling:
        there = FAMILIES[tower].resampling
        notes.append(f"positions: resampled by '{there}' there (here: '{model.position_resampling}')")
    texts = {"config.json": json.dumps(_config_of(model, config.labels, dtype), indent=2) + "\n", **texts}
    return Writing(arrays, texts, tuple(notes))


def _dinov2_mlp_ratio(model: ViTConfig) -> int:
    """The whole number (Dinov2Config takes no other) that gives the hidden width. InputError where none does."""
    gated = model.mlp == "swiglu"
    near = round(model.mlp_dim * (1.5 if gated else 1.0) / model.width)
    for ratio in (near, near - 1, near + 1):
        if ratio > 0 and dinov2_mlp_dim(model.width, ratio, gated) == model.mlp_dim:
            return ratio
    raise InputError(
        f"transformers' Dinov2 has MLPs of a whole multiple of the width {model.width} only (gated: two thirds of it, "
        f"in eights); found mlp_dim {model.mlp_dim}"
    )


def _architecture_of(model: ViTConfig) -> tuple[str, str]:
    """The model_type and the class that hold a model, if any do: by what only one family has."""
    if model.distillation == "head":
        return "deit", "DeiTForImageClassificationWithTeacher"
    pooler = model.representation is not None and not model.num_classes
    if model.distillation == "token":
        return "deit", "DeiTModel" if pooler else "DeiTForImageClassification"
    if model.pre_norm:
        return "clip_vision_model", "CLIPVisionModelWithProjection" if model.num_classes else "CLIPVisionModel"
    if not model.class_token:
        if model.pooling == "gap" and model.num_classes:
            return "siglip", "SiglipForImageClassification"
        return "siglip_vision_model", "SiglipVisionModel"
    by_both = model.pooling == "cls_gap" or (model.pooling == "gap" and model.num_classes > 0)
    if model.registers or model.layer_scale is not None or model.mlp == "swiglu" or by_both:
        name = "Dinov2WithRegisters" if model.registers else "Dinov2"
        classifies = by_both or model.num_classes > 0
        model_type = "dinov2_with_registers" if model.registers else "dinov2"
        return model_type, f"{name}{'ForImageClassification' if classifies else 'Model'}"
    return "vit", "ViTModel" if pooler else "ViTForImageClassification"


def _config_of(model: ViTConfig, labels: tuple[str, ...] | None, dtype: str) -> dict[str, Any]:
    """config.json of a model that its family holds."""
    model_type, architecture = _architecture_of(model)
    kind = FAMILIES[TOWER_OF.get(model_type, model_type)].kind
    acts = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    tower = {
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "hidden_act": acts[model.activation],
        "layer_norm_eps": model.norm_epsilon,
        "image_size": _side(model.image_size),
        "patch_size": _side(model.patch_size),
        "num_channels": model.channels,
    }
    if kind == "dinov2":
        tower |= {
            "mlp_ratio": _dinov2_mlp_ratio(model),
            "use_swiglu_ffn": model.mlp == "swiglu",
            "layerscale_value": model.layer_scale,
        }
    else:
        tower["intermediate_size"] = model.mlp_dim
    if kind != "clip":
        tower["qkv_bias"] = model.qkv_bias
    if model.registers:
        tower["num_register_tokens"] = model.registers
    if model.representation:
        tower |= {"pooler_output_size": model.representation, "pooler_act": "tanh"}
    if architecture == "CLIPVisionModelWithProjection":
        tower["projection_dim"] = model.num_classes
    if not model.class_token:
        tower["vision_use_head"] = model.pooling == "map"
    if model_type == "siglip":  # its class looks for the tower one level down
        tower = {"vision_config": {**tower, "model_type": "siglip_vision_model"}}
    named = labels or tuple(f"LABEL_{i}" for i in range(model.num_classes))
    return {
        "architectures": [architecture],
        "model_type": model_type,
        **tower,
        "id2label": {str(i): name for i, name in enumerate(named)},
        "label2id": {name: i for i, name in enumerate(named)},
        "torch_dtype": dtype,
    }


def _side(size: tuple[int, int]) -> int | list[int]:
    return size[0] if size[0] == size[1] else list(size)
