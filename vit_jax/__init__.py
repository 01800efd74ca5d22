"""The Vision Transformer in Flax NNX."""

from vit_jax.checkpoint import from_seed, load, save
from vit_jax.masks import draw_masks
from vit_jax.model import ViT
from vit_jax.trace import predict, trace

__all__ = ["ViT", "draw_masks", "from_seed", "load", "predict", "save", "trace"]
