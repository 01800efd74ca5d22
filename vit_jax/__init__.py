"""The Vision Transformer in Flax NNX."""

from vit_core.libtpu import silence_libtpu

silence_libtpu()  # before jax is imported

from vit_jax.checkpoint import from_seed, load, save  # noqa: E402
from vit_jax.features import features  # noqa: E402
from vit_jax.masks import draw_masks  # noqa: E402
from vit_jax.model import ViT  # noqa: E402
from vit_jax.on_devices import OnDevices  # noqa: E402
from vit_jax.prediction import pipeline  # noqa: E402
from vit_jax.trace import attention_weights, predict, trace  # noqa: E402

__all__ = [
    "OnDevices",
    "ViT",
    "attention_weights",
    "draw_masks",
    "features",
    "from_seed",
    "load",
    "pipeline",
    "predict",
    "save",
    "trace",
]
