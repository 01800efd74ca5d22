"""The format of Hugging Face transformers' folders, for image towers of the model types in `names.FAMILIES`.

Sizes come from the shapes of arrays, with which config.json has to agree. Heads, activation, epsilon and image size
come from config.json or, if there is none, from the names of arrays and the defaults of the config class. Trees of
transformers' former Flax classes are read too. Source: huggingface/transformers, src/transformers/models/{vit,deit,
vit_mae,vit_msn,ijepa,dinov2,dinov2_with_registers,dinov3_vit,beit,data2vec,internvl,siglip,siglip2,clip,aimv2}.
"""

import dataclasses
import json
import re
from collections.abc import Collection, Mapping
from functools import partial
from math import prod
from typing import Any

import numpy as np

from vit_core.arrays import LazyArrays, convert
from vit_core.checkpoints.checkpoint import Assumption, Checkpoint, CheckpointConfig
from vit_core.checkpoints.formats.allowed_values import ANY, Values, plain_vit_with
from vit_core.checkpoints.formats.any_aspect import assumed_preprocessing, is_any_aspect
from vit_core.checkpoints.formats.example_models import AIMV2, BEIT, CLIP, DINOV2, DINOV3, GATED_DINOV2, GELU, SIGLIP
from vit_core.checkpoints.formats.interface import FROM_ARRAYS, Fields, Format, Reading, Source, Writer, Writing
from vit_core.checkpoints.formats.linear_head import with_linear_head
from vit_core.checkpoints.formats.rules import write_by_rules
from vit_core.checkpoints.formats.transformers import aimv2, beit, dinov3, siglip2, vit_mae
from vit_core.checkpoints.formats.transformers import image_processors as images
from vit_core.checkpoints.formats.transformers.aimv2 import Aimv2Tower
from vit_core.checkpoints.formats.transformers.beit import BeitTower
from vit_core.checkpoints.formats.transformers.config_in_file import read_with_config_of_file
from vit_core.checkpoints.formats.transformers.config_json import (
    ACTIVATIONS,
    Tower,
    check_grid,
    dinov2_mlp_dim,
)
from vit_core.checkpoints.formats.transformers.dinov3 import DINOv3Tower
from vit_core.checkpoints.formats.transformers.flax_names import as_pytorch, is_flax
from vit_core.checkpoints.formats.transformers.known_keys import unknown_config_keys
from vit_core.checkpoints.formats.transformers.labels import labels_of
from vit_core.checkpoints.formats.transformers.model_types import model_type_of
from vit_core.checkpoints.formats.transformers.names import (
    FAMILIES,
    PATCHES,
    TOWER_OF,
    Names,
    with_one_prefix,
    with_own_prefix,
)
from vit_core.checkpoints.formats.transformers.siglip2 import Siglip2Tower
from vit_core.config import ViTConfig
from vit_core.errors import InputError

_FLAX_PATCHES = re.compile(r"(?:^|[./])embeddings[./](?:patch_embeddings[./]projection|patch_embedding)[./]kernel$")
_QUERIES = re.compile(
    r"layers?[./]0[./](?:attention[./]attention[./]query|attention[./]q_proj|self_attn[./]q_proj)[./](?:weight|kernel)$"
)
_ANCHOR = (
    rf"(?:(?:{'|'.join(dict.fromkeys(one.prefix.rstrip('.') for one in FAMILIES.values() if one.prefix))})[./])?"
    r"embeddings[./](?:patch_embeddings(?:[./]projection)?|patch_embedding|patch_embed)[./](?:weight|kernel)"
)
_TOWERS: Mapping[str, type[Tower]] = {
    "dinov3_vit": DINOv3Tower,
    "beit": BeitTower,
    "data2vec-vision": BeitTower,
    "internvl_vision": BeitTower,
    "siglip2_vision_model": Siglip2Tower,
    "aimv2_vision_model": Aimv2Tower,
}
"""Model type -> the class that finds its config, if it is not `Tower`."""
_TIMM_WRAPPER = "timm_wrapper"
"""The model_type of folders that contain a timm model, with timm's names."""
_TOKENS_ALONE = ("siglip_vision_model", "siglip2_vision_model", "aimv2_vision_model")
"""Model types whose classes return all tokens if they have no attention pooling."""
_MULTILABEL = "multi_label_classification"
"""The problem_type of models whose probabilities are the sigmoid of the outputs."""
_STATED = frozenset(("heads", "activation", "norm_epsilon", "image_size"))
"""Fields that config.json states, or for which the config class has a default."""
_DETERMINED = FROM_ARRAYS | {"class_token_position", "pooling", "position_resampling"}
_LEFT_OUT = (
    r"^decoder\.",  # of ViTMAE and of masked image modeling
    r"(^|\.)mask_token$",
    r"^(text_model|text_projection|visual_projection)\.",
    r"^logit_(scale|bias)$",
    r"(^|\.)position_ids$",  # a buffer in files of old versions
)


