"""Builds timm's VisionTransformer or Eva for a checkpoint: from its hub folder, or from a state dict."""

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial, partialmethod
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import torch
from torch import Tensor, nn

from vit_core.checkpoints.formats.timm.create_model import architecture, model_args
from vit_core.checkpoints.formats.timm.eva import is_eva
from vit_core.config import ViTConfig
from vit_torch.references.interface import Reference, in_float64, load_state_dict

LIBRARY = "timm"


def open_reference(path: Path, model: ViTConfig) -> Reference | None:
    """timm's model with a checkpoint's weights; None for one that this adapter does not build."""
    timm = importlib.import_module("timm")
    if path.is_dir():
        opened: nn.Module = timm.create_model(f"local-dir:{path}", pretrained=True).double().eval()
    elif is_eva(model) or model.relative_bias != "none" or model.parallel:
        opened = load_state_dict(path, lambda: registered_model(model))
    elif holds_all(model, IN_TIMM):
        opened = load_state_dict(path, lambda: timm_model(model))
    else:
        return None
    computed = is_eva(model) or model.relative_bias != "none"  # it has buffers that no file contains
    return partial(_outputs, opened) if computed else opened


def _outputs(model: nn.Module, x_BCHW: Tensor) -> Tensor:
    with float64_angles(model):
        outputs: Tensor = model(x_BCHW)
    return outputs


@contextmanager
def float64_angles(model: nn.Module) -> Iterator[None]:
    """Within it, a model of timm's in float64 computes the angles of its rotary positions, and the displacements of
    its relative ones, in float64 too, by timm's own formulas. They name float32 whatever the type of the model, which
    leaves 1e-8 in its outputs."""
    module = importlib.import_module("timm.layers.pos_embed_sincos")
    relative = importlib.import_module("timm.layers.pos_embed_rel")
    dinov3, double = module.RotaryEmbeddingDinoV3, {"dtype": torch.float64}
    with (
        in_float64(module, relative),
        patch.object(module, "_build_grid", partial(module._build_grid, **double)),
        patch.object(dinov3, "_compute_periods", partialmethod(dinov3._compute_periods, **double)),
    ):
        modules: list[Any] = list(model.modules())
        for one in modules:
            if hasattr(one, "init_non_persistent_buffers"):
                for name, buffer in list(one.named_buffers(recurse=False)):  # they may be on the meta device
                    dtype = torch.float64 if buffer.is_floating_point() else buffer.dtype
                    empty = torch.empty_like(buffer, device="cpu", dtype=dtype)
                    one.register_buffer(name, empty, persistent=name not in one._non_persistent_buffers_set)
                cast(Any, one).init_non_persistent_buffers()
        yield


_POOLS = {"cls": "token", "gap": "avg", "map": "map"}
IN_TIMM: dict[str, tuple[Any, ...]] = {
    "mlp": ("mlp",),
    "distillation": ("none",),
    "patch_norms": (False,),
    "embed_norm": (False,),
    "head_bias": (True,),
    **dict.fromkeys(("representation", "stem_layers", "head_dim"), (None,)),
    "pooling": tuple(_POOLS),
    "position_embedding": ("learned", "none"),
    "rope": (None,),
    "norm": ("layer_norm",),
    "branch_norm": ("before",),
    "key_bias": (True,),
}
"""Field -> the values for which this adapter builds timm's VisionTransformer. (Its hybrids have other epsilons than
Google's.)"""


def holds_all(model: ViTConfig, fields: Mapping[str, tuple[Any, ...]]) -> bool:
    """Whether a model has only given values of some fields, and a patch bias exactly where it has no pre_norm."""
    coupled = model.patch_bias is not model.pre_norm and not is_eva(model)
    return coupled and all(getattr(model, name) in values for name, values in fields.items())


def registered_model(model: ViTConfig) -> Any:
    """timm's model with the architecture of a config, by one of the architectures that timm has registered."""
    models = importlib.import_module("timm").models
    create = models.model_entrypoint(architecture(model))  # timm.create_model itself drops arguments of None
    return create(num_classes=model.num_classes, **model_args(model))


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
        scale_attn_norm=model.attention_norm,
        scale_mlp_norm=model.mlp_norm,
        proj_bias=model.proj_bias,
        init_values=model.layer_scale,
        class_token=model.class_token,
        pos_embed="learn" if model.position_embedding == "learned" else "none",
        no_embed_class=not model.class_token_position,
        reg_tokens=model.registers,
        pre_norm=model.pre_norm,
        final_norm=model.final_norm != "none",
        fc_norm=model.final_norm == "after_pooling",
        pool_include_prefix=model.pool_prefix,
        norm_layer=partial(nn.LayerNorm, eps=model.norm_epsilon),
        act_layer=model.activation,
    )
