"""The format of image towers of open_clip and OpenAI's CLIP: `visual.conv1`, `visual.transformer.resblocks`,
`visual.proj`.

The projection into the space of images and texts is the head. OpenAI's files have the same names and shapes, but their
activation is quick_gelu, while open_clip's default is the exact GELU; open_clip_config.json states which. A timm tower
(`visual.trunk`) is read by the timm format. Source: mlfoundations/open_clip, src/open_clip/transformer.py.
"""

from collections.abc import Mapping
from math import prod
from typing import Any

from vit_core.arrays import LazyArrays
from vit_core.checkpoints.checkpoint import Assumption, Checkpoint, CheckpointConfig
from vit_core.checkpoints.formats.allowed_values import ANY, Values, plain_vit_with
from vit_core.checkpoints.formats.example_models import CLIP
from vit_core.checkpoints.formats.interface import (
    FROM_ARRAYS,
    Fields,
    Format,
    Reading,
    Source,
    Writer,
    Writing,
    assume_heads,
    assume_image_size,
    axes_of,
    call,
    layers_of,
    mlp_ratio,
    not_carried,
)
from vit_core.checkpoints.formats.open_clip import config_json
from vit_core.checkpoints.formats.rules import Rule, renamed, rule, write_by_rules
from vit_core.config import ViTConfig
from vit_core.errors import InputError
from vit_core.parameters import parameters

_RESAMPLING = "bicubic_antialias"
PREFIX = "visual."
_LAYERS = "transformer.resblocks."
_NAMES = {
    "patch_embed.proj": "conv1",
    "cls_token": "class_embedding",
    "pos_embed": "positional_embedding",
    "norm_pre": "ln_pre",
    "norm1": "ln_1",
    "attn.qkv.weight": "attn.in_proj_weight",
    "attn.qkv.bias": "attn.in_proj_bias",
    "attn.proj": "attn.out_proj",
    "ls1": "ls_1",
    "norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "ls2": "ls_2",
    "norm": "ln_post",
    "fc_norm": "ln_post",
    "head.weight": "proj",
}
_LAYOUTS = {"cls_token": "width", "pos_embed": "positions width", "head.weight": "width classes"}
_DETERMINED = FROM_ARRAYS - {"final_norm"} | {"class_token_position", "position_resampling"}
_STATED = frozenset(("heads", "activation", "norm_epsilon", "pooling", "final_norm", "image_size", "layer_scale"))
_OPENAI = frozenset(("input_resolution", "context_length", "vocab_size"))
"""Numbers that OpenAI's files contain in addition to the weights."""


def recognizes_source(source: Source) -> bool:
    """Whether the arrays have the names of its class token and its layers."""
    return "class_embedding" in source.arrays and any(name.startswith(_LAYERS) for name in source.arrays)


def read_source(source: Source, fields: Fields) -> Reading:
    """Finds the config and the rules, from the shapes and, if it is beside the weights, open_clip_config.json. Raises
    InputError for a tower that ViTConfig cannot express."""
    arrays, where, config = source.arrays, source.path, source.open_clip_config
    shapes = arrays.shapes
    if pooler := next((name for name in shapes if name.startswith("attn_pool")), None):
        raise InputError(
            f"{where}: {pooler} is of attentional pooling (CoCa's in open_clip, or the Perception Encoder's, which has "
            "rotary positions too), which ViTConfig cannot express; only towers that pool by the class token or by the "
            "mean can be read"
        )
    width, channels, height, across = axes_of(shapes, "conv1.weight", 4, where)
    depth, (mlp_dim, _) = layers_of(shapes, _LAYERS), axes_of(shapes, f"{_LAYERS}0.mlp.c_fc.weight", 2, where)
    positions, _ = axes_of(shapes, "positional_embedding", 2, where)
    stated = config_json.vision_fields(config, width, where)
    known = {**stated, **fields}
    heads, heads_assumed = assume_heads(width, depth, mlp_dim, known)
    size = _stated_image_size(source, positions, (height, across))
    image, size_assumed = assume_image_size(
        positions - 1, (height, across), {**({"image_size": size} if size else {}), **fields}, where
    )
    found: dict[str, Any] = {
        "image_size": image,
        "patch_size": (height, across),
        "channels": channels,
        "width": width,
        "depth": depth,
        "heads": heads,
        "mlp_dim": mlp_dim,
        "num_classes": axes_of(shapes, "proj", 2, where)[1] if "proj" in shapes else 0,
        "pre_norm": "ln_pre.weight" in shapes,
        "patch_bias": False,
        "head_bias": "proj" not in shapes,
        "layer_scale": 1.0 if f"{_LAYERS}0.ls_1.gamma" in shapes else None,
        "activation": "quick_gelu" if _is_openai(source) else "gelu",
        "norm_epsilon": 1e-5,
        "position_resampling": _RESAMPLING,
        **stated,
    }
    if f"{_LAYERS}0.ls_1.gamma" not in shapes:
        found["layer_scale"] = None
    model = ViTConfig.parse({**found, **fields}, str(where))
    preprocessing, notes = config_json.read_preprocessing(config, model, where)
    assumed = (*size_assumed, *heads_assumed, *(() if stated else _assumptions(source, model)))
    return Reading(
        CheckpointConfig(model=model, preprocessing=preprocessing),
        rules(model),
        arrays,
        notes=tuple(notes),
        assumptions=tuple(one for one in assumed if one.field not in fields),
        stated=_STATED if stated else frozenset(("image_size",) if size else ()),
        used=_OPENAI,
    )


