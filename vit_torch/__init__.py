"""The Vision Transformer in PyTorch."""

from vit_torch.checkpoint import from_seed, load, save
from vit_torch.features import features
from vit_torch.masks import draw_masks
from vit_torch.model import ViT
from vit_torch.on_devices import OnDevices
from vit_torch.prediction import pipeline
from vit_torch.trace import attention_weights, predict, trace

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
