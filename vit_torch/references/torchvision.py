"""Builds torchvision's VisionTransformer for a state dict."""

import importlib
from pathlib import Path
from typing import Any

from torch import nn

from vit_core.checkpoints.formats import torchvision
from vit_core.config import ViTConfig
from vit_torch.references.interface import Reference, load_state_dict

LIBRARY = "torchvision"


def open_reference(path: Path, model: ViTConfig) -> Reference:
    """torchvision's model with a state dict's weights."""

    def build() -> Any:
        built = importlib.import_module("torchvision.models").VisionTransformer(**torchvision.arguments(model))
        if not model.num_classes:
            owner, part = (built.heads, "head") if model.representation else (built, "heads")
            setattr(owner, part, nn.Identity())
        return built

    opened: Reference = load_state_dict(path, build)
    return opened
