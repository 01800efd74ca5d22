"""The format of timm's VisionTransformer, distilled DeiT and Eva: state dicts, and folders for timm.create_model.

Canonical names are those of timm's VisionTransformer, so its rules are the parameter table itself; eva.py has the names
of Eva. The config is found from the shapes and, if there is one, a folder's config.json (architecture, model_args,
pretrained_cfg). Source: huggingface/pytorch-image-models, timm/models/vision_transformer.py,
vision_transformer_hybrid.py, deit.py and eva.py.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from vit_core.arrays import LazyArray, LazyArrays
from vit_core.checkpoints.checkpoint import Assumption, Checkpoint
from vit_core.checkpoints.formats.added_axes import with_all_axes, with_norm_biases
from vit_core.checkpoints.formats.example_models import AIMV2, BEIT, CLIP, GATED_DINOV2, GELU, RELPOS, SIGLIP
from vit_core.checkpoints.formats.expressing import at_least_float32
from vit_core.checkpoints.formats.interface import FROM_ARRAYS, Fields, Format, Reading, Source, Writer, Writing
from vit_core.checkpoints.formats.linear_head import with_linear_head
from vit_core.checkpoints.formats.open_clip import config_json as open_clip
from vit_core.checkpoints.formats.rules import write_by_rules
from vit_core.checkpoints.formats.shapes import fields_from_shapes
from vit_core.checkpoints.formats.timm import (
    architectures,
    config_json,
    create_model,
    eva,
    naflex,
    relative,
    rotary,
    train_args,
)
from vit_core.checkpoints.formats.timm.known_keys import unknown_hub_keys
from vit_core.checkpoints.formats.timm.lookalikes import check_last_norm, check_lookalikes, check_parts, check_rotation
from vit_core.config import ViTConfig
from vit_core.errors import InputError
from vit_core.preprocess import crop_rounding_matters

_STEM_NOTE = "stem: its norms have epsilon 1e-6 as in Google's code, with which it was trained; timm has 1e-5"
_RESAMPLING = "bicubic_antialias"


def recognizes_source(source: Source) -> bool:
    """Whether the arrays have timm's names of the patch projection and of attention in the first block.

    Raises InputError for arrays that architectures of another kind have too.
    """
    if naflex.is_naflex(source.arrays):
        return True
    attention = ("blocks.0.attn.qkv.weight", "blocks.0.attn.q_proj.weight", "blocks.0.in_proj.weight")
    recognized = "patch_embed.proj.weight" in source.arrays and any(name in source.arrays for name in attention)
    if recognized:
        check_lookalikes(source, _hub_config(source))
    return recognized


def read_source(source: Source, fields: Fields) -> Reading:
    """Finds the config and the rules, from the shapes and from what config.json or timm's train.py state. Raises
    InputError for a model that ViTConfig cannot express."""
    with train_args.place_in_errors(source):
        return _read(source, fields)


def _read(source: Source, fields: Fields) -> Reading:
    where = source.path
    config = _hub_config(source)
    stated, size = config_json.stated_fields(config, where)
    args = config_json.arguments(config, where)
    if of_naflex := naflex.is_naflex(source.arrays):
        args = naflex.arguments(_name(config), args)
        stated |= naflex.stated_fields(args, stated.get("position_resampling", _RESAMPLING), where)
    arrays, notes, used = _with_head(source)
    arrays, known = with_all_axes(arrays), {**stated, **fields}
    grid = naflex.grid_of(arrays)
    arrays, computed = naflex.with_canonical_names(relative.with_canonical_names(arrays), known, args, where)
    notes += computed
    if known.get("norm") == "layer_norm":
        arrays = with_norm_biases(arrays)
    if grid is not None:  # the grid of the table; the file may state the size of evaluated images instead
        patch = arrays.shapes["patch_embed.proj.weight"][2:]
        size = (grid[0] * patch[0], grid[1] * patch[1])
        known |= {"class_token_position": False}
    check_parts(arrays, where)
    _check_positions(arrays, known, config, where)
    check_rotation(arrays.shapes, known, where)
    check_last_norm(arrays, known, where)
    arrays, written_out = eva.with_whole_blocks(eva.with_frequencies_by_block(arrays, where), where)
    notes += written_out
    shapes = fields_from_shapes(eva.canonical_shapes(arrays.shapes), known, where, size)
    found, prefix = shapes.fields, shapes.prefix_rows
    if size not in (None, found["image_size"]) and "image_size" not in fields:
        notes.append(f"image_size: {found['image_size']}, from the positions and whole patches; the file states {size}")
    if found["registers"] and prefix == found["class_token"] + found["registers"]:
        arrays = _without_positions(arrays, prefix)
        notes.append("positions of class and register tokens: added to the tokens")
        found["class_token_position"] = False
    found |= {"activation": "gelu", "norm_epsilon": 1e-6, "position_resampling": _RESAMPLING}
    if "stem_layers" in found:
        notes.append(_STEM_NOTE)
    if found["layer_scale"] is None:
        stated.pop("layer_scale", None)
    stated.pop("final_norm", None)  # the arrays show whether there is one
    of_eva = eva.eva_mark(source.arrays) is not None or known.get("rope") is not None or rotary.is_eva(_name(config))
    pooling = {**found, **known}["pooling"]
    takes_all = of_eva and not of_naflex and bool(found["class_token"] or found["registers"])
    stated |= config_json.pooling_fields(config, pooling, where, eva=takes_all)
    if stated.get("pool_heads") == {**found, **known}["heads"]:
        stated["pool_heads"] = None
    model = ViTConfig.parse({**found, **stated, **fields}, str(where))
    config_json.check_layers(config, model, where)
    if config and not of_eva and (model.mlp, model.pooling) == ("swiglu", "map"):
        raise InputError(
            f"{where}: timm's attention pooling uses SiLU in a model with SwiGLU, which ViTConfig cannot express"
        )
    checkpoint_config, more = config_json.checkpoint_config(model, config, where)
    notes += train_args.notes_about(source) if config is not source.config else unknown_hub_keys(config)
    by_name = _settled_by_name(config, model) - stated.keys()
    by_name |= {name for name, value in config_json.fields_by_name(_name(config)).items() if stated.get(name) == value}
    said = frozenset(stated) | by_name
    if not architectures.is_known(_name(config)) and not takes_all and "pool_include_prefix" not in args:
        said -= {"pool_prefix"}
    if "heads" not in fields and config_json.heads_by_name(_name(config)) == model.heads:
        said |= {"heads"}
    if size and not any(one.field == "image_size" for one in shapes.assumptions):  # the positions fit it
        said |= {"image_size"}
    if "" in (config.get("global_pool"), args.get("global_pool")) and "pooling" not in stated:
        said -= {"pooling"}
        notes.append("global_pool: the file states '', so that timm returns all tokens")
    assumed = [
        a for a in (*shapes.assumptions, *naflex.assumptions(source.arrays, model, config)) if a.field not in said
    ]
    assumed += _assumptions(model, said | ({"norm"} if "architecture" in config else set()), fields)
    return Reading(
        checkpoint_config,
        eva.rules(model, eva.names_in(arrays)),
        arrays,
        notes=(*notes, *more),
        assumptions=tuple(assumed),
        stated=said,
        left_out=_OF_PRETRAINING,
        by_name=by_name,
        used=used | train_args.used_facts(source),
    )


def _hub_config(source: Source) -> Mapping[str, Any]:
    """What the weights file, config.json or open_clip_config.json state about the model, in the form of a hub folder's
    config.json."""
    stated = train_args.hub_config(source) or source.config
    return stated or open_clip.timm_config(source.open_clip_config, source.path)


_OF_PRETRAINING = r"mask_token$|lm_head\."
"""Arrays of BEiT's and SimMIM's pretraining, which no output of the encoder depends on."""
_BY_ARCHITECTURE = frozenset(
    ("pooling", "activation", "norm_epsilon", "position_resampling", "branch_norm", "pool_prefix", "mlp")
)
"""Fields that the name of a timm architecture determines, unless arguments do."""


def _settled_by_name(config: Mapping[str, Any], model: ViTConfig) -> frozenset[str]:
    """The fields that the architecture's name determines. Pooling is not among them if the arrays show another one than
    the architecture's."""
    if not architectures.is_known(_name(config)):
        return frozenset()
    same = model.pooling == config_json.pooling_by_name(_name(config))
    return _BY_ARCHITECTURE if same else _BY_ARCHITECTURE - {"pooling"}


