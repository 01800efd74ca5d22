"""Masked-autoencoder pretraining in PyTorch (MAE, arXiv:2111.06377). Read it beside vit_jax/masked_autoencoder.py;
model.py explains the names of arrays. Here M counts the tokens that the encoder sees, m the hidden patches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor as Array
from torch import nn

from vit_core.arrays import convert
from vit_core.errors import InputError
from vit_core.masked_autoencoder import TARGET_EPSILON
from vit_core.masks import PATCH_ORDER, of_layers
from vit_core.parameters import Parameter, initial_value, parameters
from vit_core.position_embeddings import sincos2d
from vit_torch import arrays, stacking
from vit_torch.attention import AttentionKind
from vit_torch.layers import norm_layer
from vit_torch.linear import Linear
from vit_torch.masks import Masks
from vit_torch.model import Block, ParallelBlock, ViT
from vit_torch.stacking import Remat

if TYPE_CHECKING:
    from vit_core.config import ViTConfig
    from vit_core.masked_autoencoder import MaskedAutoencoder as Config


class Decoder(nn.Module):
    """Computes predicted pixels of all patches [B, N, V] from the encoder's tokens."""

    def __init__(self, encoder: ViTConfig, mae: Config, attention: AttentionKind, *, remat: Remat) -> None:
        super().__init__()
        self.config, self.remat = mae.decoder(encoder), remat
        config = self.config
        self.embed = Linear(encoder.width, config.width)
        self.mask_token = nn.Parameter(torch.zeros((1, 1, config.width)))
        block = ParallelBlock if config.parallel else Block
        self.blocks = nn.ModuleList([block(config, attention) for _ in range(config.depth)])
        self.norm = norm_layer(config)
        self.pred = Linear(config.width, mae.patch_values(encoder))

    def forward(self, x_BMD: Array, order_BN: Array) -> Array:
        """Predictions [B, N, V] from the encoder's tokens: those before the patches, then the first of the order."""
        config, prefix, (B, N) = self.config, self.config.prefix_tokens, order_BN.shape
        x_BMD = self.embed(x_BMD)
        hidden_BmD = torch.broadcast_to(self.mask_token, (B, N + prefix - x_BMD.shape[1], config.width))
        x_BND = torch.cat([x_BMD[:, prefix:], hidden_BmD], dim=1)
        x_BND = torch.take_along_dim(x_BND, torch.argsort(order_BN, dim=1)[..., None], dim=1)
        x_BND = x_BND + x_BND.new_tensor(sincos2d(config.grid, config.width, "mae"))
        x_BND = torch.cat([x_BMD[:, :prefix], x_BND], dim=1)
        x_BND = self.norm(stacking.run(self.blocks, x_BND, {}, {}, self.remat))
        return self.pred(x_BND[:, prefix:])


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
        generator: torch.Generator | None = None,
        attention: AttentionKind = "fused",
        remat: Remat = "none",
    ) -> None:
        mae.check(config)
        self.mae, self.attention = mae, attention  # before add_heads is called
        super().__init__(config, generator=generator, attention=attention, remat=remat)

    def add_heads(self, config: ViTConfig) -> None:
        """Sets the decoder, without initial values."""
        super().add_heads(config)
        self.decoder = Decoder(config, self.mae, self.attention, remat=self.remat)

    @property
    def table(self) -> Mapping[str, Parameter]:
        """The rows of the parameter table that the model has."""
        return parameters(self.config, self.mae)

    def forward(  # type: ignore[override]  # not of images of any aspect
        self,
        x_BCHW: Array,
        masks: Masks | None = None,
        *,
        interpolate: bool = False,
        patch_size: None = None,
        return_heads: bool = False,
    ) -> Array:
        """The loss of each image [B]: the mean squared error over its hidden patches, in float32 at least.

        masks: must contain the order of the patches (vit_core.masks.PATCH_ORDER), of which the first are visible. The
        other options of ViT have no effect here.
        """
        order_BN, first = order_in(masks), self.mae.visible(self.config)
        predicted_BNV = self.reconstruct(x_BCHW, masks)
        precise = torch.promote_types(predicted_BNV.dtype, torch.float32)
        target_BNV = self.target(x_BCHW.to(precise))
        errors_BN = torch.square(predicted_BNV.to(precise) - target_BNV).mean(dim=2)
        return torch.take_along_dim(errors_BN, order_BN[:, first:], dim=1).mean(dim=1)

    def reconstruct(self, x_BCHW: Array, masks: Masks | None) -> Array:
        """Predicted pixels of all patches [B, N, V], as those of `target`; only the hidden ones are trained."""
        order_BN = order_in(masks)
        return self.decoder(self.encode(x_BCHW, masks), order_BN)

    def encode(self, x_BCHW: Array, masks: Masks | None) -> Array:
        """The tokens before the patches, and those of the visible patches in their order, after the last norm: [B, M,
        D]."""
        x_BND, _ = self.embed(x_BCHW)
        prefix, visible_BM = self.config.prefix_tokens, order_in(masks)[:, : self.mae.visible(self.config)]
        visible_BMD = torch.take_along_dim(x_BND[:, prefix:], visible_BM[..., None], dim=1)
        x_BMD = torch.cat([x_BND[:, :prefix], visible_BMD], dim=1)
        return self.norm(stacking.run(self.blocks, x_BMD, of_layers(masks), {}, self.remat))

    def target(self, x_BCHW: Array) -> Array:
        """The pixels of each patch [B, N, V], with the axes height, width, channels; normalized if the config says
        so."""
        (P, Q), (B, C, H, W) = self.config.patch_size, x_BCHW.shape
        x_BChPwQ = x_BCHW.reshape(B, C, H // P, P, W // Q, Q)
        x_BNV = x_BChPwQ.permute(0, 2, 4, 3, 5, 1).reshape(B, -1, P * Q * C)
        if not self.mae.normalize_target:
            return x_BNV
        mean_BN1, variance_BN1 = x_BNV.mean(dim=2, keepdim=True), x_BNV.var(dim=2, correction=1, keepdim=True)
        return (x_BNV - mean_BN1) / torch.sqrt(variance_BN1 + TARGET_EPSILON)


def order_in(masks: Masks | None) -> Array:
    """The order of the patches, from a batch's masks. Raises InputError if it is missing."""
    if masks is None or PATCH_ORDER not in masks:
        raise InputError(f"masks: a masked autoencoder needs {PATCH_ORDER!r}; vit_core.masked_autoencoder draws one")
    return masks[PATCH_ORDER].long()


def from_arrays(config: ViTConfig, mae: Config, values: Mapping[str, np.ndarray], **storage: Any) -> MaskedAutoencoder:
    """A model, in training mode, with these parameters, by canonical name and in the layout on disk."""
    with torch.device("meta"):
        model = MaskedAutoencoder(config, mae, **storage)
    arrays.write(model, {name: values[name] for name in model.table})
    return model


def from_seed(config: ViTConfig, mae: Config, seed: int, *, dtype: Any = None, **storage: Any) -> MaskedAutoencoder:
    """A new model with the same initial values as vit_jax.masked_autoencoder.from_seed, drawn by NumPy."""
    rows = parameters(config, mae).items()
    values = {name: convert(initial_value(row, seed), dtype or "float32") for name, row in rows}
    return from_arrays(config, mae, values, **storage)


def reconstructed(model: MaskedAutoencoder, x_BHWC: np.ndarray, order_BN: np.ndarray) -> np.ndarray:
    """The result of `reconstruct` for normalized images and the order of their patches."""
    with torch.no_grad():
        x_BCHW, order = torch.as_tensor(x_BHWC).permute(0, 3, 1, 2), torch.as_tensor(order_BN)
        predicted: np.ndarray = model.reconstruct(x_BCHW, {PATCH_ORDER: order}).numpy()
    return predicted
