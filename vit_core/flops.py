"""Floating-point operations (FLOPs) of a forward pass, counted from the config: two for each multiply-add of a matrix
product.

Norms, activations, rotations and sums are left out, as is usual, and so is the network of a relative position bias,
which computes once for all images of a batch. Training costs three times as much: the backward pass has two
products for each of the forward pass.
"""

from math import prod
from typing import Literal

from vit_core.config import ViTConfig


def forward(config: ViTConfig) -> dict[str, int]:
    """FLOPs for one image, by module: stem, patch_embed, attn, mlp (of all blocks), attn_pool, pre_logits, head."""
    c, N, D = config, config.tokens, config.width
    A, patches = c.heads * c.attention_dim, prod(c.grid)
    modules = {} if c.stem_layers is None else {"stem": _stem(c, c.stem_layers)}
    modules |= {
        "patch_embed": patches * prod(c.patch_kernel) * c.stem_channels * D,
        "attn": c.depth * (N * D * 3 * A + 2 * N * N * A + N * A * D),
        "mlp": c.depth * (3 if c.mlp == "swiglu" else 2) * N * D * c.mlp_dim,
    }
    if c.pooling == "map":
        # One query over the pooled tokens, then an MLP on what it found.
        M = N if c.pool_prefix else patches
        modules["attn_pool"] = D * D + M * 2 * D * D + 2 * M * D + D * D + 2 * D * c.pooling_mlp_dim
    if c.representation:
        modules["pre_logits"] = c.pooled * c.representation
    if c.num_classes:
        modules["head"] = (2 if c.distillation == "head" else 1) * c.features * c.num_classes
    return {name: 2 * count for name, count in modules.items()}


def _stem(c: ViTConfig, layers: tuple[int, ...]) -> int:
    into = c.stem_width
    count = prod(c.image_size) // 4 * 7 * 7 * c.channels * into
    for stage, units in enumerate(layers):
        before = prod(c.image_size) // (16 if stage == 0 else 4 ** (stage + 1))
        pixels = prod(c.image_size) // 4 ** (stage + 2)
        inner, out = c.stem_width * 2**stage, c.stem_width * 4 * 2**stage
        # The first unit changes the channels, its 3 x 3 convolution the resolution.
        count += pixels * into * out + before * into * inner
        count += (units - 1) * pixels * out * inner + units * pixels * (9 * inner * inner + inner * out)
        into = out
    return count


def recomputed(config: ViTConfig, remat: Literal["none", "dots", "full"]) -> int:
    """FLOPs per image that the backward pass repeats to save memory (see vit_train.config.TrainConfig.remat).

    "dots": queries by keys, and weights by values. "full": each block, but for its last product, whose value no
    gradient needs.
    """
    c, N, A = config, config.tokens, config.heads * config.attention_dim
    if remat == "none":
        return 0
    if remat == "dots":
        return 2 * c.depth * 2 * N * N * A
    modules = forward(config)
    return modules["attn"] + modules["mlp"] - 2 * c.depth * N * c.mlp_dim * c.width
