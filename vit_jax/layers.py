"""The layers of the blocks, in a separate file so that model.py describes only the model."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from vit_jax.masks import Masks

if TYPE_CHECKING:
    from vit_core.config import ViTConfig


def norm_layer(config: ViTConfig, size: int | None = None) -> LayerNorm | RMSNorm:
    """The norm of a config over the last axis, of `size` values (by default the width)."""
    layer = LayerNorm if config.norm == "layer_norm" else RMSNorm
    return layer(size or config.width, config.norm_epsilon)


def drop(x: Array, site: str, masks: Masks | None) -> Array:
    """x times the mask of a site, if there is one; a mask with the batch axis alone drops whole examples."""
    if masks is None or site not in masks:
        return x
    mask = masks[site]
    return x * mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim)).astype(x.dtype)


def padding_bias(valid_BM: Array, dtype: Any) -> Array:
    """The bias of the attention scores [B, 1, 1, M] that gives padding no weight."""
    return jnp.where(valid_BM, 0.0, -jnp.inf).astype(dtype)[:, None, None]


def mean_of_tokens(x_BND: Array, valid_BN: Array | None) -> Array:
    """Mean [B, D] of the tokens that are not padding."""
    if valid_BN is None:
        return x_BND.mean(axis=1)
    weights_BN = valid_BN.astype(x_BND.dtype)
    return jnp.einsum("bn,bnd->bd", weights_BN, x_BND) / weights_BN.sum(axis=1, keepdims=True)


def mean_of_heads(heads: list[tuple[Array, Array]], pre_logits: bool = False) -> Array:
    """Mean of the logits [B, L] that `forward_heads` returns; pre_logits: of the heads' inputs [B, features]."""
    x_BL, *others = (head[0 if pre_logits else 1] for head in heads)
    for other_BL in others:
        x_BL = (x_BL + other_BL) / 2
    return x_BL


class LayerScale(nnx.Module):
    """Multiplies the output [B, N, D] of a residual branch by a learned factor for each channel (arXiv:2103.17239)."""

    def __init__(self, config: ViTConfig) -> None:
        self.gamma = nnx.Param(jnp.zeros(config.width))

    def __call__(self, x_BND: Array) -> Array:
        return x_BND * self.gamma[...]


class RMSNorm(nnx.Module):
    """RMSNorm over the last axis (arXiv:1910.07467): no mean and no bias; the square mean in float32 at least."""

    def __init__(self, size: int, epsilon: float) -> None:
        self.scale = nnx.Param(jnp.ones(size))
        self.epsilon = epsilon

    def __call__(self, x: Array) -> Array:
        precise_x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        inverse_rms = jax.lax.rsqrt(jnp.square(precise_x).mean(axis=-1, keepdims=True) + self.epsilon)
        return (precise_x * inverse_rms * self.scale[...]).astype(x.dtype)


class LayerNorm(nnx.Module):
    """LayerNorm over the last axis (arXiv:1607.06450), its statistics in float32 at least.

    The variance is the mean of squared differences: E[x²] - E[x]² loses five digits if the mean is large.
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


def identity(x: Any) -> Any:
    return x


def conv(*sizes: Any, **options: Any) -> nnx.Conv:
    """A convolution of zeros: its values come from the parameter table, drawn by ViT or read from a checkpoint."""
    return nnx.Conv(*sizes, kernel_init=nnx.initializers.zeros, rngs=nnx.Rngs(0), **options)
