"""Builds transformers' models for a folder."""

import importlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vit_core.config import ViTConfig
from vit_core.errors import InputError
from vit_torch.references.interface import Reference, pool_tokens

LIBRARY = "transformers"

# fmt: off
_CLASSES = (
    "ViTForImageClassification", "ViTModel",
    "DeiTForImageClassification", "DeiTForImageClassificationWithTeacher", "DeiTModel",
    "Dinov2ForImageClassification", "Dinov2Model",
    "Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersModel",
    "DINOv3ViTModel",
    "BeitForImageClassification", "BeitModel",
    "Aimv2VisionModel",
    "SiglipForImageClassification", "SiglipVisionModel",
    "CLIPVisionModel", "CLIPVisionModelWithProjection",
)
# fmt: on


def open_reference(path: Path, model: ViTConfig) -> Reference | None:
    """transformers' model of a folder; None for a class that is not in the table above."""
    transformers = importlib.import_module("transformers")
    name = json.loads((path / "config.json").read_text())["architectures"][0]
    if name not in _CLASSES:
        return None
    options: dict[str, Any] = {"dtype": torch.float64, "attn_implementation": "sdpa", "output_loading_info": True}
    if name in ("ViTModel", "DeiTModel"):
        options["add_pooling_layer"] = bool(model.representation)
    opened, info = getattr(transformers, name).from_pretrained(
        path, local_files_only=True, trust_remote_code=False, **options
    )
    if wrong := [f"{what}: {sorted(map(str, names))[:3]}" for what, names in info.items() if names]:
        raise InputError(f"{path}: transformers itself does not open it as it is ({'; '.join(wrong)})")
    # CLIP's and BEiT's norms stand after their pooling, as SigLIP's MAP head does.
    own_pooling = bool(model.representation) or model.pooling == "map" or name.startswith(("CLIP", "Beit"))

    def outputs(x_BCHW: Tensor) -> Tensor:
        result = opened.eval()(pixel_values=x_BCHW)
        output = next((x for x in (result.get("logits"), result.get("image_embeds")) if x is not None), None)
        if output is not None:
            return output
        return result.pooler_output if own_pooling else pool_tokens(result.last_hidden_state, model)

    return outputs
