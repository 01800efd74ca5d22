"""Builds vit-pytorch's ViT for a state dict."""

import importlib
from pathlib import Path

from vit_core.checkpoints.formats import lucidrains
from vit_core.config import ViTConfig
from vit_torch.references.interface import Reference, load_state_dict, pool_tokens

LIBRARY = "vit-pytorch"


def open_reference(path: Path, model: ViTConfig) -> Reference:
    """vit-pytorch's model with a state dict's weights. Without a head it returns all tokens, which are pooled here."""
    opened: Reference = load_state_dict(
        path, lambda: importlib.import_module("vit_pytorch").ViT(**lucidrains.arguments(model))
    )
    return opened if model.num_classes else lambda x_BCHW: pool_tokens(opened(x_BCHW), model)
