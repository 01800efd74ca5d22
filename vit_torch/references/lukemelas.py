"""Builds the ViT of pytorch-pretrained-vit for a state dict."""

import importlib
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from vit_core.config import ViTConfig
from vit_torch.references.interface import Reference, load_state_dict

LIBRARY = "pytorch-pretrained-vit"


def open_reference(path: Path, model: ViTConfig) -> Reference:
    """Its model with a state dict's weights."""
    opened: Reference = load_state_dict(path, lambda: build(model))
    return opened


def build(model: ViTConfig) -> Any:
    """Its model with random weights, and nn.Identity in place of the head without classes.

    Version 0.0.7 builds only architectures in its list of published ones (without a name it stops with a NameError), so
    the architecture is added to the list meanwhile.
    """
    library = importlib.import_module("pytorch_pretrained_vit")
    config = {
        "patches": model.patch_size,
        "dim": model.width,
        "ff_dim": model.mlp_dim,
        "num_heads": model.heads,
        "num_layers": model.depth,
        "attention_dropout_rate": 0.0,
        "dropout_rate": 0.0,
        "representation_size": None,
        "classifier": "token",
    }
    published = importlib.import_module("pytorch_pretrained_vit.configs").PRETRAINED_MODELS
    with patch.dict(published, {"ours": {"config": config}}):
        built = library.ViT(
            "ours", in_channels=model.channels, image_size=model.image_size, num_classes=model.num_classes or 1
        )
    if not model.num_classes:
        built.fc = torch.nn.Identity()
    return built