def recognizes_source(source: Source) -> bool:
    """Whether config.json has a model_type (`read_source` may refuse it), or the arrays have the names of a patch
    projection and of queries in the first block."""
    if source.config.get("model_type") == _TIMM_WRAPPER:
        return False
    if "model_type" in source.config:
        return True
    patches = any(name.endswith(PATCHES) or _FLAX_PATCHES.search(name) for name in source.arrays)
    return patches and any(_QUERIES.search(name) for name in source.arrays)


def read_source(source: Source, fields: Fields) -> Reading:
    """Finds the config and the rules, from the shapes and config.json. Raises InputError for a model that ViTConfig
    cannot express, and if the two disagree."""
    if is_flax(source.arrays):
        source = dataclasses.replace(source, arrays=as_pytorch(source.arrays), beside=as_pytorch(source.beside))
    return read_with_config_of_file(source, partial(_read, fields=fields, in_folder=bool(source.config)))


def _read(source: Source, *, fields: Fields, in_folder: bool) -> Reading:
    model_type = model_type_of(source, source.arrays.shapes)
    source = dataclasses.replace(source, arrays=_in_one_form(source.arrays, model_type))
    arrays, head_notes, used = _with_head(source, model_type)
    names = Names.found(model_type, arrays)
    tower = _TOWERS.get(model_type, Tower)(source, arrays.shapes, names, fields)
    model = ViTConfig.parse(tower.config(), f"{source.path}: as transformers' {names.model_type}")
    preprocessing, notes = images.read_preprocessing(source, model, names.model_type, tower.said_image_size)
    if model_type == "siglip2_vision_model" and not source.preprocessor:  # its models always use this preprocessing
        preprocessing, note = assumed_preprocessing(model)
        notes = [note, *notes]
    labels, label_notes = labels_of(source, model)
    probabilities = "sigmoid" if source.config.get("problem_type") == _MULTILABEL else None
    config = CheckpointConfig(
        model=model, labels=labels, preprocessing=preprocessing, probabilities=probabilities if labels else None
    )
    left_out = "|".join([*_LEFT_OUT, *tower.left_out])
    unknown = unknown_config_keys(source.config, tower.said, names.model_type)
    all_notes = (*head_notes, *tower.notes, *unknown, *notes, *label_notes)
    assumed = tower.assumptions
    own = not in_folder or tower.own_class
    if model.num_classes and (head_notes or (own and "classifier.weight" in arrays)):
        assumed += _pooling_of_own_head(model, {*fields, *(one.field for one in assumed)}, tower.own_class)
    stated = frozenset(_STATED - {one.field for one in assumed}) if source.config else frozenset[str]()
    decoder = vit_mae.read_decoder(source, arrays, names, model)
    return Reading(config, names.rules(model), arrays, left_out, all_notes, tuple(assumed), stated, used, decoder)


def _pooling_of_own_head(model: ViTConfig, known: Collection[str], own: str) -> list[Assumption]:
    """For a head that may be the user's own: no array shows whether it reads the class token or a mean."""
    why = f"as transformers' classes with a head of {model.features} inputs{own and f'; {own} is none of them'}"
    return [] if "pooling" in known else [Assumption("pooling", model.pooling, why, "--set pooling=gap or another")]