def _name(config: Mapping[str, Any]) -> str:
    return str(config.get("architecture", ""))


def _with_head(source: Source) -> tuple[LazyArrays, list[str], frozenset[str]]:
    if "patch_embed.proj.weight" not in source.arrays:
        return source.arrays, [], frozenset()
    width = (source.arrays.entries["patch_embed.proj.weight"].shape or (0,))[0]
    return with_linear_head(source.arrays, source, width, "head")


def _check_positions(arrays: LazyArrays, known: Fields, config: Mapping[str, Any], where: object) -> None:
    """Raises InputError if no array has positions and it is not stated whether the model has none or rotary ones."""
    untold = not {"architecture", "position_embedding", "rope"} & {*config, *known}
    if relative.has_relative_bias(arrays):
        _check_branch_norm(arrays, known, config, where)
        return
    if "pos_embed" not in arrays and untold and eva.eva_mark(arrays) is None:
        raise InputError(
            f"{where}: no array has positions: the model has none or rotary ones, which give different "
            "outputs; use --set position_embedding=none or --set rope=NAME "
            f"({', '.join(rotary.IN_TIMM)})"
        )


def _check_branch_norm(arrays: LazyArrays, known: Fields, config: Mapping[str, Any], where: object) -> None:
    """Raises InputError for vit_relpos models without LayerScale, unless it is stated whether their norms are before
    the branches or after them (*_rpn_*)."""
    told = "architecture" in config or "branch_norm" in known
    told |= "blocks.0.gamma_1" in arrays or "blocks.0.attn.q_bias" in arrays  # BEiT
    if not told and "blocks.0.ls1.gamma" not in arrays:
        raise InputError(
            f"{where}: models with relative positions and without LayerScale may have norms before the branches or "
            "after them (vit_relpos_*_rpn_*), with the same arrays; use --set branch_norm=before or after"
        )


