"""The format of vit-pytorch's ViT and SimpleViT: lucidrains/vit-pytorch, vit_pytorch/vit.py, simple_vit.py and
vit_with_patch_dropout.py.

Patches are flattened with channels last and normalized before and after their projection. Arrays show neither heads nor
channels: heads of width 64 and RGB, the constructor's defaults, are assumed and noted. Files of version 0.10 (2021) and
later can be read; they are written as by version 1.16.1. Earlier versions have wrappers of PreNorm in names (until
1.4), and a batch axis in tokens and positions.
"""

from collections.abc import Mapping
from math import isqrt
from typing import Any

import numpy as np

from vit_core.arrays import LazyArrays, convert
from vit_core.checkpoints.checkpoint import Assumption, Checkpoint, CheckpointConfig
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
    assume_image_size,
    axes_of,
    call,
    layers_of,
    not_carried,
)
from vit_core.checkpoints.formats.rules import Rule, renamed, rule, write_by_rules
from vit_core.config import ViTConfig
from vit_core.errors import InexpressibleError, InputError
from vit_core.parameters import parameters

Shapes = Mapping[str, tuple[int, ...]]

_KNOWN = frozenset(("patch_size", "channels", "heads", "pooling", "image_size"))
"""Fields that are known from the arrays, unless they are assumed."""
_DETERMINED = FROM_ARRAYS - _KNOWN | {"activation", "norm_epsilon", "position_resampling", "class_token_position"}
_RESAMPLING = "bilinear_antialias"
"""Our choice: vit-pytorch does not resample positions."""
_LAYERS = "transformer.layers."
_NAMES = {
    "patch_embed.norm_in": "to_patch_embedding.1",
    "patch_embed.proj": "to_patch_embedding.2",
    "patch_embed.norm": "to_patch_embedding.3",
    "cls_token": "cls_token",
    "pos_embed": "pos_embedding",
    "norm1": "0.norm",
    "attn.qkv": "0.to_qkv",
    "attn.proj": "0.to_out.0",
    "norm2": "1.net.0",
    "mlp.fc1": "1.net.1",
    "mlp.fc2": "1.net.4",
    "norm": "transformer.norm",
    "head": "mlp_head",
}
_BEFORE_1_4 = {
    "attn.qkv": "0.fn.to_qkv",
    "attn.proj": "0.fn.to_out.0",
    "norm2": "1.norm",
    "mlp.fc1": "1.fn.net.0",
    "mlp.fc2": "1.fn.net.3",
}
_NORM_IN_HEAD = {"norm": "mlp_head.0", "head": "mlp_head.1"}
"""Before version 1.4, and in vit_with_patch_dropout.py."""
_BEFORE_1_0 = {"patch_embed.proj": "to_patch_embedding.1"}
_SIMPLE = {"attn.proj": "0.to_out", "mlp.fc2": "1.net.3", "head": "linear_head"}
_PATCH = "(patch_height patch_width channels)"
_LAYOUTS = {
    "patch_embed.norm_in.weight": _PATCH,
    "patch_embed.norm_in.bias": _PATCH,
    "patch_embed.proj.weight": f"width {_PATCH}",
    "cls_token": "one_b width",
    "pos_embed": "positions width",
}
_ROWS = ("cls_token", "pos_embed")
"""Arrays with a batch axis until version 1.16.1."""


def recognizes_source(source: Source) -> bool:
    """Whether the arrays have the names of its patch embedding and its layers."""
    names = list(source.arrays)
    return all(any(name.startswith(prefix) for name in names) for prefix in ("to_patch_embedding.", _LAYERS))


