"""Fields of ViTConfig that the shapes of arrays determine, for formats whose names are mapped to timm's."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from math import isqrt, prod
from typing import Any

from vit_core.checkpoints.checkpoint import Assumption
from vit_core.checkpoints.formats.interface import Fields, assume_heads, layers_of, square_grid
from vit_core.errors import InputError
from vit_core.relative_positions import square_of

Size = tuple[int, int]


_TABLE = "relative_position_bias_table"


class Shapes:
    """Shapes by canonical name, and their file for messages."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], where: object) -> None:
        self.shapes, self.where = shapes, where

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def of(self, name: str, axes: int) -> tuple[int, ...]:
        """The shape of an array. Raises InputError if it is missing, has another number of axes, or an axis of length
        0."""
        if name not in self.shapes:
            raise InputError(f"{self.where}: missing {name}; expected a whole Vision Transformer")
        if len(shape := self.shapes[name]) != axes or not all(shape):
            raise InputError(f"{self.where}: {name} has shape {list(shape)}; expected {axes} axes, none of length 0")
        return shape


@dataclass(frozen=True)
class ShapeFields:
    """The fields of a config that the shapes of arrays show."""

    fields: dict[str, Any]
    prefix_rows: int
    """Rows of pos_embed before those of the grid."""
    assumptions: tuple[Assumption, ...]


def fields_from_shapes(
    shapes: Mapping[str, tuple[int, ...]], known: Fields, where: object, near: Size | None = None
) -> ShapeFields:
    """The fields of the config that canonical names and their shapes determine.

    known: fields that are known from elsewhere. where: the file, for messages. near: an image size that is used if the
    number of positions fits it. Raises InputError for arrays that are not a whole Vision Transformer.
    """
    s = Shapes(shapes, where)
    fields: dict[str, Any] = {**_stem(s), **_tokens(s), **_block(s), **_relative_bias(s), **_head(s, known)}
    width, patch = s.of("patch_embed.proj.weight", 4)[0], fields["patch_size"]
    fields |= {"width": width, "depth": layers_of(shapes, "blocks.")}
    heads, heads_assumed = _heads(s, width, fields, {**_heads_of_relative_bias(s), **known})
    image, prefix, image_assumed = _image(s, patch, _prefixes(fields), known, near)
    fields |= heads | {
        "image_size": image,
        "position_embedding": "learned" if "pos_embed" in s else "none",
        "class_token_position": bool(fields["class_token"] and prefix),
    }
    return ShapeFields(fields, prefix, (*image_assumed, *heads_assumed))


def _stem(s: Shapes) -> dict[str, Any]:
    """The fields of the patch embedding, and of the ResNet before it in hybrid models, if there is one."""
    channels, *kernel = s.of("patch_embed.proj.weight", 4)[1:]
    found: dict[str, Any] = {
        "patch_bias": "patch_embed.proj.bias" in s,
        "patch_norms": "patch_embed.norm_in.weight" in s,
        "embed_norm": "patch_embed.norm.weight" in s and "patch_embed.norm_in.weight" not in s,
    }
    backbone, stride = "patch_embed.backbone.", 1
    if any(name.startswith(backbone) for name in s.shapes):
        stages = [layers_of(s.shapes, f"{backbone}stages.{i}.blocks.") for i in range(8)]
        layers = tuple(takewhile(bool, stages))
        root = f"{backbone}stem.conv.weight" if layers else f"{backbone}conv.weight"
        stem_width, channels, *_ = s.of(root, 4)
        stride = 4 * 2 ** max(len(layers) - 1, 0)
        found |= {"stem_layers": layers, "stem_width": stem_width}
    return found | {"channels": channels, "patch_size": (kernel[0] * stride, kernel[1] * stride)}


