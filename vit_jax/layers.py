"""What Flax's own layers are made into here, that model.py is about the model alone."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from vit_jax.sharding import constrain


def linear(*sizes: Any, **options: Any) -> nnx.LinearGeneral:
    # Zeros, whatever the key: the values come from the parameter table, drawn by ViT or read from a checkpoint.
    return nnx.LinearGeneral(*sizes, kernel_init=nnx.initializers.zeros, rngs=nnx.Rngs(0), **options)


def conv(*sizes: Any, **options: Any) -> nnx.Conv:
    return nnx.Conv(*sizes, kernel_init=nnx.initializers.zeros, rngs=nnx.Rngs(0), **options)


def to_width(layer: nnx.LinearGeneral, x_BNF: Array, inputs: str) -> Array:
    """layer(x) [B, N, D], with the kernel's rows those that devices share (D).

    XLA for TPUs then lets each device sum its own rows of the gradient; as the kernel lies, all would sum all of it.
    """
    kernel_DF = constrain(layer.kernel[...].reshape(x_BNF.shape[-1], -1).T, f"width {inputs}")
    x_BND = jnp.einsum("bnf,df->bnd", x_BNF, kernel_DF)
    return x_BND if layer.bias is None else x_BND + layer.bias[...]
