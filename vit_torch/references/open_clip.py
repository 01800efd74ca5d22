"""Builds open_clip's VisionTransformer for the image tower in a state dict of CLIP."""

import importlib
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from vit_core.checkpoints.formats.open_clip.lineage import PREFIX, arguments
from vit_core.config import ViTConfig
from vit_torch.references.interface import Reference, load_state_dict

LIBRARY = "open_clip_torch"


def open_reference(path: Path, model: ViTConfig) -> Reference:
    """open_clip's image tower with a state dict's weights."""
    opened: Reference = load_state_dict(path, lambda: _tower(model), prefix=PREFIX)
    return opened


def _tower(model: ViTConfig) -> Any:
    library = importlib.import_module("open_clip.transformer")
    tower = library.VisionTransformer(
        **arguments(model),
        act_layer=library.QuickGELU if model.activation == "quick_gelu" else nn.GELU,
        norm_layer=partial(library.LayerNorm, eps=model.norm_epsilon),
    )
    if not model.num_classes:
        tower.proj = None
    return tower