def _tokens(s: Shapes) -> dict[str, Any]:
    distilled = "head" if "head_dist.weight" in s or "head.weight" not in s else "token"
    return {
        "class_token": "cls_token" in s,
        "distillation": distilled if "dist_token" in s else "none",
        "registers": s.of("reg_token", 3)[1] if "reg_token" in s else 0,
        "pre_norm": "norm_pre.weight" in s,
    }


def _block(s: Shapes) -> dict[str, Any]:
    mlp_dim = s.of("blocks.0.mlp.fc2.weight", 2)[1]
    gated = s.of("blocks.0.mlp.fc1.weight", 2)[0] == 2 * mlp_dim
    return {
        "mlp_dim": mlp_dim,
        "mlp": "swiglu" if gated else "mlp",
        "norm": "layer_norm" if "blocks.0.norm1.bias" in s else "rms_norm",
        "qkv_bias": "blocks.0.attn.qkv.bias" in s or "blocks.0.attn.q_bias" in s,
        "key_bias": "blocks.0.attn.q_bias" not in s,
        "qk_norm": "blocks.0.attn.q_norm.weight" in s,
        "attention_norm": "blocks.0.attn.norm.weight" in s,
        "mlp_norm": "blocks.0.mlp.norm.weight" in s,
        "proj_bias": "blocks.0.attn.proj.bias" in s,
        "layer_scale": 1.0 if "blocks.0.ls1.gamma" in s else None,
        "parallel": "blocks.0.norm2.weight" not in s and "blocks.0.norm1.weight" in s,
    }


def _relative_bias(s: Shapes) -> dict[str, Any]:
    """The fields of the relative position bias, which all blocks share or each block has."""
    place = _place_of_relative_bias(s)
    if place is None:
        return {"relative_bias": "none"}
    found: dict[str, Any] = {"relative_bias_shared": place == "shared_rel_pos"}
    if f"{place}.{_TABLE}" in s:
        return found | {"relative_bias": "table"}
    return found | {"relative_bias": "mlp", "relative_bias_dim": s.of(f"{place}.mlp.fc1.weight", 2)[0]}


def _heads_of_relative_bias(s: Shapes) -> dict[str, Any]:
    """The number of heads, if a relative position bias shows it; else empty."""
    place = _place_of_relative_bias(s)
    if place is None:
        return {}
    if f"{place}.{_TABLE}" in s:
        return {"heads": s.of(f"{place}.{_TABLE}", 2)[1]}
    return {"heads": s.of(f"{place}.mlp.fc2.weight", 2)[0]}


def _place_of_relative_bias(s: Shapes) -> str | None:
    places = ("shared_rel_pos", "blocks.0.attn.rel_pos")
    return next((place for place in places if any(name.startswith(f"{place}.") for name in s.shapes)), None)


def _head(s: Shapes, known: Fields) -> dict[str, Any]:
    classes, features = s.of("head.weight", 2) if "head.weight" in s else (0, 0)
    representation = None
    if "pre_logits.fc.weight" in s:
        representation, features = s.of("pre_logits.fc.weight", 2)
    after = "fc_norm.weight" in s
    # A missing norm is an error in the file, unless the model is known to have none.
    without = known.get("final_norm") == "none" and not after and "norm.weight" not in s
    pooling, pool_mlp_dim = "cls" if "cls_token" in s and not after else "gap", None
    if "attn_pool.latent" in s:
        pooling, pool_mlp_dim = "map", s.of("attn_pool.mlp.fc2.weight", 2)[1]
    elif features == 2 * s.of("patch_embed.proj.weight", 4)[0] and "cls_token" in s:
        pooling = "cls_gap"
    return {
        "num_classes": classes,
        "head_bias": "head.bias" in s or not classes,
        "representation": representation,
        "pooling": pooling,
        "pool_mlp_dim": pool_mlp_dim if pool_mlp_dim != s.of("blocks.0.mlp.fc2.weight", 2)[1] else None,
        "final_norm": "after_pooling" if after else "none" if without else "before_pooling",
    }


