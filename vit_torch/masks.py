"""Dropout and stochastic-depth masks drawn by PyTorch, for training without a host pipeline that draws them."""

import torch
from torch import Tensor

from vit_core import masks
from vit_core.config import ViTConfig

Masks = dict[str, Tensor]
"""Masks by site (vit_core.masks); inside a block without the layer axis."""


def draw_masks(config: ViTConfig, x_BCHW: Tensor, generator: torch.Generator | None = None) -> Masks:
    """One training step's masks for these images, float32, on their device."""
    B, _, H, W = x_BCHW.shape
    tokens = (H // config.patch_size[0]) * (W // config.patch_size[1]) + config.class_token
    drawn = {}
    for name, site in masks.sites(config, B, tokens).items():
        keep = torch.as_tensor(1 - site.rates(), dtype=torch.float32, device=x_BCHW.device)
        drawn[name] = (torch.rand(site.shape, generator=generator, device=x_BCHW.device) < keep) / keep
    return drawn
