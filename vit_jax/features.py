"""Features: the tokens after any block of a model."""

from itertools import islice

import jax

from vit_core.features import Pool, check_features
from vit_core.naflex import Patches
from vit_jax import naflex, stacking
from vit_jax.layers import mean_of_tokens
from vit_jax.model import ViT


def features(
    model: ViT, x_BHWC: jax.Array | Patches, layer: int = -1, pool: Pool = "cls", norm: bool = False
) -> jax.Array:
    """The tokens after a block, as timm's `forward_intermediates` returns them; later blocks are not computed.

    layer: number of the block from 0; -1 is the last. pool: "cls" the class token [B, D], "gap" the mean of the patch
    tokens [B, D], "tokens" all [B, N, D], those before the patches first. norm: apply the model's last norm to all
    tokens first (timm's `norm=True`). Raises InputError for a layer or a token that the model does not have. A batch of
    patches (vit_core.naflex.Patches) represents images of any aspect: the mean leaves out padding; "tokens" includes
    padding tokens, whose values have no meaning.
    """
    number = check_features(model.config, layer, pool)
    valid_BN: jax.Array | None = None
    if isinstance(x_BHWC, Patches):
        x_BND, valid_BN, positions = naflex.embed(model, x_BHWC)
    else:
        x_BND, positions = model.embed(x_BHWC)
    for block in islice(stacking.unstack(model.blocks, model.config.depth), number + 1):
        x_BND = block(x_BND, None, positions)
    if norm:
        x_BND = model.norm(x_BND)
    if pool == "tokens":
        return x_BND
    if pool == "cls":
        return x_BND[:, 0]
    prefix = model.config.prefix_tokens
    return mean_of_tokens(x_BND[:, prefix:], None if valid_BN is None else valid_BN[:, prefix:])
