"""Runs the blocks one after the other, and defines what their backward pass recomputes. Read it beside
vit_jax/stacking.py, whose blocks may be stacked along a layer axis."""

from collections.abc import Iterable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts, noop_context_fn

from vit_torch.masks import Masks, Positions

Remat = Literal["none", "dots", "full"]

DOTS = [torch.ops.aten.mm.default, torch.ops.aten.addmm.default]
"""Products with weights: the two kernels of a linear layer. Attention's are batched, and are recomputed."""


def run(blocks: Iterable[nn.Module], x_BND: Tensor, masks: Masks, positions: Positions, remat: Remat) -> Tensor:
    """x through all blocks; the masks have a leading layer axis, the positions are the same for all."""
    for i, block in enumerate(blocks):
        own = {site: mask[i] for site, mask in masks.items()}
        plain = remat == "none"
        x_BND = block(x_BND, own, positions) if plain else _recomputed(block, x_BND, own, positions, remat)
    return x_BND


def _recomputed(block: nn.Module, x_BND: Tensor, masks: Masks, positions: Positions, remat: Remat) -> Tensor:
    # Tensors that stand in for parameters (functional_call's) are gone from the block when the backward pass comes.
    now: dict[str, Tensor] = dict(block.named_parameters())
    lent = {name: p for name, p in now.items() if not isinstance(p, nn.Parameter)}
    contexts = partial(create_selective_checkpoint_contexts, DOTS) if remat == "dots" else noop_context_fn
    return checkpoint(
        lambda x_BND: functional_call(block, lent, (x_BND, masks, positions)),
        x_BND,
        use_reentrant=False,
        context_fn=contexts,
        preserve_rng_state=False,  # nothing is drawn in a block
    )
