"""Builds transformers' models for a folder."""

import contextlib
import importlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vit_core.config import ViTConfig
from vit_core.errors import InputError
from vit_torch.references.interface import Reference, in_float64, pool_tokens

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
    "Siglip2ForImageClassification", "Siglip2VisionModel",
    "CLIPVisionModel", "CLIPVisionModelWithProjection",
)
# fmt: on
_PADDING = 3
"""Patches after those of an image."""


def open_reference(path: Path, model: ViTConfig) -> Reference | None:
    """transformers' model of a folder; None for a class that is not in the table above."""
    transformers = importlib.import_module("transformers")
    name = json.loads((path / "config.json").read_text())["architectures"][0]
    if name not in _CLASSES:
        return None
    pooled = {"add_pooling_layer": bool(model.representation)} if name in ("ViTModel", "DeiTModel") else {}
    opened = _opened(path, getattr(transformers, name), **pooled)
    # CLIP's and BEiT's norms stand after their pooling, as SigLIP's MAP head does.
    own_pooling = bool(model.representation) or model.pooling == "map" or name.startswith(("CLIP", "Beit"))

    def outputs(x_BCHW: Tensor) -> Tensor:
        if name.startswith("Siglip2"):
            result = _of_patches(opened, x_BCHW, model.patch_size)
        else:
            result = opened(pixel_values=x_BCHW)
        output = next((x for x in (result.get("logits"), result.get("image_embeds")) if x is not None), None)
        if output is not None:
            return output
        return result.pooler_output if own_pooling else pool_tokens(result.last_hidden_state, model)

    return outputs


def _of_patches(opened: Any, x_BCHW: Tensor, patch_size: tuple[int, int]) -> Any:
    """What SigLIP 2's class gives for images as patches, with padding that changes nothing. On a processor it resamples
    positions in float32, whatever the type of the model; here it does so in float64, by the same formulas."""
    module = importlib.import_module("transformers.models.siglip2.modeling_siglip2")
    (B, C, H, W), (P, Q) = x_BCHW.shape, patch_size
    x_BChPwQ = x_BCHW.reshape(B, C, H // P, P, W // Q, Q)
    patches_BNV = x_BChPwQ.permute(0, 2, 4, 3, 5, 1).reshape(B, -1, P * Q * C)
    mask_BN = torch.ones(patches_BNV.shape[:2], dtype=torch.int32)
    grids_B2 = torch.tensor([[H // P, W // Q]] * B)
    with in_float64(module):
        result = opened(
            nn.functional.pad(patches_BNV, (0, 0, 0, _PADDING), value=1.0),
            pixel_attention_mask=nn.functional.pad(mask_BN, (0, _PADDING)),
            spatial_shapes=grids_B2,
        )
    if "last_hidden_state" in result:
        result.last_hidden_state = result.last_hidden_state[:, : mask_BN.shape[1]]
    return result


def masked_predictions(path: Path, x_BHWC: np.ndarray, order_BN: np.ndarray, mask_ratio: float) -> np.ndarray:
    """What ViTMAEForPreTraining predicts for all patches [B, N, V] of images, in float64, where a share of the patches
    is hidden, the last of the order. Raises InputError for a folder that it does not open as it is."""
    with contextlib.redirect_stderr(io.StringIO()):  # progress
        model = _opened(path, importlib.import_module("transformers").ViTMAEForPreTraining)
    model.config.mask_ratio = mask_ratio
    noise_BN = torch.as_tensor(np.argsort(order_BN, axis=1)).double()  # it hides the patches with the most noise
    with torch.no_grad():
        predicted: np.ndarray = model(torch.as_tensor(x_BHWC).permute(0, 3, 1, 2), noise=noise_BN).logits.numpy()
    return predicted


def _opened(path: Path, kind: Any, **options: Any) -> Any:
    """A class's model of a folder in float64, for evaluation. Raises InputError if an array is missing or has no
    place."""
    opened, info = kind.from_pretrained(
        path,
        local_files_only=True,
        trust_remote_code=False,
        dtype=torch.float64,
        attn_implementation="sdpa",
        output_loading_info=True,
        **options,
    )
    if wrong := [f"{what}: {sorted(map(str, names))[:3]}" for what, names in info.items() if names]:
        raise InputError(f"{path}: transformers itself does not open it as it is ({'; '.join(wrong)})")
    return opened.eval()
