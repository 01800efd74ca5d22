"""Masked-autoencoder pretraining (MAE, arXiv:2111.06377): the encoder sees some patches of an image, and a small
decoder predicts the pixels of the others from the encoder's output. This module contains the part that both twins
share.
"""

from collections.abc import Sequence
from math import prod

import numpy as np

from vit_core.config import Layers, ViTConfig
from vit_core.errors import InputError
from vit_core.schema import Flag, Positive, Rate, Schema

TARGET_EPSILON = 1e-6
"""Added to the variance of a patch when its pixels are normalized."""


class MaskedAutoencoder(Schema):
    """Masked-autoencoder pretraining (MAE, arXiv:2111.06377), which needs no labels.

    The encoder is the model of the run, and sees the patches that are not hidden. The decoder has blocks of the same
    kind, of its own size, and fixed sine-cosine positions; it is not part of the run's final checkpoint.
    """

    mask_ratio: Rate = 0.0
    """Fraction of the patches that are hidden from the encoder (0.75 in the paper); 0: training with class labels."""
    decoder_width: Positive = 512
    """Token width of the decoder; a multiple of 4, and of decoder_heads."""
    decoder_depth: Layers = 8
    """Blocks of the decoder."""
    decoder_heads: Positive = 16
    """Attention heads of the decoder."""
    decoder_mlp_dim: Positive | None = None
    """Hidden width of the decoder's MLPs; none: four times its width."""
    normalize_target: Flag = False
    """Predict the pixels of each patch minus their mean, divided by their standard deviation (the best variant in the
    paper)."""

    def decoder(self, encoder: ViTConfig) -> ViTConfig:
        """The config of the decoder's blocks, which are of the same kind as the encoder's. Raises InputError for
        impossible sizes."""
        try:
            return encoder.replace(
                width=self.decoder_width,
                depth=self.decoder_depth,
                heads=self.decoder_heads,
                head_dim=None,
                mlp_dim=self.decoder_mlp_dim or 4 * self.decoder_width,
                num_classes=0,
                representation=None,
                position_embedding="sincos2d_mae",
                final_norm="before_pooling",
                stochastic_depth=0.0,
            )
        except InputError as error:
            raise InputError(f"mae, the decoder's blocks: {error}") from None

    def visible(self, encoder: ViTConfig) -> int:
        """Number of patches of each image that the encoder sees, rounded down as in the paper's code."""
        return int(prod(encoder.grid) * (1 - self.mask_ratio))

    def patch_values(self, encoder: ViTConfig) -> int:
        """Number of values that are predicted for a patch."""
        return prod(encoder.patch_size) * encoder.channels

    def check(self, encoder: ViTConfig) -> None:
        """Raises InputError for an encoder that cannot be pretrained as a masked autoencoder."""
        for name, found, needed, why in (
            ("num_classes", encoder.num_classes, 0, "there are no classes"),
            ("representation", encoder.representation, None, "only a head reads it"),
            ("rope", encoder.rope, None, "hidden patches are left out by absolute positions"),
            ("relative_bias", encoder.relative_bias, "none", "hidden patches are left out by absolute positions"),
            ("stem_layers", encoder.stem_layers, None, "a stem sees hidden patches"),
            ("dropout", encoder.dropout, 0.0, "use stochastic_depth"),
            ("attention_dropout", encoder.attention_dropout, 0.0, "use stochastic_depth"),
        ):
            if found != needed:
                raise InputError(f"model.{name}: mae.mask_ratio needs {needed} here ({why}), found {found}")
        if encoder.pooling == "map" or encoder.final_norm == "after_pooling":
            raise InputError(
                "model.pooling: mae.mask_ratio trains no layer after the pooling; use pooling 'cls', 'gap' or 'first', "
                "and final_norm 'before_pooling'"
            )
        if encoder.position_embedding == "none":
            raise InputError(
                "model.position_embedding: mae.mask_ratio needs positions; use 'sincos2d_mae' or 'learned'"
            )
        patches, visible = prod(encoder.grid), self.visible(encoder)
        if not 0 < visible < patches:
            raise InputError(f"mae.mask_ratio: {self.mask_ratio} leaves {visible} of {patches} patches to the encoder")
        if self.normalize_target and self.patch_values(encoder) == 1:
            raise InputError("mae.normalize_target: patches of one value have no deviation; set it false")
        self.decoder(encoder)


def draw_order(encoder: ViTConfig, batch: int, rng: np.random.Generator) -> np.ndarray:
    """A random order of the patches of each image, int32 [batch, patches]; see vit_core.masks.PATCH_ORDER."""
    return order_of(rng.random((batch, prod(encoder.grid))))


def order_of(noise_BN: np.ndarray | Sequence[Sequence[float]]) -> np.ndarray:
    """The order of patches by ascending noise, int32 [B, N], as transformers' ViTMAE computes it from its `noise`."""
    return np.argsort(np.asarray(noise_BN), axis=1, kind="stable").astype(np.int32)
