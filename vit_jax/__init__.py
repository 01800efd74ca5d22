"""The Vision Transformer in Flax NNX."""

from vit_core.libtpu import silence_libtpu

silence_libtpu()  # before jax is imported

from vit_jax.checkpoint import from_seed, load, save  # noqa: E402
from vit_jax.masks import draw_masks  # noqa: E402
from vit_jax.model import ViT  # noqa: E402
from vit_jax.trace import attention_weights, predict, trace  # noqa: E402

__all__ = ["ViT", "attention_weights", "draw_masks", "from_seed", "load", "predict", "save", "trace"]
