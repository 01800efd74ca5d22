"""Everything that the PyTorch twin computes for a batch, as NumPy arrays by canonical name, for parity tests."""

import numpy as np
import torch

from vit_torch import arrays
from vit_torch.masks import Masks
from vit_torch.model import ViT


def trace(
    model: ViT, x_BHWC: np.ndarray, probe_BL: np.ndarray, masks: Masks | None = None, *, interpolate: bool = False
) -> dict[str, np.ndarray]:
    """Stages of `forward_intermediates`, the output of the call itself, and the gradient of sum(output * probe).

    x_BHWC: images [B, H, W, C] of any float type (NHWC, as for vit_jax.trace). probe_BL: weights [B, classes] of the
    outputs in that sum. masks: apply to the output and the gradients, not to the stages. interpolate: accept another
    resolution than the config's. Returns NumPy arrays by the names of the stages, "output", and "grad.<parameter>".
    """
    device = next(model.parameters()).device
    x_BCHW = torch.as_tensor(x_BHWC, device=device).permute(0, 3, 1, 2)
    model.zero_grad()
    output_BL = model(x_BCHW, masks, interpolate=interpolate)
    (output_BL * torch.as_tensor(probe_BL, device=device).to(output_BL.dtype)).sum().backward()
    gradients = {f"grad.{name}": arrays.to_numpy(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    with torch.no_grad():
        stages = model.forward_intermediates(x_BCHW, interpolate=interpolate)
    return {name: arrays.to_numpy(stage) for name, stage in {**stages, "output": output_BL}.items()} | gradients


def predict(model: ViT, x_BHWC: np.ndarray, *, interpolate: bool = False) -> np.ndarray:
    """The outputs [B, classes] (without a head: [B, features]) for images [B, H, W, C] of any float type, without
    dropout. The axes are those of vit_jax.predict, not those of the model. The model is left in evaluation mode.
    interpolate: accept another resolution than the config's. Raises InputError for images that do not fit."""
    device = next(model.parameters()).device
    with torch.no_grad():
        x_BCHW = torch.as_tensor(x_BHWC, device=device).movedim(-1, 1)
        return arrays.to_numpy(model.eval()(x_BCHW, interpolate=interpolate))


def attention_weights(model: ViT, x_BHWC: np.ndarray, *, interpolate: bool = False) -> list[np.ndarray]:
    """The attention weights [B, heads, N, M] of each layer, from each of N tokens to each of M, for images [B, H, W, C]
    of any float type, without dropout. Raises InputError for images that do not fit.

    interpolate: accept another resolution than the config's, as the model does.
    """
    device = next(model.parameters()).device
    with torch.no_grad():
        x_BCHW = torch.as_tensor(x_BHWC, device=device).movedim(-1, 1)
        stages = model.eval().forward_intermediates(x_BCHW, interpolate=interpolate)
    return [arrays.to_numpy(stages[f"blocks.{i}.attn"]) for i in range(model.config.depth)]
