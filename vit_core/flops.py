"""Floating-point operations (FLOPs) of a forward pass, counted from the config: two for each multiply-add of a matrix
product.

Norms, activations, rotations and sums are not counted, as usual, and neither is the network of a relative position
bias, which is computed once for all images of a batch. Training costs three times as much: the backward pass has two
products for each product of the forward pass.
"""

from math import prod
from typing import Literal

from vit_core.config import ViTConfig
from vit_core.masked_autoencoder import MaskedAutoencoder


def forward(config: ViTConfig) -> dict[str, int]:
    """FLOPs for one image, by module: stem, patch_embed, attn, mlp (of all blocks), attn_pool, pre_logits, head."""
    c, N, D, patches = config, config.tokens, config.width, prod(config.grid)
    modules = {} if c.stem_layers is None else {"stem": _stem(c, c.stem_layers)}
    modules |= {"patch_embed": _patch_embed(c), **_blocks(c, N)}
    if c.pooling == "map":
        # One query over the pooled tokens, then an MLP on its output.
        M = N if c.pool_prefix else patches
        modules["attn_pool"] = D * D + M * 2 * D * D + 2 * M * D + D * D + 2 * D * c.pooling_mlp_dim
    if c.representation:
        modules["pre_logits"] = c.pooled * c.representation
    if c.num_classes:
        modules["head"] = (2 if c.distillation == "head" else 1) * c.features * c.num_classes
    return {name: 2 * count for name, count in modules.items()}


def in_training(config: ViTConfig, mae: MaskedAutoencoder | None = None) -> dict[str, int]:
    """FLOPs of the forward pass for one image in training, by module; mae: as a masked autoencoder, whose encoder sees
    the visible patches only."""
    if mae is None:
        return forward(config)
    c, inner = config, mae.decoder(config)
    seen, tokens = c.prefix_tokens + mae.visible(c), c.tokens
    modules = {"patch_embed": _patch_embed(c), **_blocks(c, seen)}
    modules["decoder.embed"] = seen * c.width * inner.width
    modules |= {f"decoder.{name}": count for name, count in _blocks(inner, tokens).items()}
    modules["decoder.pred"] = prod(c.grid) * inner.width * mae.patch_values(c)
    return {name: 2 * count for name, count in modules.items()}


def _patch_embed(c: ViTConfig) -> int:
    return prod(c.grid) * prod(c.patch_kernel) * c.stem_channels * c.width


def _blocks(c: ViTConfig, N: int) -> dict[str, int]:
    """Multiply-adds of all blocks for N tokens."""
    A, D = c.heads * c.head_width, c.width
    return {
        "attn": c.depth * (N * D * 3 * A + 2 * N * N * A + N * A * D),
        "mlp": c.depth * (3 if c.mlp == "swiglu" else 2) * N * D * c.mlp_dim,
    }


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


def recomputed(config: ViTConfig, remat: Literal["none", "dots", "full"], mae: MaskedAutoencoder | None = None) -> int:
    """FLOPs per image that the backward pass repeats to save memory (see vit_train.config.TrainConfig.remat).

    "dots": queries by keys, and weights by values. "full": each block, except for its last product, whose value no
    gradient needs. mae: as for `in_training`.
    """
    if mae is None:
        return _recomputed(config, config.tokens, remat)
    seen = config.prefix_tokens + mae.visible(config)
    return _recomputed(config, seen, remat) + _recomputed(mae.decoder(config), config.tokens, remat)


def _recomputed(c: ViTConfig, N: int, remat: Literal["none", "dots", "full"]) -> int:
    A = c.heads * c.head_width
    if remat == "none":
        return 0
    if remat == "dots":
        return 2 * c.depth * 2 * N * N * A
    return 2 * (sum(_blocks(c, N).values()) - c.depth * N * c.mlp_dim * c.width)
