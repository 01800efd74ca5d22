"""What the blocks get in addition to tokens: masks and positions.

Masks of dropout and stochastic depth are drawn by PyTorch here, for training without a host pipeline that draws them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vit_core import masks
from vit_core.rotations import coordinate_change

if TYPE_CHECKING:
    from vit_core.config import ViTConfig

Masks = dict[str, Tensor]
"""Masks by site (vit_core.masks); inside a block without the layer axis."""
Positions = dict[str, Tensor]
"""What the blocks need to know about the positions of tokens.

Rotary: "cos" and "sin" [N, 1, K]; or, for learned frequencies, the "coordinates" [N, 2]. A batch of patches has a batch
axis first. Relative: "index" [N, M], the row of the value of each pair of tokens; with the matrices "rows" and
"columns" by which a table is resampled, or the "displacements" [R, 2] from which a network computes the values. "bias"
of the scores: [T, N, M] where all blocks share the relative bias, or [B, 1, 1, M] where keys are padding."""


def draw_masks(
    config: ViTConfig,
    batch: int,
    generator: torch.Generator | None = None,
    tokens: int | None = None,
    device: torch.device | None = None,
) -> Masks:
    """The masks of one training step by name (see vit_core.masks), float32: 0 for dropped values, 1 / (1 - rate) for
    the others.

    batch: number of images. tokens: sequence length, if it is not the config's (another resolution).
    """
    drawn: Masks = {}
    for name, site in masks.sites(config, batch, tokens).items():
        if name == masks.ROPE and config.rope is not None:
            uniform_5 = 2 * torch.rand(5, generator=generator, device=device) - 1
            drawn[name] = coordinate_change(config.rope, uniform_5, torch)
            continue
        keep = torch.as_tensor(1 - site.rates(), dtype=torch.float32, device=device)
        drawn[name] = (torch.rand(site.shape, generator=generator, device=device) < keep) / keep
    return drawn
