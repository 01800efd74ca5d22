"""Dropout and stochastic depth as arrays, so that both twins can use the same ones.

A mask contains the factors of activations: 0 for dropped ones, 1 / (1 - rate) for the others. Masks of sites inside the
blocks have a leading layer axis. The other random draws of training for the model (the change of rotary coordinates,
and the order of patches of a masked autoencoder) are passed in the same way. The twins only apply masks. Masks drawn on
the host make a training step reproducible in the other twin; masks drawn by a twin's own generator do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_core.errors import unknown_name
from vit_core.rotations import coordinate_change

if TYPE_CHECKING:
    from vit_core.config import ViTConfig

POSITIONS = "pos_drop"
"""Site of the dropout after the positions, outside the blocks."""
ROPE = "rope"
"""Site of the change of rotary coordinates: [2, 2], shift and scale of both axes, one for the whole batch."""
PATCH_ORDER = "patch_order"
"""Site of a masked autoencoder's order of the patches of each image, int32 [B, patches]: the encoder sees the first of
them, the others are predicted (vit_core.masked_autoencoder)."""


@dataclass(frozen=True)
class Site:
    """One place where activations are dropped: the mask's shape, and the drop rate (a tuple: one for each layer)."""

    shape: tuple[int, ...]
    rate: float | tuple[float, ...]

    def rates(self) -> np.ndarray:
        """The drop rates as an array that broadcasts against the mask."""
        rate = np.asarray(self.rate, np.float64)
        return rate.reshape(rate.shape + (1,) * (len(self.shape) - rate.ndim))


def sites(config: ViTConfig, batch: int, tokens: int | None = None) -> dict[str, Site]:
    """Every site at which a config drops activations, by name.

    batch: number of images. tokens: sequence length, at another resolution than the config's.
    """
    layers, width, n = config.depth, config.width, tokens or config.tokens
    found = {}
    if config.rope is not None and config.rope.is_augmented:
        found[ROPE] = Site((2, 2), 0.0)
    if config.dropout:
        found[POSITIONS] = Site((batch, n, width), config.dropout)
        found["attn.proj_drop"] = Site((layers, batch, n, width), config.dropout)
        found["mlp.drop1"] = Site((layers, batch, n, config.mlp_dim), config.dropout)
        found["mlp.drop2"] = Site((layers, batch, n, width), config.dropout)
    if config.attention_dropout:
        found["attn.attn_drop"] = Site((layers, batch, config.heads, n, n), config.attention_dropout)
    if config.stochastic_depth:
        found["drop_path1"] = Site((layers, batch), config.drop_path_rates)
        if not config.parallel:
            found["drop_path2"] = Site((layers, batch), config.drop_path_rates)
    return found


OUTSIDE_BLOCKS: dict[str, int | None] = {POSITIONS: 0, ROPE: None, PATCH_ORDER: 0}
"""Names of masks without a layer axis, and along which axis examples lie."""
SITES = (*OUTSIDE_BLOCKS, "attn.proj_drop", "mlp.drop1", "mlp.drop2", "attn.attn_drop", "drop_path1", "drop_path2")
"""Every name a mask can have."""


def batch_axis(site: str) -> int | None:
    """The axis of a mask for the examples; None if one array is used for the whole batch."""
    return OUTSIDE_BLOCKS.get(site, 1)


def rows_of(site: str, mask: np.ndarray, rows: Any) -> np.ndarray:
    """The mask of some examples of the batch, by their numbers or a slice."""
    axis = batch_axis(site)
    return mask if axis is None else mask[(slice(None),) * axis + (rows,)]


def by_example(site: str, mask: np.ndarray, examples: int) -> np.ndarray:
    """The mask with the examples along its first axis; an array for the whole batch is repeated."""
    axis = batch_axis(site)
    return np.broadcast_to(mask, (examples, *mask.shape)) if axis is None else np.moveaxis(mask, axis, 0)


def of_layers(masks: Mapping[str, Any] | None) -> dict[str, Any]:
    """The masks of sites inside the blocks, which have a layer axis. Raises InputError for an unknown name."""
    for name in masks or {}:
        if name not in SITES:
            raise unknown_name("mask", name, SITES)
    return {name: mask for name, mask in (masks or {}).items() if name not in OUTSIDE_BLOCKS}


def draw(config: ViTConfig, batch: int, rng: np.random.Generator, tokens: int | None = None) -> dict[str, np.ndarray]:
    """Masks for one training step, drawn by NumPy: float32, in the order of `sites`, whose arguments it takes."""
    masks = {}
    for name, site in sites(config, batch, tokens).items():
        if name == ROPE and config.rope is not None:
            masks[name] = coordinate_change(config.rope, rng.uniform(-1.0, 1.0, 5)).astype(np.float32)
            continue
        keep = 1 - site.rates()
        masks[name] = ((rng.random(site.shape) < keep) / keep).astype(np.float32)
    return masks
