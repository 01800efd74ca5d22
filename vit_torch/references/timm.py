"""Builds timm's VisionTransformer for a checkpoint: from its hub folder, or from a state dict."""

import importlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from vit_core.config import ViTConfig
from vit_torch.references.interface import Reference, load_state_dict

LIBRARY = "timm"


def open_reference(path: Path, model: ViTConfig) -> Reference | None:
    """timm's model with a checkpoint's weights; None for one that this adapter does not build."""
    if path.is_dir():
        timm = importlib.import_module("timm")
        opened: Reference = timm.create_model(f"local-dir:{path}", pretrained=True).double().eval()
        return opened
    return load_state_dict(path, lambda: timm_model(model)) if holds_all(model, IN_TIMM) else None


_POOLS = {"cls": "token", "gap": "avg", "map": "map"}
IN_TIMM: dict[str, tuple[Any, ...]] = {
    "mlp": ("mlp",),
    "distillation": ("none",),
    "patch_norms": (False,),
    "head_bias": (True,),
    **dict.fromkeys(("representation", "stem_layers", "head_dim"), (None,)),
    "pooling": tuple(_POOLS),
    "position_embedding": ("learned", "none"),
}
"""Field -> the values for which this adapter builds timm's VisionTransformer. (Its hybrids have other epsilons than
Google's.)"""


def holds_all(model: ViTConfig, fields: Mapping[str, tuple[Any, ...]]) -> bool:
    """Whether a model has only given values of some fields, and a patch bias exactly where it has no pre_norm."""
    coupled = model.patch_bias is not model.pre_norm
    return coupled and all(getattr(model, name) in values for name, values in fields.items())


def timm_model(model: ViTConfig) -> Any:
    """timm's VisionTransformer with the architecture of a config."""
    return importlib.import_module("timm.models.vision_transformer").VisionTransformer(
        img_size=model.image_size,
        patch_size=model.patch_size,
        in_chans=model.channels,
        num_classes=model.num_classes,
        global_pool=_POOLS[model.pooling],
        embed_dim=model.width,
        depth=model.depth,
        num_heads=model.heads,
        mlp_ratio=(model.mlp_dim + 0.5) / model.width,  # timm rounds the product down
        qkv_bias=model.qkv_bias,
        qk_norm=model.qk_norm,
        proj_bias=model.proj_bias,
        init_values=model.layer_scale,
        class_token=model.class_token,
        pos_embed="learn" if model.position_embedding == "learned" else "none",
        no_embed_class=not model.class_token_position,
        reg_tokens=model.registers,
        pre_norm=model.pre_norm,
        fc_norm=model.final_norm == "after_pooling",
        norm_layer=partial(nn.LayerNorm, eps=model.norm_epsilon),
        act_layer=model.activation,
    )