def _in_one_form(arrays: LazyArrays, model_type: str) -> LazyArrays:
    """The arrays under the names that `Names` returns, with added arrays for parts that a transformers class does not
    have."""
    family = FAMILIES[model_type]
    arrays = with_own_prefix(arrays, family.prefix)
    if family.kind == "vit":
        return with_one_prefix(arrays)
    if family.kind == "beit":
        return beit.with_norm_of_masked_modeling(arrays, family.prefix)
    if family.kind == "aimv2":
        return aimv2.with_pooling(arrays, family.prefix if f"{family.prefix}rms_norm.weight" in arrays else "")
    return arrays


def _with_head(source: Source, model_type: str) -> tuple[LazyArrays, list[str], frozenset[str]]:
    """The arrays with a head, if there is a Linear in a Sequential (`classifier.1`) or outside the model; notes; and
    the module of a head outside the model."""
    patches = next((entry for name, entry in source.arrays.entries.items() if name.endswith(PATCHES)), None)
    head = {"vit": "classifier", "dinov2": "classifier", "beit": "classifier"}.get(FAMILIES[model_type].kind)
    head = "visual_projection" if model_type == "clip_vision_model" else head
    if patches is None or head is None:
        return source.arrays, [], frozenset()
    if any(f"{other}.weight" in source.arrays for other in ("classifier", "cls_classifier") if other != head):
        return source.arrays, [], frozenset()
    return with_linear_head(source.arrays, source, (patches.shape or (0,))[0], head)


def allowed_values(model: ViTConfig) -> Mapping[str, Values]:
    """Field -> the values that the model_type which fits this model can express. Raises InputError for a combination of
    fields that it cannot express."""
    model_type, architecture = _architecture_of(model)
    either = (True, False)
    own = partial(plain_vit_with, model, activation=tuple(dict.fromkeys(ACTIVATIONS.values())), norm_epsilon=ANY)
    match FAMILIES[TOWER_OF.get(model_type, model_type)].kind:
        case "dinov2":
            check_grid(model.image_size, model.patch_size, "--to transformers")
            _dinov2_mlp_ratio(model)
            return own(
                registers=ANY,
                mlp=("mlp", "swiglu"),
                layer_scale=(1.0,) if model.layer_scale is None else ANY,
                pooling=("cls",) if architecture.endswith("Model") else ("cls_gap",),
                qkv_bias=either,
            )
        case "dinov3":
            activation: Values = ANY if model.mlp == "swiglu" else tuple(dict.fromkeys(ACTIVATIONS.values()))
            return own(**{"activation": activation, **dinov3.allowed_values(model)})
        case "beit":
            _check_squares(model, architecture)
            return own(**beit.allowed_values(model))
        case "aimv2":
            _check_squares(model, architecture)
            return own(**aimv2.allowed_values(model))
        case "clip":
            _check_squares(model, architecture)
            if model_type == "clip_vision_model":
                head_bias = (False,) if model.num_classes else either
                return own(pre_norm=(True,), patch_bias=(False,), head_bias=head_bias)
            return own(**siglip2.allowed_values(model))
    representation: Values = ANY if architecture.endswith("Model") else (None,)
    return own(distillation=("none", "token", "head"), representation=representation, qkv_bias=either)


def _check_squares(model: ViTConfig, architecture: str) -> None:
    """Raises InputError if the image or its patches are not square, for a class that accepts only squares."""
    for field in ("image_size", "patch_size"):
        height, width = getattr(model, field)
        if height != width:
            raise InputError(
                f"--to transformers: its {architecture} accepts only squares, found {field} {height}x{width}"
            )


