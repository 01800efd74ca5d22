"""The layers that model.py is built from, so that it is about the model alone."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from vit_jax.sharding import constrain


class LayerNorm(nnx.Module):
    """LayerNorm over the last axis (arXiv:1607.06450), its statistics in float32 at least.

    The variance is the mean of squared differences: E[x²] - E[x]² loses five digits where the mean is large.
    """

    def __init__(self, size: int, epsilon: float) -> None:
        self.scale = nnx.Param(jnp.ones(size))
        self.bias = nnx.Param(jnp.zeros(size))
        self.epsilon = epsilon

    def __call__(self, x: Array) -> Array:
        return _layer_norm(x, self.scale[...], self.bias[...], self.epsilon)


# The derivative is written out because XLA's of the two-pass variance reads and writes the activations several times
# more: on CPUs the whole training step of S/16 is then slower by half.
@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _layer_norm(x: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    return _layer_norm_forward(x, scale, bias, epsilon)[0]


def _layer_norm_forward(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Array, tuple[Array, ...]]:
    precise_x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = precise_x.mean(axis=-1, keepdims=True)
    centered = precise_x - mean
    inverse_std = jax.lax.rsqrt(jnp.square(centered).mean(axis=-1, keepdims=True) + epsilon)
    normed = centered * (inverse_std * scale) + bias
    return normed.astype(x.dtype), (x, mean, inverse_std, scale)


def _layer_norm_backward(epsilon: float, saved: tuple[Array, ...], grad: Array) -> tuple[Array, Array, Array]:
    x, mean, inverse_std, scale = saved
    normed = (x.astype(mean.dtype) - mean) * inverse_std
    precise_grad = grad.astype(mean.dtype)
    scaled = precise_grad * scale
    along_normed = normed * (scaled * normed).mean(axis=-1, keepdims=True)
    grad_x = inverse_std * (scaled - scaled.mean(axis=-1, keepdims=True) - along_normed)
    batch_axes = tuple(range(x.ndim - 1))
    grad_scale, grad_bias = (precise_grad * normed).sum(batch_axes), precise_grad.sum(batch_axes)
    return grad_x.astype(x.dtype), grad_scale.astype(scale.dtype), grad_bias.astype(scale.dtype)


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def linear(*sizes: Any, **options: Any) -> nnx.LinearGeneral:
    # Zeros, whatever the key: the values come from the parameter table, drawn by ViT or read from a checkpoint.
    return nnx.LinearGeneral(*sizes, kernel_init=nnx.initializers.zeros, rngs=nnx.Rngs(0), **options)


def conv(*sizes: Any, **options: Any) -> nnx.Conv:
    return nnx.Conv(*sizes, kernel_init=nnx.initializers.zeros, rngs=nnx.Rngs(0), **options)


def to_width(layer: nnx.LinearGeneral, x_BNF: Array, inputs: str) -> Array:
    """layer(x) as [B, N, D], with the kernel transposed so that its first axis is the one sharded over devices (D).

    XLA for TPUs then sums on each device only its own rows of the gradient; with the kernel as stored, every device
    would sum all of them. inputs: name of the kernel's input axis, for sharding.
    """
    kernel_DF = constrain(layer.kernel[...].reshape(x_BNF.shape[-1], -1).T, f"width {inputs}")
    x_BND = jnp.einsum("bnf,df->bnd", x_BNF, kernel_DF)
    return x_BND if layer.bias is None else x_BND + layer.bias[...]
