"""Fields of ViTConfig that the examples of several formats share."""

from typing import Any

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