def write_checkpoint(checkpoint: Checkpoint) -> Writing:
    """The arrays under the names that all versions of transformers read, config.json and preprocessor_config.json."""
    config, model = checkpoint.config, checkpoint.config.model
    model_type, architecture = _architecture_of(model, is_any_aspect(config))
    tower = TOWER_OF.get(model_type, model_type)
    # CLIP's classes for the tower alone had the prefix before transformers 5, which removes it when it loads a file.
    prefixed = FAMILIES[tower].kind == "clip" or not architecture.endswith("Model")
    names = Names(tower, prefixed, gated=model.mlp == "swiglu")
    arrays = write_by_rules(names.rules(model), model, checkpoint.arrays)
    dtype = checkpoint.arrays.entries["patch_embed.proj.weight"].dtype
    any_aspect = architecture.startswith("Siglip2")
    texts, notes = images.preprocessor_texts(config.preprocessing, any_aspect)
    if any_aspect:
        siglip2.check_resampling(model, checkpoint.origin)
    elif is_any_aspect(config):
        fields = ", ".join(siglip2.kept_out_by(model))
        notes.append(
            f"written for images of one size: Siglip2, for any aspect ratio, cannot express this model's {fields}"
        )
    if FAMILIES[tower].kind in ("dinov2", "dinov3"):
        mask_shape = (1, model.width) if FAMILIES[tower].kind == "dinov2" else (1, 1, model.width)
        arrays = LazyArrays.with_array(arrays, names.of("mask_token"), convert(np.zeros(mask_shape), dtype))
        notes.append(f"{names.of('mask_token')}: zeros, because it does not affect outputs")
    if FAMILIES[tower].kind == "dinov3" and not model.registers:  # its class has an array of length 0
        arrays = LazyArrays.with_array(arrays, names.of("reg_token"), convert(np.zeros((1, 0, model.width)), dtype))
    if (model.pooling, model.num_classes) == ("gap", 0) and tower in _TOKENS_ALONE:
        notes.append(f"{architecture} returns all tokens: compute their mean after it to get this model's output")
    if model.position_embedding == "learned" and model.position_resampling != FAMILIES[tower].resampling:
        there = FAMILIES[tower].resampling
        notes.append(
            f"positions: transformers resamples them by '{there}', this model by '{model.position_resampling}'"
        )
    if model.relative_bias == "table":
        notes.append("relative_bias: transformers resamples it linearly to other image sizes, not by BEiT's own rule")
    texts = {"config.json": json.dumps(_config_of(model, config, dtype), indent=2) + "\n", **texts}
    return Writing(arrays, texts, tuple(notes))


def _dinov2_mlp_ratio(model: ViTConfig) -> int:
    """The mlp_ratio that gives the hidden width; it must be an integer in Dinov2Config. Raises InputError if there is
    none."""
    gated = model.mlp == "swiglu"
    near = round(model.mlp_dim * (1.5 if gated else 1.0) / model.width)
    for ratio in (near, near - 1, near + 1):
        if ratio > 0 and dinov2_mlp_dim(model.width, ratio, gated) == model.mlp_dim:
            return ratio
    raise InputError(
        f"transformers' Dinov2 needs an mlp_dim of an integer times width {model.width} (if gated, two thirds of that, "
        f"rounded up to a multiple of 8); found mlp_dim {model.mlp_dim}"
    )


def _architecture_of(model: ViTConfig, any_aspect: bool = False) -> tuple[str, str]:
    """The model_type and the class for a model, chosen by fields that only one family has. any_aspect: whether its
    images keep their aspect ratio; then a SigLIP model becomes SigLIP 2."""
    if model.rope is not None:
        return "dinov3_vit", "DINOv3ViTModel"
    if model.relative_bias == "table":
        return "beit", "BeitForImageClassification" if model.num_classes else "BeitModel"
    if model.norm == "rms_norm" and model.embed_norm:
        return "aimv2_vision_model", "Aimv2VisionModel"
    if model.distillation == "head":
        return "deit", "DeiTForImageClassificationWithTeacher"
    pooler = model.representation is not None and not model.num_classes
    if model.distillation == "token":
        return "deit", "DeiTModel" if pooler else "DeiTForImageClassification"
    if model.pre_norm:
        return "clip_vision_model", "CLIPVisionModelWithProjection" if model.num_classes else "CLIPVisionModel"
    if not model.class_token:
        name = "Siglip2" if any_aspect else "Siglip"
        if model.pooling == "gap" and model.num_classes:
            return name.lower(), f"{name}ForImageClassification"
        return f"{name.lower()}_vision_model", f"{name}VisionModel"
    by_both = model.pooling == "cls_gap" or (model.pooling == "gap" and model.num_classes > 0)
    if model.registers or model.layer_scale is not None or model.mlp == "swiglu" or by_both:
        name = "Dinov2WithRegisters" if model.registers else "Dinov2"
        classifies = by_both or model.num_classes > 0
        model_type = "dinov2_with_registers" if model.registers else "dinov2"
        return model_type, f"{name}{'ForImageClassification' if classifies else 'Model'}"
    return "vit", "ViTModel" if pooler else "ViTForImageClassification"


