"""Opens DINO's, DINOv2's and DINOv3's .pth files with timm's own loader. (Their own code is in no package.)"""

import importlib
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vit_core.config import ViTConfig
from vit_torch.references.interface import Reference

LIBRARY = "timm"
_BACKBONE, _HEAD = "backbone.", "linear_head."


def open_reference(path: Path, model: ViTConfig) -> Reference | None:
    """timm's model of a backbone; with the head of DINOv2's linear classifiers, which read class token and mean. None
    for a DINOv3 that timm does not compute."""
    if model.rope is not None and not _is_evas(model):
        return None
    stored = torch.load(path, map_location="cpu", weights_only=True)
    # timm adds the class token to its position as it loads, which would round in the stored type.
    state = {name: x.double() for name, x in stored.items()}
    if not model.num_classes:
        return _backbone(state, model)
    prefixed = {name.removeprefix(_BACKBONE): x for name, x in state.items() if name.startswith(_BACKBONE)}
    backbone = _backbone(prefixed, model)
    weight_LF, bias_L = (state[f"{_HEAD}{name}"] for name in ("weight", "bias"))

    def classify(x_BCHW: Tensor) -> Tensor:
        x_BND = backbone.forward_features(x_BCHW)
        mean_BD = x_BND[:, model.prefix_tokens :].mean(dim=1)
        return nn.functional.linear(torch.cat([x_BND[:, 0], mean_BD], dim=1), weight_LF, bias_L)

    return classify


def _backbone(state: dict[str, Tensor], model: ViTConfig) -> Any:
    timm = importlib.import_module("timm.models.vision_transformer")
    if model.rope is not None:
        return _eva(state, model, model.rope.base)
    gated: dict[str, Any] = {
        "mlp_layer": importlib.import_module("timm.layers").SwiGLUPacked,
        "act_layer": nn.SiLU,
        "mlp_ratio": (2 * model.mlp_dim + 0.5) / model.width,  # timm rounds the product down
    }
    plain: dict[str, Any] = {"mlp_ratio": (model.mlp_dim + 0.5) / model.width}
    built = timm.VisionTransformer(
        img_size=model.image_size,
        patch_size=model.patch_size,
        in_chans=model.channels,
        num_classes=0,
        embed_dim=model.width,
        depth=model.depth,
        num_heads=model.heads,
        qkv_bias=model.qkv_bias,
        proj_bias=model.proj_bias,
        init_values=model.layer_scale,
        reg_tokens=model.registers,
        no_embed_class=bool(model.registers),
        norm_layer=partial(nn.LayerNorm, eps=model.norm_epsilon),
        **(gated if model.mlp == "swiglu" else plain),
    )
    built = built.double().eval()
    built.load_state_dict(timm.checkpoint_filter_fn(state, built))
    return built


def _is_evas(model: ViTConfig) -> bool:
    """Whether timm's Eva, which its loader fills from DINOv3's files, has all that the model has. The loader knows them
    by their registers."""
    plain = (
        bool(model.registers)
        and model.norm == "layer_norm"
        and model.proj_bias
        and not (model.qkv_bias and model.key_bias)
    )
    return plain and model.rope is not None and model.rope.normalize == "separate"


def _eva(state: dict[str, Tensor], model: ViTConfig, base: float) -> Any:
    """timm's Eva, whose periods are those of the file."""
    timm, gated = importlib.import_module("timm.models.eva"), model.mlp == "swiglu"
    built = timm.Eva(
        img_size=model.image_size,
        patch_size=model.patch_size,
        in_chans=model.channels,
        num_classes=0,
        global_pool="token",
        embed_dim=model.width,
        depth=model.depth,
        num_heads=model.heads,
        mlp_ratio=(model.mlp_dim + 0.5) / model.width,
        qkv_bias=model.qkv_bias,
        init_values=model.layer_scale,
        swiglu_mlp=gated,
        swiglu_align_to=8,
        use_abs_pos_emb=False,
        use_rot_pos_emb=True,
        rope_type="dinov3",
        rope_temperature=base,
        rope_rotate_half=True,
        num_reg_tokens=model.registers,
        use_fc_norm=False,
        dynamic_img_size=True,
        norm_layer=partial(nn.LayerNorm, eps=model.norm_epsilon),
    )
    built = built.double().eval()
    built.load_state_dict(timm.checkpoint_filter_fn(dict(state), built))
    built.rope.periods = state["rope_embed.periods"]
    return built