def _is_openai(source: Source) -> bool:
    """Whether the file has the numbers of OpenAI's files, as plain numbers or as arrays without axes."""
    return {*source.facts, *source.beside} >= _OPENAI


def _stated_image_size(source: Source, positions: int, patch: tuple[int, int]) -> tuple[int, int] | None:
    """The image size in open_clip_config.json, rounded down to whole patches; None if it states none. Raises InputError
    if it does not fit the positions."""
    stated = config_json.image_size(source.open_clip_config, source.path)
    if stated is None:
        return None
    if prod(side // length for side, length in zip(stated, patch, strict=True)) != positions - 1:
        raise InputError(
            f"{source.path}: {config_json.FILE} states image_size {stated[0]}x{stated[1]}, but there are {positions} "
            f"positions for patches of {patch[0]}x{patch[1]}; give a config and weights of the same checkpoint"
        )
    height, width = (side // length * length for side, length in zip(stated, patch, strict=True))
    return height, width


def _assumptions(source: Source, model: ViTConfig) -> list[Assumption]:
    """An assumption for each field that no array shows, for files without open_clip_config.json."""
    why = "as in open_clip; OpenAI's models and open_clip's *-quickgelu have quick_gelu"
    if _is_openai(source):
        why = "as in OpenAI's models, whose files have the same additional numbers"
    return [
        Assumption("activation", model.activation, why, "--set activation=quick_gelu or gelu"),
        Assumption("norm_epsilon", model.norm_epsilon, "as in open_clip and in OpenAI's models"),
        Assumption("pooling", model.pooling, "as in CLIP; open_clip's pool_type 'avg' has the same arrays"),
        Assumption("final_norm", model.final_norm, "which makes no difference for the class token"),
    ]


def rules(model: ViTConfig, prefix: str = "") -> list[Rule]:
    """A rule for every parameter: names, axes of tokens and positions, and the transposed projection."""
    return [rule(name, prefix + renamed(name, _NAMES, _LAYERS), _LAYOUTS.get(name)) for name in parameters(model)]


def allowed_values(model: ViTConfig) -> Mapping[str, Values]:
    """Field -> the values that open_clip's VisionTransformer can express."""
    return plain_vit_with(
        model,
        channels=(3,),
        activation=("gelu", "quick_gelu"),
        norm_epsilon=ANY,
        pre_norm=(True, False),
        patch_bias=(False,),
        head_bias=(False,) if model.num_classes else (True, False),
        layer_scale=ANY,
        pooling=("cls", "gap"),
        final_norm=("before_pooling", "after_pooling"),
    )


def write_checkpoint(checkpoint: Checkpoint) -> Writing:
    """The image tower of a state dict of open_clip's CLIP."""
    model = checkpoint.config.model
    arrays = write_by_rules(rules(model, PREFIX), model, checkpoint.arrays)
    opens = f"opens (without '{PREFIX}') in open_clip.transformer.{call('VisionTransformer', arguments(model))}"
    notes = [opens, "the text tower is not in the file"]
    if not model.num_classes:
        notes.append("it has no projection: set model.proj = None before loading")
    if model.norm_epsilon != 1e-5:
        notes.append(f"norm_epsilon: pass norm_layer=functools.partial(LayerNorm, eps={model.norm_epsilon!r})")
    if model.activation == "quick_gelu":
        notes.append("activation: pass act_layer=open_clip.transformer.QuickGELU")
    return Writing(LazyArrays(arrays.entries), notes=(*notes, *not_carried(checkpoint, _RESAMPLING)))


def arguments(model: ViTConfig) -> dict[str, Any]:
    """The arguments of open_clip's VisionTransformer for a model that it can express, except those that are classes:
    activation and norm."""
    return {
        "image_size": model.image_size,
        "patch_size": model.patch_size,
        "width": model.width,
        "layers": model.depth,
        "heads": model.heads,
        "mlp_ratio": mlp_ratio(model.mlp_dim, model.width),
        "ls_init_value": model.layer_scale,
        "no_ln_pre": not model.pre_norm,
        "pool_type": "tok" if model.pooling == "cls" else "avg",
        "final_ln_after_pool": model.final_norm == "after_pooling",
        "output_dim": model.num_classes or 1,
    }


FORMAT = Format(
    "open_clip",
    recognizes=recognizes_source,
    read=read_source,
    anchors=(r"(?<!embeddings[./])class_embedding",),
    determined=_DETERMINED,
    writer=Writer((".safetensors", ".pth"), allowed_values, write_checkpoint),
    examples={"image tower of CLIP": {**CLIP, "head_bias": False}},
)