def _assumptions(model: ViTConfig, stated: frozenset[str], fields: Fields) -> list[Assumption]:
    """An assumption for each field that neither the arrays nor a config contain."""
    clip = model.pre_norm and not model.patch_bias
    like_clip = " (this looks like CLIP: OpenAI's have 1e-5 and quick_gelu, OpenCLIP's 1e-5 and gelu)" if clip else ""
    assumed = [
        Assumption("pooling", model.pooling, "by the names of the arrays", "--set pooling=gap or another"),
        Assumption("activation", model.activation, f"timm's default{like_clip}"),
        Assumption("norm_epsilon", model.norm_epsilon, f"timm's default{like_clip}"),
        Assumption(
            "position_resampling", model.position_resampling, "as timm does", "--from meta for DINO, DINOv2, MAE, DeiT"
        ),
    ]
    if model.norm == "rms_norm":
        remedy = "--set norm=layer_norm for LayerNorm(bias=False)"
        assumed.append(Assumption("norm", model.norm, "as its norms have no biases", remedy))
    assumed += _of_same_arrays(model)
    return [one for one in assumed if one.field not in stated and one.field not in fields]


def _of_same_arrays(model: ViTConfig) -> list[Assumption]:
    """Assumptions about arguments of timm's classes that change neither the names nor the shapes of the arrays."""
    assumed = []
    if model.layer_scale is None and not model.parallel and model.relative_bias == "none":
        why = "as in timm's Block, not ResPostBlock"
        assumed.append(Assumption("branch_norm", model.branch_norm, why, "--set branch_norm=after for that"))
    if model.pooling in ("gap", "map") and (model.class_token or model.registers):
        why = "as timm pools the patches alone without pool_include_prefix"
        assumed.append(Assumption("pool_prefix", model.pool_prefix, why, "--set pool_prefix=true for it"))
    if model.mlp == "swiglu" and model.rope is None:
        why = "with SiLU in the first half, as in SwiGLU, not timm's GluMlp or another gate"
        assumed.append(Assumption("mlp", model.mlp, why, "ViTConfig has no other gate"))
    return assumed


def _without_positions(arrays: LazyArrays, prefix: int) -> LazyArrays:
    """The arrays with the positions of class and register tokens added to the tokens. The sums are the same up to
    rounding."""
    entries, pos, start = dict(arrays.entries), arrays.entries["pos_embed"], 0
    for name in ("cls_token", "reg_token"):
        if name in entries:
            token = entries[name]
            stop = start + token.shape[1]
            dtype = at_least_float32(token.dtype)
            entries[name] = token.then(partial(_add, pos, start, stop, dtype), token.shape, dtype)
            start = stop
    grid = (1, pos.shape[1] - prefix, pos.shape[2])
    entries["pos_embed"] = pos.then(lambda pos_1ND: pos_1ND[:, prefix:], grid, pos.dtype)
    return LazyArrays(entries)


