"""Opens Google's .npz files with timm's own loader, which rounds patch projections to float32."""

from pathlib import Path
from typing import Any

from vit_core.checkpoints.containers import open_container
from vit_core.checkpoints.formats.google.names import PATCHES
from vit_core.config import ViTConfig
from vit_torch.references.interface import Reference
from vit_torch.references.timm import IN_TIMM, holds_all, timm_model

LIBRARY = "timm"


def open_reference(path: Path, model: ViTConfig) -> Reference | None:
    """timm's model with the weights of a .npz file; None for a type or a model that its loader does not read."""
    entries = open_container(path).arrays.entries
    any_aspect = any(name.endswith(PATCHES) and len(entry.shape) == 2 for name, entry in entries.items())
    if any_aspect or {entry.dtype for entry in entries.values()} != {"float32"}:
        return None
    if not holds_all(model, IN_TIMM | _IN_NPZ):
        return None
    opened = timm_model(model).double().eval()
    opened.load_pretrained(str(path))
    reference: Reference = opened
    return reference


_IN_NPZ: dict[str, tuple[Any, ...]] = {
    "channels": (1, 3),
    "position_embedding": ("learned",),
    "final_norm": ("before_pooling",),
    "registers": (0,),
    "layer_scale": (None,),
    **dict.fromkeys(("qkv_bias", "proj_bias", "patch_bias"), (True,)),
    **dict.fromkeys(("pre_norm", "qk_norm"), (False,)),
}
"""Field -> the values that timm's loader expects."""
