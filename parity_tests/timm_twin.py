"""The network of a config by timm's constructor, for the tests that hold the twins against it."""

from functools import partial
from typing import Any

from timm.layers import Attention, HybridEmbed, Mlp, PatchEmbed, QuickGELU, StdConv2dSame, SwiGLUPacked
from timm.layers.padding import pad_same
from timm.models.deit import VisionTransformerDistilled
from timm.models.resnetv2 import ResNetV2, create_resnetv2_stem
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vit_core import ViTConfig
from vit_torch.stem import NORM_EPSILON, WEIGHT_EPSILON

SMALL = ViTConfig(image_size=(8, 12), patch_size=4, width=24, depth=2, heads=3, mlp_dim=36, num_classes=5)
NO_TOKEN: dict[str, Any] = {"class_token": False, "class_token_position": None}
AFTER = {"final_norm": "after_pooling"}

STEM = {"image_size": (16, 32), "patch_size": 8}


class HeadsOf5(Attention):
    """timm's attention with the width of a head that its VisionTransformer has no argument for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, attn_head_dim=5, **kwargs)


def embed(config: ViTConfig, bias: bool, **options: Any) -> nn.Module:
    """timm's patches; `bias` is what its VisionTransformer makes of pre_norm."""
    if config.stem_layers is None:
        return PatchEmbed(bias=config.patch_bias, **options)
    root = {"stem_type": "same", "conv_layer": GoogleConv, "preact": False}
    if config.stem_layers:
        backbone = ResNetV2(config.stem_layers, num_classes=0, global_pool="", stem_chs=config.stem_width, **root)
    else:
        backbone = create_resnetv2_stem(config.channels, config.stem_width, **root)
    for module in backbone.modules():
        if isinstance(module, nn.GroupNorm):
            module.eps = NORM_EPSILON
    options["patch_size"] = config.patch_kernel
    return HybridEmbed(backbone, bias=config.patch_bias, **options)


class GoogleConv(StdConv2dSame):
    """timm's convolution, its weights as google-research/vision_transformer standardizes them."""

    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        std = self.weight.var((1, 2, 3), unbiased=False, keepdim=True).sqrt()
        x = pad_same(x, self.kernel_size, self.stride)
        return nn.functional.conv2d(x, (self.weight - mean) / (std + WEIGHT_EPSILON), stride=self.stride)


def timm_twin(config: ViTConfig, **options: Any) -> VisionTransformer:
    """The same network by timm's constructor, float64, with timm's own initial values."""
    act = {"gelu": nn.GELU, "gelu_tanh": partial(nn.GELU, approximate="tanh"), "quick_gelu": QuickGELU}[
        config.activation
    ]
    gated = config.mlp == "swiglu"
    return (VisionTransformerDistilled if config.distillation == "head" else VisionTransformer)(
        img_size=config.image_size,
        patch_size=config.patch_size,
        in_chans=config.channels,
        num_classes=config.num_classes,
        global_pool={"cls": "token", "gap": "avg", "map": "map"}[config.pooling],
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.heads,
        mlp_ratio=config.mlp_dim / config.width * (2 if gated else 1),
        mlp_layer=SwiGLUPacked if gated else Mlp,
        qkv_bias=config.qkv_bias,
        qk_norm=config.qk_norm,
        proj_bias=config.proj_bias,
        pre_norm=config.pre_norm,
        reg_tokens=config.registers,
        embed_layer=partial(embed, config),
        init_values=config.layer_scale,
        class_token=config.class_token,
        pos_embed="none" if config.position_embedding == "none" else "learn",
        no_embed_class=not config.class_token_position,
        fc_norm=config.final_norm == "after_pooling",
        drop_path_rate=config.stochastic_depth,
        norm_layer=partial(nn.LayerNorm, eps=config.norm_epsilon),
        act_layer=nn.SiLU if gated else act,
        attn_layer=HeadsOf5 if config.head_dim else Attention,
        **options,
    ).double()
