"""Masked-autoencoder pretraining in JAX (MAE, arXiv:2111.06377). Read it beside vit_torch/masked_autoencoder.py;
model.py explains the names of arrays. Here M counts the tokens that the encoder sees, m the hidden patches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from vit_core.arrays import convert
from vit_core.errors import InputError
from vit_core.masked_autoencoder import TARGET_EPSILON
from vit_core.masks import PATCH_ORDER, of_layers
from vit_core.parameters import Parameter, initial_value, parameters
from vit_core.position_embeddings import sincos2d
from vit_jax import arrays, stacking
from vit_jax.attention import AttentionKind
from vit_jax.layers import norm_layer
from vit_jax.linear import linear
from vit_jax.masks import Masks
from vit_jax.model import Block, ParallelBlock, ViT
from vit_jax.sharding import constrain
from vit_jax.stacking import Remat

if TYPE_CHECKING:
    from vit_core.config import ViTConfig
    from vit_core.masked_autoencoder import MaskedAutoencoder as Config


class Decoder(nnx.Module):
    """Computes predicted pixels of all patches [B, N, V] from the encoder's tokens."""

    def __init__(self, encoder: ViTConfig, mae: Config, attention: AttentionKind, *, scan: bool, remat: Remat) -> None:
        self.config, self.remat = mae.decoder(encoder), remat
        config = self.config
        self.embed = linear(encoder.width, config.width)
        self.mask_token = nnx.Param(jnp.zeros((1, 1, config.width)))
        block = ParallelBlock if config.parallel else Block
        blocks = nnx.List([block(config, attention) for _ in range(config.depth)])
        self.blocks = stacking.stack(blocks) if scan else blocks
        self.norm = norm_layer(config)
        self.pred = linear(config.width, mae.patch_values(encoder))

    def __call__(self, x_BMD: Array, order_BN: Array) -> Array:
        """Predictions [B, N, V] from the encoder's tokens: those before the patches, then the first of the order."""
        config, prefix, (B, N) = self.config, self.config.prefix_tokens, order_BN.shape
        x_BMD = self.embed(x_BMD)
        hidden_BmD = jnp.broadcast_to(self.mask_token[...], (B, N + prefix - x_BMD.shape[1], config.width))
        x_BND = jnp.concatenate([x_BMD[:, prefix:], hidden_BmD], axis=1)
        x_BND = jnp.take_along_axis(x_BND, jnp.argsort(order_BN, axis=1)[..., None], axis=1)
        x_BND = x_BND + jnp.asarray(sincos2d(config.grid, config.width, "mae"), x_BND.dtype)
        x_BND = constrain(jnp.concatenate([x_BMD[:, :prefix], x_BND], axis=1), "batch tokens width")
        x_BND = self.norm(stacking.run(self.blocks, x_BND, {}, {}, self.remat))
        return constrain(self.pred(x_BND[:, prefix:]), "batch tokens values")


