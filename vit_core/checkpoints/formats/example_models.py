"""Fields of ViTConfig for the formats' examples: sets that several examples share, and a small plain model."""

from collections.abc import Mapping
from typing import Any

from vit_core.checkpoints.checkpoint import CheckpointConfig
from vit_core.config import ViTConfig
from vit_core.preprocess import Preprocessing

GELU: dict[str, Any] = {"activation": "gelu"}
CLIP: dict[str, Any] = {"pre_norm": True, "patch_bias": False, "activation": "quick_gelu", "norm_epsilon": 1e-5}
SIGLIP: dict[str, Any] = {"pooling": "map", "class_token": False}
DINOV2: dict[str, Any] = {"layer_scale": 1.0, **GELU}
DINOV3: dict[str, Any] = {
    "rope": "dinov3", "position_embedding": "none", "layer_scale": 1.0, "key_bias": False, "norm_epsilon": 1e-5,
    "num_classes": 0, **GELU,
}  # fmt: skip
GATED_DINOV2: dict[str, Any] = {**DINOV2, "mlp": "swiglu", "mlp_dim": 96, "registers": 4}
BEIT: dict[str, Any] = {
    "relative_bias": "table", "position_embedding": "none", "key_bias": False, "layer_scale": 0.1, **GELU
}  # fmt: skip
RELPOS: dict[str, Any] = {
    "relative_bias": "mlp", "position_embedding": "none", "class_token": False, "pooling": "gap", **GELU
}  # fmt: skip
AIMV2: dict[str, Any] = {
    "class_token": False,
    "pooling": "gap",
    "norm": "rms_norm",
    "norm_epsilon": 1e-5,
    "embed_norm": True,
    "mlp": "swiglu",
    "qkv_bias": False,
    "proj_bias": False,
}
VIT5: dict[str, Any] = {
    "rope": "vit5", "registers": 4, "norm": "rms_norm", "qk_norm": True, "qkv_bias": False,
    "class_token_position": False, "layer_scale": 1.0, **GELU,
}  # fmt: skip
_PLAIN: dict[str, Any] = {
    "image_size": 16, "patch_size": 4, "width": 128, "depth": 2, "heads": 2, "mlp_dim": 256, "num_classes": 5
}  # fmt: skip


def example(fields: Mapping[str, Any]) -> CheckpointConfig:
    """The config of an example: a small plain model with these fields changed. "max_patches" is a field of
    Preprocessing, the others are fields of ViTConfig."""
    model = ViTConfig(**{**_PLAIN, **{name: value for name, value in fields.items() if name != "max_patches"}})
    if "max_patches" not in fields:
        return CheckpointConfig(model=model)
    sizes = {"image_size": model.image_size, "patch_size": model.patch_size, "max_patches": fields["max_patches"]}
    return CheckpointConfig(model=model, preprocessing=Preprocessing(**sizes))
