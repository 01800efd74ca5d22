"""The format of torchvision's VisionTransformer: state dicts of vit_b_16, vit_b_32, vit_l_16, vit_l_32 and vit_h_14.

They do not describe preprocessing. None is assumed, because published models of one architecture were trained with
different transforms. Source: pytorch/vision, torchvision/models/vision_transformer.py.
"""

from collections.abc import Mapping
from typing import Any

from vit_core.arrays import LazyArrays
from vit_core.checkpoints.checkpoint import Checkpoint, CheckpointConfig
from vit_core.checkpoints.formats.allowed_values import ANY, Values, plain_vit_with
from vit_core.checkpoints.formats.example_models import GELU
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
    not_carried,
)
from vit_core.checkpoints.formats.linear_head import with_linear_head
from vit_core.checkpoints.formats.rules import Rule, renamed, rule, write_by_rules
from vit_core.config import ViTConfig
from vit_core.errors import InputError
from vit_core.parameters import parameters

_RESAMPLING = "bicubic_align_corners"
_LAYER = "encoder.layers.encoder_layer_"
_NAMES = {
    "patch_embed.proj": "conv_proj",
    "cls_token": "class_token",
    "pos_embed": "encoder.pos_embedding",
    "norm1": "ln_1",
    "attn.qkv.weight": "self_attention.in_proj_weight",
    "attn.qkv.bias": "self_attention.in_proj_bias",
    "attn.proj": "self_attention.out_proj",
    "norm2": "ln_2",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.3",
    "norm": "encoder.ln",
    "pre_logits.fc": "heads.pre_logits",
    "head": "heads.head",
}
_DETERMINED = FROM_ARRAYS | {
    *("image_size", "class_token_position", "pooling"),
    *("activation", "position_resampling"),
}
"""Its code accepts only square images, and has only one value for the other fields. The epsilon can be set by
`norm_layer`."""
_REPRESENTATION = "heads.pre_logits."
_OLDER = {"mlp.fc1": "mlp.linear_1", "mlp.fc2": "mlp.linear_2"}
"""Names before pytorch/vision#6053. torchvision renames them when it loads a file."""


def recognizes_source(source: Source) -> bool:
    """Whether the arrays have the names of its layers."""
    return any(name.startswith(_LAYER) for name in source.arrays)


def read_source(source: Source, fields: Fields) -> Reading:
    """Finds the config and the rules, from the shapes; other fields are the same in all its models. Raises InputError
    for a convolution stem."""
    where = source.path
    arrays, notes, used = _with_head(source)
    shapes = arrays.shapes
    if stem := next((name for name in shapes if name.startswith("conv_proj.conv_")), None):
        raise InputError(
            f"{where}: {stem} is of a convolution stem (conv_stem_configs, arXiv:2106.14881), which ViTConfig cannot "
            "express; only models with a patch projection can be read"
        )
    width, channels, height, across = axes_of(shapes, "conv_proj.weight", 4, where)
    mlp = "mlp.linear_1" if f"{_LAYER}0.mlp.linear_1.weight" in shapes else "mlp.0"
    mlp_dim, _ = axes_of(shapes, f"{_LAYER}0.{mlp}.weight", 2, where)
    _, positions, _ = axes_of(shapes, "encoder.pos_embedding", 3, where)
    head, representation = shapes.get("heads.head.weight"), shapes.get("heads.pre_logits.weight")
    depth = layers_of(shapes, _LAYER)
    heads, assumed = assume_heads(width, depth, mlp_dim, fields)
    found = {
        "image_size": assume_image_size(positions - 1, (height, across), fields, where)[0],
        "patch_size": (height, across),
        "channels": channels,
        "width": width,
        "depth": depth,
        "heads": heads,
        "mlp_dim": mlp_dim,
        "num_classes": head[0] if head else 0,
        "representation": representation[0] if representation else None,
        "activation": "gelu",
        "norm_epsilon": 1e-6,
        "position_resampling": _RESAMPLING,
    }
    model = ViTConfig.parse({**found, **fields}, str(where))
    return Reading(
        CheckpointConfig(model=model),
        rules(model, older=mlp == "mlp.linear_1"),
        arrays,
        notes=tuple(notes),
        assumptions=assumed,
        used=used,
    )


def _with_head(source: Source) -> tuple[LazyArrays, list[str], frozenset[str]]:
    """The arrays with a head, if a Linear replaces `heads` or is in a Sequential; notes; and the module of a head
    outside the model. (The representation layer is not a head.)"""
    shapes = source.arrays.shapes
    before = {name: entry for name, entry in source.arrays.entries.items() if name.startswith(_REPRESENTATION)}
    others = LazyArrays({name: entry for name, entry in source.arrays.entries.items() if name not in before})
    inputs = shapes.get(f"{_REPRESENTATION}weight") or shapes.get("conv_proj.weight") or (0,)
    arrays, notes, used = with_linear_head(others, source, inputs[0], "heads.head")
    return LazyArrays({**arrays.entries, **before}), notes, used


def rules(model: ViTConfig, *, older: bool = False) -> list[Rule]:
    """A rule for every parameter. Only names differ, because nn.MultiheadAttention joins query, key and value as timm
    does."""
    names = {**_NAMES, **(_OLDER if older else {})}
    return [rule(name, renamed(name, names, _LAYER)) for name in parameters(model)]


def allowed_values(model: ViTConfig) -> Mapping[str, Values]:
    """Field -> the values that torchvision's class can express. Raises InputError for images or patches that are not
    square."""
    for field in ("image_size", "patch_size"):
        height, across = getattr(model, field)
        if height != across:
            raise InputError(f"torchvision's VisionTransformer accepts only squares, found {field} {height}x{across}")
    return plain_vit_with(model, channels=(3,), activation=("gelu",), norm_epsilon=(1e-6,), representation=ANY)


def write_checkpoint(checkpoint: Checkpoint) -> Writing:
    """The arrays under the names of the newest release."""
    model = checkpoint.config.model
    notes = [f"opens in torchvision.models.{call('VisionTransformer', arguments(model))}"]
    if not model.num_classes:
        part = "heads.head" if model.representation else "heads"
        notes.append(f"it has no head: set model.{part} = torch.nn.Identity() before loading")
    arrays = write_by_rules(rules(model), model, checkpoint.arrays)
    return Writing(arrays, notes=(*notes, *not_carried(checkpoint, _RESAMPLING)))


def arguments(model: ViTConfig) -> dict[str, Any]:
    """The arguments of torchvision's VisionTransformer for a model that it can express."""
    return {
        "image_size": model.image_size[0],
        "patch_size": model.patch_size[0],
        "num_layers": model.depth,
        "num_heads": model.heads,
        "hidden_dim": model.width,
        "mlp_dim": model.mlp_dim,
        "num_classes": model.num_classes or 1,
        **({"representation_size": model.representation} if model.representation else {}),
    }


FORMAT = Format(
    "torchvision",
    recognizes=recognizes_source,
    read=read_source,
    anchors=(r"conv_proj(\.conv_.*)?\.weight",),
    determined=_DETERMINED,
    writer=Writer((".pth", ".safetensors"), allowed_values, write_checkpoint),
    examples={"class token": GELU},
)
