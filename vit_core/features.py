"""The choice of tokens that are features, and of their pooling, for both twins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from vit_core.errors import InputError, unknown_name

if TYPE_CHECKING:
    from vit_core.config import ViTConfig

Pool = Literal["cls", "gap", "tokens"]
"""The class token [B, D], the mean of the patch tokens [B, D], or all tokens [B, N, D], those before the patches
first."""


def check_features(config: ViTConfig, layer: int, pool: Pool) -> int:
    """The number of the block whose tokens are features, from 0. Raises InputError if the model does not have this
    block, or does not have the class token that `pool` needs."""
    if pool not in get_args(Pool):
        raise unknown_name("pool", pool, get_args(Pool))
    if not -config.depth <= layer < config.depth:
        raise InputError(
            f"layer {layer}: the model has {config.depth} blocks; expected 0 to {config.depth - 1}, or -1 for the last"
        )
    if pool == "cls" and not config.class_token:
        raise InputError("pool cls: the model has no class token; use gap, the mean of the patch tokens, or tokens")
    return layer % config.depth


def features_shape(config: ViTConfig, pool: Pool) -> tuple[int, ...]:
    """Shape of the features of one image."""
    return (config.tokens, config.width) if pool == "tokens" else (config.width,)
