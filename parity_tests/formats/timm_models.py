"""Small models of timm's own making, and what their modules say of the config: what timm's files are tested on."""

from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import GluMlp, StdConv2dSame, pad_same
from timm.models import save_for_hf
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import nn

from parity_tests.formats.torch_models import randomised

TINY: dict[str, Any] = {"embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 1.5, "num_classes": 5}
SQUARE: dict[str, Any] = {"img_size": 12, "patch_size": 4, **TINY}
OBLONG: dict[str, Any] = {**SQUARE, "img_size": (8, 12)}
GATED = {"mlp_ratio": 3.0}

# fmt: off
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "token": ("vit_base_patch16_224", {}),
    "avg, fc_norm": ("vit_base_patch16_224", {"global_pool": "avg"}),
    "avg": ("vit_base_patch16_224", {"global_pool": "avg", "fc_norm": False}),
    "token, fc_norm": ("vit_base_patch16_224", {"fc_norm": True}),
    "map": ("vit_base_patch16_224", {"global_pool": "map"}),
    "no class token": ("vit_medium_patch16_gap_256", {}),
    "no_embed_class": ("vit_base_patch16_224", {"no_embed_class": True}),
    "registers": ("vit_base_patch14_reg4_dinov2", {}),
    "registers, avg": ("vit_base_patch16_reg4_gap_256", {}),
    "registers with positions": ("vit_so150m_patch16_reg4_gap_256", {}),
    "registers with positions, map": ("vit_so150m_patch16_reg4_map_256", {}),
    "registers and class token with positions": ("vit_base_patch16_224", {"reg_tokens": 3}),
    "DeiT III": ("deit3_base_patch16_224", {}),
    "distilled DeiT": ("deit_base_distilled_patch16_224", {}),
    "distilled DeiT, no heads": ("deit_base_distilled_patch16_224", {"num_classes": 0}),
    "qk_norm": ("vit_base_patch16_224", {"qk_norm": True}),
    "SwiGLU": ("vit_giant_patch14_dinov2", GATED),
    "SwiGLU, registers": ("vit_giant_patch14_reg4_dinov2", {**GATED, "num_classes": 0}),
    "CLIP": ("vit_base_patch16_clip_224", {}),
    "CLIP, quick GELU": ("vit_base_patch16_clip_quickgelu_224", {}),
    "SigLIP": ("vit_base_patch16_siglip_224", {"num_classes": 0}),
    "SigLIP 2": ("vit_so400m_patch16_siglip_256", {}),
    "MAE": ("vit_base_patch16_224", {"num_classes": 0}),
    "no proj_bias": ("vit_base_patch16_224", {"proj_bias": False}),
    "no qkv_bias": ("vit_base_patch16_224", {"qkv_bias": False}),
    "tanh gelu": ("vit_base_patch16_224", {"act_layer": "gelu_tanh"}),
    "no positions": ("vit_base_patch16_224", {"pos_embed": "none"}),
    "patch not square": ("vit_base_patch16_224", {"patch_size": (4, 3)}),
    "one channel": ("vit_base_patch16_224", {"in_chans": 1}),
    "depth 5": ("vit_base_patch16_224", {"depth": 5}),
    "heads of 12": ("vit_base_patch16_224", {"num_heads": 2}),
    "odd mlp": ("vit_base_patch16_224", {"mlp_ratio": 37 / 24}),
    "AIMv2": ("aimv2_large_patch14_224", {}),
    "norms after": ("vit_base_patch16_rpn_224", {}),
    "BEiT-3": ("beit3_base_patch16_224", {}),
    "no final norm": ("vit_base_patch16_radio_v3", {}),
    "RMSNorm, pooled with registers": ("test_vit4", {"pool_include_prefix": True, "no_embed_class": True}),
    "attention pooling with registers": ("test_vit3", {"no_embed_class": True}),
}
ADDED = {name for name in MODELS if "with positions" in name}
"""Where positions are added to tokens on reading, which timm cannot be given back."""
# fmt: on


def built(name: str, **more: Any) -> VisionTransformer:
    architecture, options = MODELS[name]
    return randomised(timm.create_model(architecture, **{**OBLONG, **options, **more}))


def saved(model: nn.Module, folder: Path) -> Path:
    """As timm puts models on the hub."""
    save_for_hf(model, folder, safe_serialization=True)
    return folder


def fields_of(model: VisionTransformer) -> dict[str, Any]:
    """Fields of ViTConfig, from the modules of a live timm model."""
    block, patch = model.blocks[0], model.patch_embed
    assert type(block) is Block
    assert type(block.attn) is Attention
    epsilons = {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)}
    assert len(epsilons) == 1
    distilled = hasattr(model, "dist_token")
    prefix = bool(model.has_class_token and not model.no_embed_class and model.pos_embed is not None)
    gated = isinstance(block.mlp, GluMlp)
    acts = {type(module.act).__name__ for name, module in model.named_modules() if name.endswith("mlp")}
    assert len(acts) == 1
    last = model.blocks[-1]
    return {
        "image_size": tuple(patch.img_size),
        "patch_size": tuple(patch.patch_size),
        "channels": model.in_chans,
        "width": model.embed_dim,
        "depth": len(model.blocks),
        "heads": block.attn.num_heads,
        "mlp_dim": block.mlp.fc2.in_features,
        "mlp": "swiglu" if gated else "mlp",
        "num_classes": model.num_classes,
        "pooling": {"token": "cls", "avg": "gap", "map": "map"}[model.global_pool],
        "class_token": model.has_class_token,
        "class_token_position": prefix,
        "distillation": "head" if distilled else "none",
        "registers": model.num_reg_tokens,
        "position_embedding": "none" if model.pos_embed is None else "learned",
        "final_norm": "before_pooling" if isinstance(model.fc_norm, nn.Identity) else "after_pooling",
        "pre_norm": not isinstance(model.norm_pre, nn.Identity),
        "activation": {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu", "SiLU": "gelu"}[acts.pop()],
        "norm_epsilon": epsilons.pop(),
        "qkv_bias": block.attn.qkv.bias is not None,
        "qk_norm": not isinstance(block.attn.q_norm, nn.Identity),
        "proj_bias": block.attn.proj.bias is not None and block.mlp.fc1.bias is not None,
        "patch_bias": patch.proj.bias is not None,
        "layer_scale": getattr(block.ls1, "init_values", None),
        "dropout": model.pos_drop.p,
        "attention_dropout": block.attn.attn_drop.p,
        "stochastic_depth": round(getattr(last.drop_path1, "drop_prob", 0.0), 6),  # of a linspace in float32
    }


def with_googles_epsilons(model: Any) -> Any:
    """A hybrid of timm's whose stem has the epsilons of Google's code, with which its weights were trained."""
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            module.eps = 1e-6
        elif isinstance(module, StdConv2dSame):
            module.forward = partial(_standardized_as_googles, module)
    return model


def _standardized_as_googles(convolution: nn.Conv2d, x_BIHW: torch.Tensor) -> torch.Tensor:
    """timm's forward with Google's epsilon: beside the deviation, not in the variance."""
    weight_OIHW = convolution.weight - convolution.weight.mean((1, 2, 3), keepdim=True)
    weight_OIHW = weight_OIHW / (weight_OIHW.std((1, 2, 3), correction=0, keepdim=True) + 1e-5)
    x_BIHW = pad_same(x_BIHW, convolution.kernel_size, convolution.stride) if convolution.same_pad else x_BIHW
    return nn.functional.conv2d(x_BIHW, weight_OIHW, None, convolution.stride, convolution.padding)