def read_source(source: Source, fields: Fields) -> Reading:
    """Finds the config and the rules, from the shapes and the defaults of vit-pytorch's constructors. Raises InputError
    for a model that ViTConfig cannot express."""
    arrays, where = source.arrays, source.path
    shapes, (names, layouts) = arrays.shapes, _generation(arrays.shapes)
    width, patch_dim = axes_of(shapes, f"{names['patch_embed.proj']}.weight", 2, where)
    qkv, _ = axes_of(shapes, f"{_LAYERS}0.{names['attn.qkv']}.weight", 2, where)
    mlp_dim, _ = axes_of(shapes, f"{_LAYERS}0.{names['mlp.fc1']}.weight", 2, where)
    projected = qkv != 3 * width or any(".to_out." in name for name in shapes)
    heads, head_dim, assumed = _heads(qkv // 3, fields, where) if projected else (1, width, ())
    channels, patch_size, patch_assumed = _patch(patch_dim, fields, where)
    tokens, size_assumed = _tokens(shapes, patch_size, fields, where)
    found: dict[str, Any] = {
        "patch_size": patch_size,
        "channels": channels,
        "width": width,
        "depth": layers_of(shapes, _LAYERS),
        "heads": heads,
        "head_dim": None if heads * head_dim == width else head_dim,
        "mlp_dim": mlp_dim,
        "num_classes": shapes.get(f"{names['head']}.weight", (0,))[0],
        "activation": "gelu",
        "norm_epsilon": 1e-5,
        "position_resampling": _RESAMPLING,
        "qkv_bias": False,
        "patch_norms": "to_patch_embedding.2.weight" in shapes,
        **tokens,
    }
    model = ViTConfig.parse({**found, **fields}, str(where))
    if model.class_token and model.pooling != "cls":
        raise InexpressibleError(f"{where}: ViTConfig cannot express vit-pytorch's mean over class token and patches")
    assumed = (*size_assumed, *assumed, *patch_assumed)
    if model.class_token and len(shapes["cls_token"]) == 3:
        why = "as with pool='cls'; pool='mean' before version 1.16 has the same arrays and cannot be read"
        assumed = (*assumed, Assumption("pooling", "cls", why))
    if not projected or "linear_head.weight" in shapes:  # for one head as wide as the model; SimpleViT has only weights
        arrays = _with_projections(arrays, names, model.depth, "biases" if projected else "all")
    named = rules(model, names, layouts)
    stated = _KNOWN - {one.field for one in assumed}
    return Reading(CheckpointConfig(model=model), named, arrays, assumptions=assumed, stated=stated)


def _generation(shapes: Shapes) -> tuple[dict[str, str], dict[str, str]]:
    """The names and layouts of the release that wrote these arrays."""
    names, layouts = dict(_NAMES), dict(_LAYOUTS)
    if any(".fn." in name for name in shapes):
        names |= _BEFORE_1_4
    if len(shapes.get("mlp_head.0.weight", ())) == 1:
        names |= _NORM_IN_HEAD
    if "to_patch_embedding.2.weight" not in shapes:
        names |= _BEFORE_1_0
    if "linear_head.weight" in shapes:
        names |= _SIMPLE
    batched = [name for name in _ROWS if len(shapes.get(names[name], ())) == 3]
    return names, {name: layout for name, layout in layouts.items() if name not in batched}


def _heads(inner: int, fields: Fields, where: object) -> tuple[Any, ...]:
    """The number and the width of the heads, whose total width is `inner`; and assumptions. Raises InputError if they
    cannot be computed."""
    if "heads" in fields:
        return fields["heads"], fields.get("head_dim") or inner // max(fields["heads"], 1), ()
    if "head_dim" in fields:
        return inner // max(fields["head_dim"], 1), fields["head_dim"], ()
    if inner % 64 or not inner:
        raise InputError(f"{where}: no array shows the heads, and {inner} is not a multiple of 64; use --set heads=N")
    why = "of width 64, vit-pytorch's default"
    return inner // 64, 64, (Assumption("heads", inner // 64, why, "--set heads=N for another number"),)


def _patch(patch_dim: int, fields: Fields, where: object) -> tuple[Any, ...]:
    """The channels and the size (height, width) of patches with `patch_dim` values; and assumptions. Raises InputError
    if they cannot be computed."""
    if "patch_size" in fields:
        size = fields["patch_size"]
        height, across = (size, size) if isinstance(size, int) else size
        return fields.get("channels", patch_dim // max(height * across, 1)), (height, across), ()
    for channels in (fields["channels"],) if "channels" in fields else (3, 1):
        side = isqrt(patch_dim // max(channels, 1))
        if side and channels * side**2 == patch_dim:
            square = Assumption("patch_size", (side, side), f"square, with {channels} channels")
            count = Assumption("channels", channels, f"for {patch_dim} values in a patch")
            return channels, (side, side), (square,) if "channels" in fields else (square, count)
    raise InputError(f"{where}: {patch_dim} values do not form a square patch; use --set patch_size=HEIGHTxWIDTH")


def _tokens(
    shapes: Shapes, patch_size: tuple[int, int], fields: Fields, where: object
) -> tuple[dict[str, Any], tuple[Assumption, ...]]:
    """The fields for class token, pooling, positions and image size; and assumptions. Raises InputError if the image
    size is unknown."""
    if "linear_head.weight" in shapes:
        if "image_size" not in fields:
            raise InputError(f"{where}: no array shows the image size of a SimpleViT; use --set image_size=PIXELS")
        return {"class_token": False, "pooling": "gap", "position_embedding": "sincos2d_big_vision"}, ()
    axes = {name: 3 if len(shapes.get(name, ())) == 3 else 2 for name in ("pos_embedding", "cls_token")}
    rows = axes_of(shapes, "pos_embedding", axes["pos_embedding"], where)[-2]
    class_token = 0 not in axes_of(shapes, "cls_token", axes["cls_token"], where)
    # vit_with_patch_dropout.py has positions of patches alone, without a batch axis, and a class token with one.
    positioned = class_token and axes["pos_embedding"] == axes["cls_token"]
    size, assumed = assume_image_size(rows - positioned, patch_size, fields, where)
    tokens = {"class_token": class_token, "class_token_position": positioned}
    return {"image_size": size, **tokens, "pooling": "cls" if class_token else "gap"}, assumed


def _with_projections(arrays: LazyArrays, names: Mapping[str, str], depth: int, missing: str) -> LazyArrays:
    """The arrays with attention projections that vit-pytorch omits. missing: "all" adds identities with zero biases,
    "biases" only zero biases."""
    like = arrays.entries[f"{names['patch_embed.proj']}.weight"]
    width = like.shape[0]
    for name in (f"{_LAYERS}{i}.{names['attn.proj']}" for i in range(depth)):
        if missing == "all":
            arrays = arrays.with_array(f"{name}.weight", convert(np.eye(width), like.dtype))
        arrays = arrays.with_array(f"{name}.bias", convert(np.zeros(width), like.dtype))
    return arrays


def rules(model: ViTConfig, names: Mapping[str, str] = _NAMES, layouts: Mapping[str, str] = _LAYOUTS) -> list[Rule]:
    """A rule for every parameter: names, and the order of the values of a patch."""
    return [rule(name, renamed(name, names, _LAYERS), layouts.get(name)) for name in parameters(model)]


def allowed_values(model: ViTConfig) -> Mapping[str, Values]:
    """Field -> the values that vit-pytorch's ViT can express. Raises InputError for one head as wide as the model."""
    if model.heads == 1 and model.head_width == model.width:
        raise InputError("vit-pytorch has no attention projection for one head as wide as the model")
    mean = {"class_token": (False,), "class_token_position": (False,), "pooling": ("gap",)}
    return plain_vit_with(
        model,
        head_dim=ANY,
        qkv_bias=(False,),
        patch_norms=(True,),
        activation=("gelu",),
        norm_epsilon=(1e-5,),
        **({} if model.class_token else mean),
    )


def write_checkpoint(checkpoint: Checkpoint) -> Writing:
    """The arrays under the names of the newest release."""
    model = checkpoint.config.model
    arrays = write_by_rules(rules(model), model, checkpoint.arrays)
    if not model.class_token:
        dtype = arrays.entries["pos_embedding"].dtype
        arrays = arrays.with_array("cls_token", convert(np.zeros((0, model.width)), dtype))
    opens = f"opens in vit_pytorch.{call('ViT', arguments(model))}"
    return Writing(arrays, notes=(opens, *not_carried(checkpoint, _RESAMPLING)))


def arguments(model: ViTConfig) -> dict[str, Any]:
    """The arguments of vit-pytorch's ViT for a model that it can express."""
    return {
        "image_size": model.image_size,
        "patch_size": model.patch_size,
        "num_classes": model.num_classes,
        "dim": model.width,
        "depth": model.depth,
        "heads": model.heads,
        "dim_head": model.head_width,
        "mlp_dim": model.mlp_dim,
        "pool": "cls" if model.class_token else "mean",
        "channels": model.channels,
    }


FORMAT = Format(
    "lucidrains",
    recognizes=recognizes_source,
    read=read_source,
    anchors=(r"to_patch_embedding\.[0-9]\.weight",),
    determined=_DETERMINED,
    writer=Writer((".pth", ".safetensors"), allowed_values, write_checkpoint),
    examples={"class token": {"patch_norms": True, "qkv_bias": False, "norm_epsilon": 1e-5, **GELU}},
)