def _heads(s: Shapes, width: int, found: Fields, known: Fields) -> tuple[dict[str, Any], tuple[Assumption, ...]]:
    """The fields heads and head_dim, and the assumption of the heads. Norms of queries and keys show the width of a
    head."""
    inner = s.of("blocks.0.attn.proj.weight", 2)[1]
    head_dim = known.get("head_dim") or (s.of("blocks.0.attn.q_norm.weight", 1)[0] if found["qk_norm"] else None)
    assumed: tuple[Assumption, ...] = ()
    if head_dim and "heads" not in known:
        heads = inner // head_dim
    else:
        heads, assumed = assume_heads(width, found["depth"], found["mlp_dim"], known)
    return {"heads": heads, "head_dim": None if inner == width else inner // heads}, assumed


def _prefixes(found: Fields) -> list[int]:
    """Possible numbers of rows of pos_embed before those of the grid, the most common first: one for each token except
    registers; none; one for each token (timm's so150m)."""
    tokens = int(found["class_token"]) + (found["distillation"] != "none")
    return list(dict.fromkeys((tokens, 0, tokens + found["registers"])))


def _image(
    s: Shapes, patch: Size, prefixes: list[int], known: Fields, near: Size | None
) -> tuple[Size, int, tuple[Assumption, ...]]:
    """The image size, the rows of pos_embed before those of the grid and, if no size is known, the assumption of a
    square grid."""
    size, near = (_whole(one, patch) for one in (known.get("image_size"), near))
    if "pos_embed" not in s:
        if whole := size or near:
            return whole, 0, ()
        if square := _square_of_table(s, patch):
            return square, 0, (square_grid(square, (square[0] // patch[0], square[1] // patch[1])),)
        raise InputError(
            f"{s.where}: has no positions to compute the image size from; use --set image_size=HEIGHTxWIDTH"
        )
    rows = s.of("pos_embed", 3)[1]
    if known.get("class_token_position") is False:
        prefixes = [0]
    for one in (size,) if size else (near,):
        if one and (prefix := rows - prod(side // p for side, p in zip(one, patch, strict=True))) in prefixes:
            return one, prefix, ()
    if size:
        raise InputError(
            f"{s.where}: pos_embed has {rows} rows, which do not fit image_size {size} and patches of {patch} "
            f"(with {' or '.join(map(str, prefixes))} rows for other tokens)"
        )
    for prefix in prefixes:
        side = isqrt(max(rows - prefix, 0))
        if side and side * side == rows - prefix:
            image = (side * patch[0], side * patch[1])
            also = (
                f", with {prefix} of the {rows} positions before it" if prefix else f", which uses all {rows} positions"
            )
            return image, prefix, (square_grid(image, (side, side), also),)
    side = isqrt(max(rows - 1, 0))
    if side and side * side == rows - 1 and "cls_token" not in s:
        raise InputError(
            f"{s.where}: {rows} positions fit a {side}x{side} grid and a class token, but the file has no class token, "
            "as in ViTDet, whose window attention ViTConfig cannot express; if the grid is not square, use --set "
            "image_size=HEIGHTxWIDTH"
        )
    raise InputError(f"{s.where}: {rows} positions do not form a square grid; use --set image_size=HEIGHTxWIDTH")


def _square_of_table(s: Shapes, patch: Size) -> Size | None:
    """The image size for a square grid of h x h patches, whose relative position table has (2 h - 1)^2 rows; None if
    the table has another number of rows."""
    name = f"{_place_of_relative_bias(s)}.{_TABLE}"
    if name not in s:
        return None
    grid = square_of(s.of(name, 2)[0] - 3 * ("cls_token" in s))
    return (grid[0] * patch[0], grid[1] * patch[1]) if grid else None


def _whole(size: int | Size | None, patch: Size) -> Size | None:
    """The image size rounded down to whole patches. timm ignores the rest (SigLIP with patches of 14: 378 of 384
    pixels)."""
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return height // patch[0] * patch[0], width // patch[1] * patch[1]
