"""Writes .pth files of DINO and DINOv2, and of DINOv3 by meta_dinov3: the state dict of a backbone, which their code
loads.

DINOv2's code has LayerScale, registers, gated MLPs, and a mask token that does not affect outputs. Models without these
and without a head are written for DINO's code. A head is that of DINOv2's linear classifiers (layers=1), over class
token and mean. Source: facebookresearch/dino, vision_transformer.py; facebookresearch/dinov2,
dinov2/models/vision_transformer.py and dinov2/hub.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_core.arrays import LazyArrays, convert
from vit_core.checkpoints.checkpoint import Checkpoint
from vit_core.checkpoints.formats import meta_dinov3
from vit_core.checkpoints.formats.allowed_values import ANY, Values, plain_vit_with
from vit_core.checkpoints.formats.interface import Writing, call, mlp_ratio, not_carried
from vit_core.checkpoints.formats.rules import Rule, rule, write_by_rules
from vit_core.config import ViTConfig
from vit_core.errors import InputError
from vit_core.parameters import parameters

_NAMES = ((r"^reg_token$", "register_tokens"),)
_GATED = ((r"\.mlp\.fc1\.", ".mlp.w12."), (r"\.mlp\.fc2\.", ".mlp.w3."))
_BACKBONE, _HEAD = "backbone.", "linear_head."
"""Prefixes in DINOv2's linear classifiers."""
_HUB = {
    (384, 12): "dinov2_vits14",
    (768, 12): "dinov2_vitb14",
    (1024, 24): "dinov2_vitl14",
    (1536, 40): "dinov2_vitg14",
}
"""Width and depth -> the entry of DINOv2's hub that builds such a model, at 518 pixels in patches of 14."""


def allowed_values(model: ViTConfig) -> Mapping[str, Values]:
    """Field -> the values that DINOv3's, DINOv2's or DINO's code can express: the one that has the features of the
    model. Raises InputError for sizes that the code does not support."""
    if model.rope is not None:
        return meta_dinov3.allowed_values(model)
    for field in ("image_size", "patch_size"):
        height, width = getattr(model, field)
        if height != width:
            raise InputError(
                f"--to meta: {field} {height}x{width}; DINO's and DINOv2's code treats the positions of an image that "
                "is not square as those of a square grid, and has only square patches"
            )
    if not _is_dinov2(model):
        return plain_vit_with(model, activation=("gelu",), norm_epsilon=(1e-6,), qkv_bias=(True, False))
    if model.mlp == "swiglu" and model.mlp_dim % 8:
        raise InputError(f"--to meta: mlp_dim {model.mlp_dim}; DINOv2's gated MLPs need a multiple of 8")
    return plain_vit_with(
        model,
        activation=("gelu",),
        norm_epsilon=(1e-6,),
        registers=ANY,
        mlp=("mlp", "swiglu"),
        layer_scale=(1.0,) if model.layer_scale is None else ANY,
        pooling=("cls_gap",) if model.num_classes else ("cls",),
        qkv_bias=(True, False),
        proj_bias=(True, False),
    )


def _is_dinov2(model: ViTConfig) -> bool:
    """Whether only DINOv2's code can compute the model. (DINO's code returns features, and its heads are in separate
    files.)"""
    return bool(model.num_classes or model.registers) or model.mlp == "swiglu" or model.layer_scale is not None


def write_checkpoint(checkpoint: Checkpoint) -> Writing:
    """The state dict of a backbone, or of a linear classifier that contains it."""
    if checkpoint.config.model.rope is not None:
        return meta_dinov3.write_checkpoint(checkpoint)
    model, dinov2 = checkpoint.config.model, _is_dinov2(checkpoint.config.model)
    prefix = _BACKBONE if dinov2 and model.num_classes else ""
    arrays = write_by_rules([_rule(name, model, prefix) for name in parameters(model)], model, checkpoint.arrays)
    notes = [f"opens in {opened_by(model, dinov2)}"]
    if dinov2:
        mask_1D = convert(np.zeros((1, model.width)), checkpoint.dtype)
        arrays = LazyArrays.with_array(arrays, f"{prefix}mask_token", mask_1D)
        notes.append(f"{prefix}mask_token: zeros, because it does not affect outputs")
    else:
        notes.append("DINO's names are timm's: read it again with --from meta")
    there = "bicubic_antialias" if model.registers else "dinov2"
    return Writing(arrays, notes=(*notes, *not_carried(checkpoint, there)))


def _rule(name: str, model: ViTConfig, prefix: str) -> Rule:
    if prefix and name.startswith("head."):
        return rule(name, _HEAD + name.removeprefix("head."))
    theirs = name
    for pattern, new in (*_NAMES, *(_GATED if model.mlp == "swiglu" else ())):
        theirs = re.sub(pattern, new, theirs)
    return rule(name, prefix + theirs)


def opened_by(model: ViTConfig, dinov2: bool) -> str:
    """The text of the call that builds the module for the file."""
    if not dinov2:
        built = call("vision_transformer.VisionTransformer", dino_arguments(model))
        return f"facebookresearch/dino: {built}, with norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6)"
    text = f"facebookresearch/dinov2: {call('DinoVisionTransformer', dinov2_arguments(model))}"
    entry = _HUB.get((model.width, model.depth))
    if entry and model.patch_size == (14, 14) and model.image_size == (518, 518) and model.registers in (0, 4):
        text += f" (torch.hub: {entry}{'_reg' if model.registers else ''}, pretrained=False)"
    if model.num_classes:
        text += f", within _LinearClassifierWrapper(backbone, torch.nn.Linear({model.pooled}, {model.num_classes}))"
    return text


def dino_arguments(model: ViTConfig) -> dict[str, Any]:
    """The arguments of DINO's VisionTransformer, except norm_layer=partial(LayerNorm, eps=1e-6)."""
    return {
        "img_size": [model.image_size[0]],
        "patch_size": model.patch_size[0],
        "in_chans": model.channels,
        "num_classes": 0,
        "embed_dim": model.width,
        "depth": model.depth,
        "num_heads": model.heads,
        "mlp_ratio": mlp_ratio(model.mlp_dim, model.width),
        "qkv_bias": model.qkv_bias,
    }


def dinov2_arguments(model: ViTConfig) -> dict[str, Any]:
    """The arguments of DINOv2's DinoVisionTransformer (blocks: NestedTensorBlock, or Block with
    MemEffAttention)."""
    gated = model.mlp == "swiglu"
    hidden = (
        model.mlp_dim * 3 // 2 if gated else model.mlp_dim
    )  # its SwiGLU uses two thirds of it, rounded up to a multiple of 8
    return {
        "img_size": model.image_size[0],
        "patch_size": model.patch_size[0],
        "in_chans": model.channels,
        "embed_dim": model.width,
        "depth": model.depth,
        "num_heads": model.heads,
        "mlp_ratio": mlp_ratio(hidden, model.width),
        "qkv_bias": model.qkv_bias,
        "proj_bias": model.proj_bias,
        "ffn_bias": model.proj_bias,
        "init_values": model.layer_scale or 1.0,
        "ffn_layer": "swiglufused" if gated else "mlp",
        "block_chunks": 0,
        "num_register_tokens": model.registers,
        "interpolate_antialias": model.registers > 0,
        "interpolate_offset": 0.0 if model.registers else 0.1,
    }
