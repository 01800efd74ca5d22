"""The format of jimm's image towers (VisionTransformer, CLIP, SigLIP): Orbax folders and msgpack files of NNX states.

In every model the norms of blocks have epsilon 1e-5; the last norm has 1e-12 in VisionTransformer, 1e-6 in SigLIP and
1e-5 in CLIP. ViTConfig has one epsilon for all norms, so the user must choose it for VisionTransformer and SigLIP.
Source: Locamage/jimm and pythoncrazy/jimm, src/jimm/common/{vit,transformer}.py and models/, 2025.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vit_core.checkpoints.checkpoint import Assumption, CheckpointConfig
from vit_core.checkpoints.formats.google.names import flax_rules
from vit_core.checkpoints.formats.interface import (
    FROM_ARRAYS,
    Fields,
    Format,
    Reading,
    Source,
    assume_image_size,
    axes_of,
    layers_of,
)
from vit_core.config import ViTConfig
from vit_core.errors import InputError

_DETERMINED = FROM_ARRAYS | {"heads", "pooling", "class_token_position", "final_norm"}
_LEFT_OUT = r"(^|/)rngs/"
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class _Tower:
    """The names of the modules of a tower."""

    prefix: str
    """Prefix of the tower's names, in a model that has other parts too."""
    layers: str
    norm: str

    @classmethod
    def of(cls, shapes: Shapes) -> "_Tower":
        """The names in a file. The prefix is `encoder/` in VisionTransformer and `vision_model/` in CLIP and SigLIP.
        Before July 2025 there was no prefix, and `encoder` was the name of the blocks."""
        for prefix in ("encoder/", "vision_model/"):
            if f"{prefix}patch_embeddings/kernel" in shapes:
                return cls(prefix, f"{prefix}transformer/blocks/layers/", f"{prefix}ln_post")
        if any(name.startswith("encoder/blocks/") for name in shapes):
            return cls("", "encoder/blocks/layers/", "final_norm")
        return cls("", "transformer/blocks/layers/", "ln_post")


def recognizes_source(source: Source) -> bool:
    """Whether the arrays have the names of its patch projection and blocks."""
    tower = _Tower.of(source.arrays.shapes)
    return f"{tower.prefix}patch_embeddings/kernel" in source.arrays and any(
        name.startswith(tower.layers) for name in source.arrays
    )


def read_source(source: Source, fields: Fields) -> Reading:
    """Finds the config and the rules, from the shapes. Raises InputError if the model has two epsilons and `fields`
    does not choose one."""
    shapes, where = source.arrays.shapes, source.path
    tower = _Tower.of(shapes)
    height, across, channels, width = axes_of(shapes, f"{tower.prefix}patch_embeddings/kernel", 4, where)
    _, heads, head_dim = axes_of(shapes, f"{tower.layers}0/attn/query/kernel", 3, where)
    _, positions, _ = axes_of(shapes, f"{tower.prefix}position_embeddings", 3, where)
    class_token, pre_norm = f"{tower.prefix}cls_token" in shapes, f"{tower.prefix}ln_pre/scale" in shapes
    image_size, assumed = assume_image_size(positions - class_token, (height, across), fields, where)
    head = "visual_projection" if "visual_projection/kernel" in shapes else "classifier"
    found: dict[str, Any] = {
        "image_size": image_size,
        "patch_size": (height, across),
        "channels": channels,
        "width": width,
        "depth": layers_of(shapes, tower.layers),
        "heads": heads,
        "head_dim": None if heads * head_dim == width else head_dim,
        "mlp_dim": axes_of(shapes, f"{tower.layers}0/mlp/layers/0/kernel", 2, where)[1],
        "num_classes": shapes.get(f"{head}/kernel", (0, 0))[-1],
        "class_token": class_token,
        "pooling": "cls" if class_token else "map",
        "pre_norm": pre_norm,
        "patch_bias": f"{tower.prefix}patch_embeddings/bias" in shapes,
        "head_bias": f"{head}/kernel" not in shapes or f"{head}/bias" in shapes,
        "activation": "quick_gelu" if pre_norm else "gelu_tanh",
        "norm_epsilon": 1e-5,
    }
    if not pre_norm and "norm_epsilon" not in fields:
        last = "1e-12" if class_token else "1e-6"
        raise InputError(
            f"{where}: jimm's model has LayerNorm's epsilon 1e-5 in the blocks and {last} in the last norm, and "
            "ViTConfig has one for all norms; use --set norm_epsilon=1e-5, which changes the outputs by about 1e-5"
        )
    model = ViTConfig.parse({**found, **fields}, str(where))
    assumed = (*assumed, *(one for one in _assumptions(model) if one.field not in fields))
    left_out = rf"{_LEFT_OUT}|^(?!{tower.prefix}|{tower.layers}|{tower.norm}|{head}/)"
    named = flax_rules(model, _modules(model, tower, head), "jimm's")
    return Reading(CheckpointConfig(model=model), named, source.arrays, left_out, assumptions=assumed)


def _assumptions(model: ViTConfig) -> list[Assumption]:
    why = "as in jimm's CLIP" if model.pre_norm else "jimm's default"
    return [
        Assumption("activation", model.activation, why, "--set activation=quick_gelu or gelu_tanh"),
        Assumption("norm_epsilon", model.norm_epsilon, "as in jimm's CLIP"),
        Assumption("position_resampling", model.position_resampling, "chosen because jimm does not resample"),
    ]


def _modules(model: ViTConfig, tower: _Tower, head: str) -> dict[str, str]:
    """Our modules -> theirs."""
    pool = f"{tower.prefix}MAPHead"
    modules = {
        "patch_embed.proj": f"{tower.prefix}patch_embeddings",
        "cls_token": f"{tower.prefix}cls_token",
        "pos_embed": f"{tower.prefix}position_embeddings",
        "norm_pre": f"{tower.prefix}ln_pre",
        "norm": tower.norm,
        "attn_pool.latent": f"{pool}/probe",
        "attn_pool.q": f"{pool}/attn/query",
        "attn_pool.kv": f"{pool}/attn/key {pool}/attn/value",
        "attn_pool.proj": f"{pool}/attn/out",
        "attn_pool.norm": f"{pool}/layernorm",
        "attn_pool.mlp.fc1": f"{pool}/mlp/layers/0",
        "attn_pool.mlp.fc2": f"{pool}/mlp/layers/2",
        "head": head,
    }
    for i in range(model.depth):
        ours, theirs = f"blocks.{i}", f"{tower.layers}{i}"
        modules |= {
            f"{ours}.norm1": f"{theirs}/norm1",
            f"{ours}.attn.qkv": " ".join(f"{theirs}/attn/{part}" for part in ("query", "key", "value")),
            f"{ours}.attn.proj": f"{theirs}/attn/out",
            f"{ours}.norm2": f"{theirs}/norm2",
            f"{ours}.mlp.fc1": f"{theirs}/mlp/layers/0",
            f"{ours}.mlp.fc2": f"{theirs}/mlp/layers/3",
        }
    return modules


FORMAT = Format(
    "jimm",
    recognizes=recognizes_source,
    read=read_source,
    anchors=(r"(?:encoder/|vision_model/)?patch_embeddings/kernel",),
    determined=_DETERMINED,
)
