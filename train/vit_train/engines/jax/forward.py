"""The forward pass of a model over a mesh: uint8 images to logits, from parameters kept in stacks."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

import vit_jax
from vit_core.config import ViTConfig
from vit_core.naflex import Patches
from vit_core.parameters import Parameter, Stack
from vit_core.preprocess import Preprocessing, offset_and_scale
from vit_jax import arrays, naflex, sharding
from vit_train.config import TrainConfig
from vit_train.data.batches import Batch
from vit_train.engines.jax.mesh import batch_sharding

Remat = Literal["none", "dots", "full"]
Params = dict[str, jax.Array]
"""Stack's name -> its parameters, in the JAX layout with the layers first."""


class Forward:
    """Builds the model from its parameters, prepares images, and computes logits.

    The methods are pure functions, to be traced by jax.jit; `logits` is jitted: (params, images_BHWC) -> [B, classes].
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
        remat: Remat = "none",
        mixes: bool = False,
    ) -> None:
        self.model_config, self.preprocessing, self.stacks = model, preprocessing, stacks
        self.compute_dtype = jnp.dtype(compute_dtype)
        self.scan, self.remat, self.mixes = scan, remat, mixes
        self.position_of = {row.name: (stack.name, i) for stack in stacks.values() for i, row in enumerate(stack.rows)}
        """Canonical name -> the stack that has the parameter, and its index there."""
        self.logits = jax.jit(
            lambda params, images_BHWC: self.model(params)(self.normalise(images_BHWC)),
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
            scan=config.scan,
            remat=config.remat,
            mixes=config.augmentation.mixes,
        )

    def model(self, params: Params) -> vit_jax.ViT:
        """The model with these parameters, in the compute dtype."""

        def layer(row: Parameter) -> jax.Array:
            name, i = self.position_of[row.name]
            return (params[name] if row.layer is None else params[name][i]).astype(self.compute_dtype)

        def stack(whole: Stack) -> jax.Array:
            if whole.name in params:
                return params[whole.name].astype(self.compute_dtype)
            return jnp.stack([layer(row) for row in whole.rows])  # some of its layers are frozen, and kept separately

        model = nnx.eval_shape(
            lambda: vit_jax.ViT(self.model_config, rngs=nnx.Rngs(0), scan=self.scan, remat=self.remat)
        )
        if self.scan:
            arrays.write_stacks(model, stack)
        else:
            arrays.write(model, layer)
        return model

    def normalise(self, images_BHWC: jax.Array | Patches, mix: Batch | None = None) -> jax.Array | Patches:
        """uint8 images as input of the model, in the compute dtype; mixed in pairs as a batch says, in training."""
        offset, scale = offset_and_scale(self.preprocessing)
        if isinstance(images_BHWC, Patches):
            return naflex.normalised(images_BHWC, offset, scale, self.compute_dtype)
        x_BHWC = (images_BHWC.astype(jnp.float32) - offset) * scale
        if mix is not None and self.mixes:
            x_BHWC = mixed(x_BHWC.astype(jnp.promote_types(self.compute_dtype, jnp.float32)), mix)
        return sharding.constrain(x_BHWC.astype(self.compute_dtype), "batch")


def mixed(x_BHWC: jax.Array, batch: Batch) -> jax.Array:
    """Images mixed with the other image of their pair, by the batch's weights and boxes."""
    B, H, W, C = x_BHWC.shape
    partner_BHWC = x_BHWC.reshape(B // 2, 2, H, W, C)[:, ::-1].reshape(B, H, W, C)
    top, left, bottom, right = (side[:, None, None] for side in batch.boxes_B4.T)
    y_H1, x_1W = jnp.arange(H)[:, None], jnp.arange(W)
    inside_BHW = (y_H1 >= top) & (y_H1 < bottom) & (x_1W >= left) & (x_1W < right)
    own_BHW1 = jnp.where(inside_BHW, 0, batch.own_share_B[:, None, None])[..., None].astype(x_BHWC.dtype)
    return own_BHW1 * x_BHWC + (1 - own_BHW1) * partner_BHWC