def _add(pos: LazyArray, start: int, stop: int, dtype: str, token_1ND: np.ndarray) -> np.ndarray:
    return (token_1ND.astype("float64") + pos.read()[:, start:stop].astype("float64")).astype(dtype)


def write_checkpoint(checkpoint: Checkpoint) -> Writing:
    """The arrays under timm's names, and the config.json from which timm builds the model."""
    model, notes = checkpoint.config.model, []
    if (preprocessing := checkpoint.config.preprocessing) is None:
        notes.append("preprocessing: unknown, so timm uses ImageNet's mean and std")
    elif preprocessing.bit_depth != 8:
        notes.append("preprocessing: timm reads pixels of 8 bits, not 16")
    elif preprocessing.max_patches is not None:
        notes.append("preprocessing: timm resizes all images to one size, not to max_patches patches")
    elif preprocessing.exif_rotation:
        notes.append("preprocessing: timm does not rotate images by EXIF")
    elif preprocessing.crop_rounding != "half_even" and crop_rounding_matters(preprocessing):
        notes.append(
            f"preprocessing: timm rounds the position of the crop half to even (this model: crop_rounding "
            f"{preprocessing.crop_rounding}), which differs by one pixel if the margin is 3, 7, 11, ... pixels"
        )
    if model.position_embedding == "learned" and model.position_resampling != "bicubic_antialias":
        notes.append(f"position_resampling: timm uses bicubic_antialias, this model {model.position_resampling}")
    if model.stem_layers is not None:
        notes.append(_STEM_NOTE)
    texts = {"config.json": create_model.text_of(checkpoint.config)}
    arrays = write_by_rules(eva.rules(model, eva.names_for(model)), model, checkpoint.arrays)
    arrays = relative.with_timm_names(eva.with_frequencies_joined(arrays), model)
    return Writing(arrays, texts, tuple(notes))


_DINOV3: dict[str, Any] = {
    "rope": "dinov3",
    "position_embedding": "none",
    "registers": 4,
    "pooling": "gap",
    "layer_scale": 1.0,
    "key_bias": False,
    "norm_epsilon": 1e-5,
}
_EVA02: dict[str, Any] = {
    "rope": "eva02",
    "mlp": "swiglu",
    "mlp_norm": True,
    "attention_norm": True,
    "key_bias": False,
}
_PE: dict[str, Any] = {
    "rope": "pe",
    "pooling": "map",
    "pool_prefix": True,
    "pool_heads": 4,
    "pre_norm": True,
    "patch_bias": False,
    "norm_epsilon": 1e-5,
}

FORMAT = Format(
    "timm",
    recognizes=recognizes_source,
    read=read_source,
    anchors=(r"patch_embed\.proj\.weight", naflex.ANCHOR),
    determined=FROM_ARRAYS | {"class_token_position"},
    writer=Writer(("folder", ".safetensors", ".pth"), create_model.allowed_values, write_checkpoint),
    examples={
        "class token": GELU,
        "mean, fc_norm": {"pooling": "gap", "final_norm": "after_pooling", **GELU},
        "attention pooling (SigLIP)": SIGLIP,
        "registers, gated MLP, LayerScale (DINOv2)": {**GATED_DINOV2, "class_token_position": False},
        "distilled (DeiT)": {"distillation": "head", **GELU},
        "pre-norm, quick GELU (CLIP)": CLIP,
        "relative bias table (BEiT)": BEIT,
        "relative bias network": RELPOS,
        "relative bias shared, norms after branches": {**RELPOS, "relative_bias_shared": True, "branch_norm": "after"},
        "parallel blocks": {"parallel": True, **GELU},
        "qk-norm, no class position": {"qk_norm": True, "class_token_position": False, **GELU},
        "norms after the branches": {"branch_norm": "after", "pooling": "gap", "final_norm": "after_pooling", **GELU},
        "RMSNorm, gated MLP (AIMv2)": {**AIMV2, **GELU},
        "rotary positions (DINOv3)": {**_DINOV3, **GELU},
        "rotary positions, gated MLP with a norm (EVA-02)": {**_EVA02, **GELU},
        "rotary positions, attention pooling (PE)": {**_PE, **GELU},
        "rotary positions of a grid (rope-vit)": {"rope": "axial", "class_token_position": False, **GELU},
        "learned rotary frequencies (rope-vit)": {"rope": "mixed", "class_token_position": False, **GELU},
    },
)