class MaskedAutoencoder(ViT):
    """A ViT whose call gives the loss of predicting hidden patches, with the decoder that predicts them.

    mae: the mask ratio, the target and the decoder's size. The other arguments are those of ViT. Raises InputError for
    a model that cannot be pretrained as a masked autoencoder.
    """

    def __init__(
        self,
        config: ViTConfig,
        mae: Config,
        *,
        rngs: nnx.Rngs,
        attention: AttentionKind = "plain",
        scan: bool = False,
        remat: Remat = "none",
    ) -> None:
        mae.check(config)
        self.mae, self.attention = mae, attention  # before add_heads is called
        super().__init__(config, rngs=rngs, attention=attention, scan=scan, remat=remat)

    def add_heads(self, config: ViTConfig) -> None:
        """Sets the decoder, without initial values."""
        super().add_heads(config)
        self.decoder = Decoder(config, self.mae, self.attention, scan=self.scan, remat=self.remat)

    @property
    def table(self) -> Mapping[str, Parameter]:
        """The rows of the parameter table that the model has."""
        return parameters(self.config, self.mae)

    def __call__(  # type: ignore[override]  # not of images of any aspect
        self, x_BHWC: Array, masks: Masks | None = None, *, interpolate: bool = False, patch_size: None = None
    ) -> Array:
        """The loss of each image [B]: the mean squared error over its hidden patches, in float32 at least.

        masks: must contain the order of the patches (vit_core.masks.PATCH_ORDER), of which the first are visible. The
        other options of ViT have no effect here.
        """
        order_BN, first = order_in(masks), self.mae.visible(self.config)
        predicted_BNV = self.reconstruct(x_BHWC, masks)
        precise = jnp.promote_types(predicted_BNV.dtype, jnp.float32)
        target_BNV = self.target(x_BHWC.astype(precise))
        errors_BN = jnp.square(predicted_BNV.astype(precise) - target_BNV).mean(axis=2)
        return jnp.take_along_axis(errors_BN, order_BN[:, first:], axis=1).mean(axis=1)

    def reconstruct(self, x_BHWC: Array, masks: Masks | None) -> Array:
        """Predicted pixels of all patches [B, N, V], as those of `target`; only the hidden ones are trained."""
        order_BN = order_in(masks)
        return self.decoder(self.encode(x_BHWC, masks), order_BN)

    def encode(self, x_BHWC: Array, masks: Masks | None) -> Array:
        """The tokens before the patches, and those of the visible patches in their order, after the last norm: [B, M,
        D]."""
        x_BND, _ = self.embed(x_BHWC)
        prefix, visible_BM = self.config.prefix_tokens, order_in(masks)[:, : self.mae.visible(self.config)]
        visible_BMD = jnp.take_along_axis(x_BND[:, prefix:], visible_BM[..., None], axis=1)
        x_BMD = constrain(jnp.concatenate([x_BND[:, :prefix], visible_BMD], axis=1), "batch tokens width")
        return self.norm(stacking.run(self.blocks, x_BMD, of_layers(masks), {}, self.remat))

    def target(self, x_BHWC: Array) -> Array:
        """The pixels of each patch [B, N, V], with the axes height, width, channels; normalized if the config says
        so."""
        (P, Q), (B, H, W, C) = self.config.patch_size, x_BHWC.shape
        x_BhPwQC = x_BHWC.reshape(B, H // P, P, W // Q, Q, C)
        x_BNV = x_BhPwQC.transpose(0, 1, 3, 2, 4, 5).reshape(B, -1, P * Q * C)
        if not self.mae.normalize_target:
            return x_BNV
        mean_BN1, variance_BN1 = x_BNV.mean(axis=2, keepdims=True), x_BNV.var(axis=2, ddof=1, keepdims=True)
        return (x_BNV - mean_BN1) / jnp.sqrt(variance_BN1 + TARGET_EPSILON)


def order_in(masks: Masks | None) -> Array:
    """The order of the patches, from a batch's masks. Raises InputError if it is missing."""
    if masks is None or PATCH_ORDER not in masks:
        raise InputError(f"masks: a masked autoencoder needs {PATCH_ORDER!r}; vit_core.masked_autoencoder draws one")
    return masks[PATCH_ORDER]


def from_arrays(config: ViTConfig, mae: Config, values: Mapping[str, np.ndarray], **storage: Any) -> MaskedAutoencoder:
    """A model with these parameters, by canonical name and in the layout on disk."""
    model = nnx.eval_shape(lambda: MaskedAutoencoder(config, mae, rngs=nnx.Rngs(0), **storage))
    arrays.write(model, lambda row: arrays.from_numpy(row.to_jax(values[row.name])))
    return model


def from_seed(config: ViTConfig, mae: Config, seed: int, *, dtype: Any = None, **storage: Any) -> MaskedAutoencoder:
    """A new model with the same initial values as vit_torch.masked_autoencoder.from_seed, drawn by NumPy."""
    rows = parameters(config, mae).items()
    values = {name: convert(initial_value(row, seed), dtype or "float32") for name, row in rows}
    return from_arrays(config, mae, values, **storage)


def reconstructed(model: MaskedAutoencoder, x_BHWC: np.ndarray, order_BN: np.ndarray) -> np.ndarray:
    """The result of `reconstruct` for normalized images and the order of their patches."""
    graph, state = nnx.split(model)

    @jax.jit
    def compute(state, x_BHWC, order_BN):  # type: ignore[no-untyped-def]
        return nnx.merge(graph, state).reconstruct(x_BHWC, {PATCH_ORDER: order_BN})

    with jax.default_matmul_precision("highest"):
        return np.asarray(compute(state, jnp.asarray(x_BHWC), jnp.asarray(order_BN)))
