"""The format of jax-ml/bonsai's ViT (bonsai/models/vit/modeling.py): Orbax folders and msgpack files of its NNX state.

Its code uses the tanh approximation of GELU (jax.nn.gelu's default). The epsilon is an argument; its only predefined
architecture has 1e-12.
"""

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

_PATCHES = "pos_embeddings/projection"
_DETERMINED = FROM_ARRAYS | {"heads", "activation", "pooling", "class_token_position", "position_resampling"}


def recognizes_source(source: Source) -> bool:
    """Whether the arrays have the names of its patch projection and positions."""
    return f"{_PATCHES}/kernel" in source.arrays and "pos_embeddings/pos_embeddings" in source.arrays


def read_source(source: Source, fields: Fields) -> Reading:
    """Finds the config and the rules, from the shapes."""
    shapes, where = source.arrays.shapes, source.path
    height, across, channels, width = axes_of(shapes, f"{_PATCHES}/kernel", 4, where)
    _, heads, head_dim = axes_of(shapes, "layers/0/attention/query/kernel", 3, where)
    _, positions, _ = axes_of(shapes, "pos_embeddings/pos_embeddings", 3, where)
    image_size, assumed = assume_image_size(positions - 1, (height, across), fields, where)
    found = {
        "image_size": image_size,
        "patch_size": (height, across),
        "channels": channels,
        "width": width,
        "depth": layers_of(shapes, "layers/"),
        "heads": heads,
        "head_dim": None if heads * head_dim == width else head_dim,
        "mlp_dim": axes_of(shapes, "layers/0/linear1/kernel", 2, where)[1],
        "num_classes": shapes.get("classifier/kernel", (0, 0))[-1],
        "activation": "gelu_tanh",
        "norm_epsilon": 1e-12,
        "position_resampling": "bicubic_antialias",
    }
    model = ViTConfig.parse({**found, **fields}, str(where))
    if "norm_epsilon" not in fields:
        assumed = (*assumed, Assumption("norm_epsilon", model.norm_epsilon, "as in bonsai's vit_p16_224"))
    named = flax_rules(model, _modules(model), "bonsai's")
    return Reading(CheckpointConfig(model=model), named, source.arrays, r"(^|/)rngs/", assumptions=assumed)


def _modules(model: ViTConfig) -> dict[str, str]:
    """Our modules -> theirs."""
    modules = {
        "patch_embed.proj": _PATCHES,
        "cls_token": "pos_embeddings/cls_token",
        "pos_embed": "pos_embeddings/pos_embeddings",
        "norm": "ln",
        "head": "classifier",
    }
    for i in range(model.depth):
        ours, theirs = f"blocks.{i}", f"layers/{i}"
        modules |= {
            f"{ours}.norm1": f"{theirs}/layernorm_before",
            f"{ours}.attn.qkv": " ".join(f"{theirs}/attention/{part}" for part in ("query", "key", "value")),
            f"{ours}.attn.proj": f"{theirs}/attention/out",
            f"{ours}.norm2": f"{theirs}/layernorm_after",
            f"{ours}.mlp.fc1": f"{theirs}/linear1",
            f"{ours}.mlp.fc2": f"{theirs}/linear2",
        }
    return modules


FORMAT = Format(
    "bonsai",
    recognizes=recognizes_source,
    read=read_source,
    anchors=(rf"{_PATCHES}/kernel",),
    determined=_DETERMINED,
)
