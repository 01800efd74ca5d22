"""The Vision Transformer in PyTorch."""

from vit_torch.checkpoint import from_seed, load, save
from vit_torch.masks import draw_masks
from vit_torch.model import ViT
from vit_torch.trace import attention_weights, predict, trace

__all__ = ["ViT", "attention_weights", "draw_masks", "from_seed", "load", "predict", "save", "trace"]
