"""torchvision's VisionTransformer: the state dicts of vit_b_16, vit_b_32, vit_l_16, vit_l_32 and vit_h_14.

They say nothing of their images: the published ones of one architecture were trained with different transforms, so
none is assumed. Lineage: pytorch/vision, torchvision/models/vision_transformer.py.
"""

from collections.abc import Mapping
from typing import Any

from vit_core.checkpoint import Checkpoint, CheckpointConfig
from vit_core.config import ViTConfig
from vit_core.errors import InputError
from vit_core.formats.lineage import (
    Fields,
    Reading,
    Source,
    Writing,
    axes_of,
    call,
    heads_of,
    image_of,
    layers_of,
    not_carried,
    without_prefix,
)
from vit_core.formats.rules import Rule, renamed, rule
from vit_core.formats.rules import write as written
from vit_core.formats.widening import fixed
from vit_core.parameters import parameters

NAME = "torchvision"
CONTAINERS = (".pth", ".safetensors")

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
_OLDER = {"mlp.fc1": "mlp.linear_1", "mlp.fc2": "mlp.linear_2"}
"""Before pytorch/vision#6053; torchvision itself renames them when it loads."""


def recognises(source: Source) -> bool:
    """By the name of its layers."""
    return any(name.removeprefix("module.").startswith(_LAYER) for name in source.arrays)


def read(source: Source, fields: Fields) -> Reading:
    """From the shapes; the rest is the same in all its models."""
    arrays, where = without_prefix(source.arrays, "module."), source.path
    shapes = arrays.shapes
    if stem := next((name for name in shapes if name.startswith("conv_proj.conv_")), None):
        raise InputError(
            f"{where}: {stem} is of a convolution stem (conv_stem_configs, arXiv:2106.14881), for which the schema has "
            "no place; only patch projections are read"
        )
    width, channels, height, across = axes_of(shapes, "conv_proj.weight", 4, where)
    mlp = "mlp.linear_1" if f"{_LAYER}0.mlp.linear_1.weight" in shapes else "mlp.0"
    mlp_dim, _ = axes_of(shapes, f"{_LAYER}0.{mlp}.weight", 2, where)
    _, positions, _ = axes_of(shapes, "encoder.pos_embedding", 3, where)
    head, representation = shapes.get("heads.head.weight"), shapes.get("heads.pre_logits.weight")
    depth = layers_of(shapes, _LAYER)
    heads, note = heads_of(width, depth, mlp_dim, fields)
    found = {
        "image_size": image_of(positions - 1, (height, across), fields, where),
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
        left_out=r"^n_averaged$",  # how many steps an averaged model (torch.optim.swa_utils) has seen
        notes=(note,) if note else (),
    )


def rules(model: ViTConfig, *, older: bool = False) -> list[Rule]:
    """Names alone: nn.MultiheadAttention fuses query, key and value as timm does."""
    names = {**_NAMES, **(_OLDER if older else {})}
    return [rule(name, renamed(name, names, _LAYER)) for name in parameters(model)]


def holds(model: ViTConfig) -> Mapping[str, tuple[Any, ...]]:
    """One architecture, square in everything."""
    for field in ("image_size", "patch_size"):
        height, across = getattr(model, field)
        if height != across:
            raise InputError(f"torchvision's VisionTransformer is square: {field} {height}x{across} has no place there")
    return fixed(model, channels=(3,), activation=("gelu",), norm_epsilon=(1e-6,), representation=None)


def write(checkpoint: Checkpoint) -> Writing:
    """As the newest release names them."""
    model = checkpoint.config.model
    notes = [f"opens in torchvision.models.{call('VisionTransformer', arguments(model))}"]
    if not model.num_classes:
        part = "heads.head" if model.representation else "heads"
        notes.append(f"it has no head: set model.{part} = torch.nn.Identity() before loading")
    arrays = written(rules(model), model, checkpoint.arrays)
    return Writing(arrays, notes=(*notes, *not_carried(checkpoint, _RESAMPLING)))


def arguments(model: ViTConfig) -> dict[str, Any]:
    """Of torchvision's VisionTransformer, for a model that it holds."""
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