def _config_of(model: ViTConfig, config: CheckpointConfig, dtype: str) -> dict[str, Any]:
    """The fields of config.json for a model that the format can express."""
    model_type, architecture = _architecture_of(model, is_any_aspect(config))
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
    elif kind == "dinov3":
        tower |= dinov3.config_fields(model)
    elif kind == "beit":
        tower |= {"intermediate_size": model.mlp_dim, **beit.config_fields(model)}
    elif kind == "aimv2":
        del tower["layer_norm_eps"]
        tower |= aimv2.config_fields(model)
    else:
        tower["intermediate_size"] = model.mlp_dim
    if kind in ("vit", "dinov2"):
        tower["qkv_bias"] = model.qkv_bias
    if model.registers:
        tower["num_register_tokens"] = model.registers
    if model.representation:
        tower |= {"pooler_output_size": model.representation, "pooler_act": "tanh"}
    if architecture == "CLIPVisionModelWithProjection":
        tower["projection_dim"] = model.num_classes
    if not model.class_token and kind == "clip":
        tower["vision_use_head"] = model.pooling == "map"
    if architecture.startswith("Siglip2"):
        del tower["image_size"]
        tower["num_patches"] = prod(model.grid)
    if model_type in ("siglip", "siglip2"):  # their classes expect the tower's fields in vision_config
        tower = {"vision_config": {**tower, "model_type": TOWER_OF[model_type]}}
    if config.probabilities == "sigmoid":
        tower["problem_type"] = _MULTILABEL
    named = config.labels or tuple(f"LABEL_{i}" for i in range(model.num_classes))
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


FORMAT = Format(
    "transformers",
    recognizes=recognizes_source,
    read=read_source,
    anchors=(_ANCHOR,),
    determined=_DETERMINED,
    writer=Writer(("folder",), allowed_values, write_checkpoint),
    masked_writer=Writer(("folder",), vit_mae.allowed_values, vit_mae.write_checkpoint),
    examples={
        "ViT": GELU,
        "ViTModel with pooler": {"representation": 128, "num_classes": 0, **GELU},
        "DeiT with teacher": {"distillation": "head", **GELU},
        "Dinov2": {"num_classes": 0, **DINOV2},
        "Dinov2WithRegisters, gated MLP": {"num_classes": 0, **GATED_DINOV2, "mlp_dim": 344},
        "DINOv3": DINOV3,
        "DINOv3, gated MLP": {**DINOV3, "mlp": "swiglu", "mlp_dim": 96, "registers": 4},
        "BEiT": {"pooling": "gap", "final_norm": "after_pooling", **BEIT},
        "BEiT, one relative bias": {"num_classes": 0, **BEIT, "relative_bias_shared": True},
        "AIMv2": {"num_classes": 0, **AIMV2, **GELU},
        "SigLIP": {"num_classes": 0, **SIGLIP},
        "SigLIP 2 (NaFlex)": {
            "num_classes": 0,
            "position_resampling": "bilinear_antialias",
            "max_patches": 20,
            **SIGLIP,
        },
        "CLIP with projection": {**CLIP, "head_bias": False},
    },
)
