"""Floating-point operations of a forward pass, by arithmetic: two for each multiply-add of the matrix products.

Norms, activations and sums are left out, as everywhere; training costs three times as much (the backward pass has two
products for each).
"""

from math import prod
from typing import Literal

from vit_core.config import ViTConfig


def forward(config: ViTConfig) -> dict[str, int]:
    """FLOPs for one image, by module: patch_embed, attn, mlp (of all blocks), attn_pool, pre_logits, head."""
    c, N, D = config, config.tokens, config.width
    A, patches = c.heads * c.attention_dim, prod(c.grid)
    modules = {
        "patch_embed": patches * prod(c.patch_size) * c.channels * D,
        "attn": c.depth * (N * D * 3 * A + 2 * N * N * A + N * A * D),
        "mlp": c.depth * 2 * N * D * c.mlp_dim,
    }
    if c.pooling == "map":
        # One query over the patch tokens, then an MLP on what it found.
        modules["attn_pool"] = D * D + patches * 2 * D * D + 2 * patches * D + D * D + 2 * D * c.mlp_dim
    if c.representation:
        modules["pre_logits"] = D * c.representation
    if c.num_classes:
        modules["head"] = (c.representation or D) * c.num_classes
    return {name: 2 * count for name, count in modules.items()}


def recomputed(config: ViTConfig, remat: Literal["none", "dots", "full"]) -> int:
    """FLOPs for one image that the backward pass does again to save memory (see train.config.TrainConfig.remat).

    "dots": queries by keys, and weights by values. "full": each block, but for its last product, whose value no
    gradient needs.
    """
    c, N, A = config, config.tokens, config.heads * config.attention_dim
    if remat == "none":
        return 0
    if remat == "dots":
        return 2 * c.depth * 2 * N * N * A
    modules = forward(config)
    return modules["attn"] + modules["mlp"] // 2
