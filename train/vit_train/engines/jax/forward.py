"""The forward pass of a model over a mesh: uint8 images to logits, from parameters kept in stacks."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

import vit_jax
from vit_core.checkpoints import CheckpointConfig
from vit_core.config import ViTConfig
from vit_core.lora import Lora
from vit_core.masked_autoencoder import MaskedAutoencoder
from vit_core.naflex import Patches
from vit_core.parameters import Parameter, Stack, parameters, stacks
from vit_core.preprocess import Preprocessing, offset_and_scale
from vit_jax import arrays, lora, masked_autoencoder, naflex, sharding
from vit_jax.attention import AttentionKind
from vit_jax.stacking import Remat
from vit_train.config import TrainConfig
from vit_train.data.batches import Batch
from vit_train.engines.jax.mesh import batch_sharding

Params = dict[str, jax.Array]
"""Stack's name -> its parameters, in the JAX layout with the layers first."""


class Forward:
    """Builds the model from its parameters, prepares images, and computes logits.

    mae: the model is a masked autoencoder, whose call gives the loss of each image instead.
    The methods are pure functions, to be traced by jax.jit. Jitted are `logits`: (params, images_BHWC) -> [B, classes],
    and `losses`: (params, images_BHWC, masks) -> [B].
    """

    def __init__(
        self,
        model: ViTConfig,
        preprocessing: Preprocessing,
        stacks: dict[str, Stack],
        mesh: Mesh,
        compute_dtype: str,
        *,
        scan: bool = True,
        attention: AttentionKind = "plain",
        remat: Remat = "none",
        mixes: bool = False,
        adapters: Lora | None = None,
        mae: MaskedAutoencoder | None = None,
    ) -> None:
        self.model_config, self.preprocessing, self.stacks = model, preprocessing, stacks
        self.adapters, self.mae = adapters, mae
        self.compute_dtype = jnp.dtype(compute_dtype)
        self.scan, self.mixes = scan, mixes
        self.options: dict[str, Any] = {"scan": scan, "attention": attention, "remat": remat}
        """Of vit_jax.ViT: how it computes."""
        self.position_of = {row.name: (stack.name, i) for stack in stacks.values() for i, row in enumerate(stack.rows)}
        """Canonical name -> the stack that has the parameter, and its index there."""
        self.logits = jax.jit(
            lambda params, images_BHWC: self.model(params)(self.normalize(images_BHWC)),
            out_shardings=batch_sharding(mesh),
        )
        self.losses = jax.jit(
            lambda params, images_BHWC, masks: self.model(params)(self.normalize(images_BHWC), masks),
            out_shardings=batch_sharding(mesh),
        )

    @classmethod
    def of_run(cls, config: TrainConfig, stacks: dict[str, Stack], mesh: Mesh) -> "Forward":
        """The forward pass of a training run."""
        return cls(
            config.model,
            config.preprocessing,
            stacks,
            mesh,
            config.compute_dtype or config.dtype,
            scan=config.scan is not False,
            attention=config.attention or "plain",
            remat=config.remat,
            mixes=config.augmentation.mixes,
            adapters=config.lora,
            mae=config.masked,
        )

    @classmethod
    def of_teacher(cls, config: TrainConfig, teacher: CheckpointConfig, mesh: Mesh) -> "Forward":
        """The forward pass of a training run's teacher, which sees the run's images in its own normalization."""
        return cls(
            teacher.model,
            teacher.preparation()[0],
            stacks(parameters(teacher.model).values()),
            mesh,
            config.compute_dtype or config.dtype,
            scan=config.scan is not False,
            attention=config.attention or "plain",
            mixes=config.augmentation.mixes,
        )

    def inputs_and_logits(self, params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """The head's inputs [B, features] and the logits [B, classes] of a training batch, in evaluation mode."""
        model, images_BHWC = self.model(params), self.normalize(batch.images_BHWC, batch)
        assert not isinstance(images_BHWC, Patches), "refused by the config"
        x_BND = model.forward_features(images_BHWC)
        return model.forward_head(x_BND, pre_logits=True), model.forward_head(x_BND)

    def model(self, params: Params) -> vit_jax.ViT:
        """The model with these parameters, in the compute dtype."""

        def layer(row: Parameter) -> jax.Array:
            return self.layer(params, row).astype(self.compute_dtype)

        def stack(whole: Stack) -> jax.Array:
            return self.stack(params, whole).astype(self.compute_dtype)

        def build() -> vit_jax.ViT:
            if self.mae is not None:
                kind = masked_autoencoder.MaskedAutoencoder
                return kind(self.model_config, self.mae, rngs=nnx.Rngs(0), **self.options)
            return vit_jax.ViT(self.model_config, rngs=nnx.Rngs(0), **self.options)

        model = nnx.eval_shape(build)
        if self.scan:
            arrays.write_stacks(model, stack)
        else:
            arrays.write(model, layer)
        if self.adapters is not None:
            lora.attach(model, self.adapters, stack)
        return model

    def layer(self, params: Params, row: Parameter) -> jax.Array:
        """A parameter in the JAX layout."""
        name, i = self.position_of[row.name]
        return params[name] if row.layer is None else params[name][i]

    def stack(self, params: Params, whole: Stack) -> jax.Array:
        """The parameters of one kind of all layers; where some of them are frozen, they are kept separately."""
        if whole.name in params:
            return params[whole.name]
        return jnp.stack([self.layer(params, row) for row in whole.rows])

    def normalize(self, images_BHWC: jax.Array | Patches, mix: Batch | None = None) -> jax.Array | Patches:
        """uint8 images as input of the model, in the compute dtype (where they are to be predicted too, in float32 at
        least); mixed in pairs as a batch says, in training."""
        offset, scale = offset_and_scale(self.preprocessing)
        if isinstance(images_BHWC, Patches):
            return naflex.normalized(images_BHWC, offset, scale, self.compute_dtype)
        x_BHWC = (images_BHWC.astype(jnp.float32) - offset) * scale
        if mix is not None and self.mixes:
            x_BHWC = mixed(x_BHWC.astype(jnp.promote_types(self.compute_dtype, jnp.float32)), mix)
        dtype = self.compute_dtype if self.mae is None else jnp.promote_types(self.compute_dtype, jnp.float32)
        return sharding.constrain(x_BHWC.astype(dtype), "batch")


def mixed(x_BHWC: jax.Array, batch: Batch) -> jax.Array:
    """Images mixed with the other image of their pair, by the batch's weights and boxes."""
    B, H, W, C = x_BHWC.shape
    partner_BHWC = x_BHWC.reshape(B // 2, 2, H, W, C)[:, ::-1].reshape(B, H, W, C)
    top, left, bottom, right = (side[:, None, None] for side in batch.boxes_B4.T)
    y_H1, x_1W = jnp.arange(H)[:, None], jnp.arange(W)
    inside_BHW = (y_H1 >= top) & (y_H1 < bottom) & (x_1W >= left) & (x_1W < right)
    own_BHW1 = jnp.where(inside_BHW, 0, batch.own_share_B[:, None, None])[..., None].astype(x_BHWC.dtype)
    return own_BHW1 * x_BHWC + (1 - own_BHW1) * partner_BHWC
