"""The layers of the blocks, in a separate file so that model.py describes only the model."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from vit_core.processor import processor_lists
from vit_jax.sharding import constrain, platform, shares_kernels
from vit_jax.stacking import Masks

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


class Linear(nnx.LinearGeneral):
    """A linear layer, which may have a low-rank adapter (vit_jax.lora.attach). The functions below apply both."""

    lora_A: nnx.Param[Array]
    lora_B: nnx.Param[Array]
    lora_scale: float


def linear(*sizes: Any, **options: Any) -> Linear:
    # Zeros, whatever the key: the values come from the parameter table, drawn by ViT or read from a checkpoint.
    return Linear(*sizes, kernel_init=nnx.initializers.zeros, rngs=nnx.Rngs(0), **options)


def conv(*sizes: Any, **options: Any) -> nnx.Conv:
    return nnx.Conv(*sizes, kernel_init=nnx.initializers.zeros, rngs=nnx.Rngs(0), **options)


@jax.custom_vjp
def product(x_BND: Array, kernel: Array) -> Array:
    """Product [B, N, ...] over the first axis of a kernel [D, ...]. XLA for CPUs computes its gradient fast if the
    kernel has more outputs than inputs, and in bfloat16 always (see `multiplied`)."""
    return multiplied(x_BND, kernel, 1)


def _product_forward(x_BND: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return multiplied(x_BND, kernel, 1), (x_BND, kernel)  # not `product`: `remat` would not see what it may keep


# JAX writes the gradient of a kernel as a product whose first operand is `grad`. XLA transposes the first operand. It
# should be the smaller one, x; and only then XLA has the fast kernels of CPUs compute the product. For a kernel of
# 768 x 3072 that is twice as fast, for one of 3072 x 768 a little slower.
def _product_backward(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x_BND, kernel = saved
    batch = tuple(range(x_BND.ndim - 1))
    outputs = tuple(range(x_BND.ndim - 1, grad.ndim)), tuple(range(1, kernel.ndim))
    grad_BND, grad_kernel = multiplied(grad, kernel, outputs), multiplied(x_BND, grad, (batch, batch))
    return grad_BND.astype(x_BND.dtype), grad_kernel.astype(kernel.dtype)


product.defvjp(_product_forward, _product_backward)


def multiplied(a: Array, b: Array, axes: Any) -> Array:
    """jnp.tensordot. In bfloat16 on a CPU with instructions for it, the result is computed in float32 and rounded."""
    if asks_for_float32(a, b):
        return jnp.tensordot(a, b, axes, preferred_element_type=jnp.float32).astype(a.dtype)
    return jnp.tensordot(a, b, axes)


def asks_for_float32(a: Array, b: Array) -> bool:
    """Whether `multiplied` asks for float32: XLA for CPUs multiplies bfloat16 as it is only for such a result; for one
    in bfloat16 it converts both factors to float32, which takes twice as long (jax 0.10.2)."""
    return a.dtype == b.dtype == jnp.bfloat16 and platform() == "cpu" and cpu_multiplies_bfloat16()


def cpu_multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for products of bfloat16. False where Linux does not tell."""
    return processor_lists("avx512_bf16") or processor_lists("amx_bf16")


def to_width(layer: Linear, x_BNF: Array, inputs: str) -> Array:
    """layer(x) as [B, N, D]. inputs: name of the kernel's input axis, for sharding.

    If devices share the kernel, it is transposed, so that its first axis is the sharded one (D). XLA for TPUs then sums
    on each device only its own rows of the gradient; with the kernel as stored, every device would sum all of them.
    Elsewhere the transposition would only cost time. Where `multiplied` asks for float32, the derivative is that of
    `product`: JAX's own would multiply float32.
    """
    kernel_FD = layer.kernel[...].reshape(x_BNF.shape[-1], -1)
    if shares_kernels():
        x_BND = jnp.einsum("bnf,df->bnd", x_BNF, constrain(kernel_FD.T, f"width {inputs}"))
    else:
        x_BND = product(x_BNF, kernel_FD) if asks_for_float32(x_BNF, kernel_FD) else x_BNF @ kernel_FD
    if is_adapted(layer):
        x_BND += low_rank(layer, x_BNF)
    return x_BND if layer.bias is None else x_BND + layer.bias[...]


def to_hidden(layer: Linear, x_BND: Array) -> Array:
    """layer(x) as [B, N, F], or [B, N, 2, F] of a gated MLP."""
    kernel = layer.kernel[...]
    hidden = jnp.tensordot(x_BND, kernel, 1) if shares_kernels() else product(x_BND, kernel)
    if is_adapted(layer):
        hidden += low_rank(layer, x_BND)
    return hidden if layer.bias is None else hidden + layer.bias[...]


def to_heads(layer: Linear, x_BND: Array, bias_3TK: Array | None = None) -> tuple[Array, ...]:
    """The queries, keys and values [B, N, T, K] of layer(x), whose kernel is [D, 3, T, K]; its own bias, or another.

    If devices share the kernel, the heads come first in the product, so that each device has queries, keys and values
    of its own heads.
    """
    D, _, T, K = layer.kernel.shape
    if layer.bias is not None:
        bias_3TK = layer.bias[...]
    if shares_kernels():
        kernel_DA = constrain(layer.kernel[...].swapaxes(1, 2).reshape(D, -1), "width heads")
        qkv_BNT3K = (x_BND @ kernel_DA).reshape(*x_BND.shape[:2], T, 3, K)
        if is_adapted(layer):
            qkv_BNT3K += low_rank(layer, x_BND).swapaxes(2, 3)
        if bias_3TK is not None:
            qkv_BNT3K += bias_3TK.swapaxes(0, 1)
        return tuple(jnp.moveaxis(constrain(qkv_BNT3K, "batch tokens heads qkv head_dim"), 3, 0))
    x_BNA = product(x_BND, layer.kernel[...].reshape(D, -1))
    if is_adapted(layer):
        x_BNA += low_rank(layer, x_BND).reshape(x_BNA.shape)
    if bias_3TK is not None:
        x_BNA += bias_3TK.reshape(-1)
    return tuple(x.reshape(*x_BND.shape[:2], T, K) for x in jnp.split(x_BNA, 3, axis=-1))


def is_adapted(layer: Linear) -> bool:
    """Whether a layer has a low-rank adapter."""
    return hasattr(layer, "lora_A")


def low_rank(layer: Linear, x_BNI: Array) -> Array:
    """The output of a layer's adapter, which is added to the layer's: [B, N, outputs], with the outputs' axes as in the
    layer's kernel."""
    down, up = layer.lora_A[...], layer.lora_B[...]
    x_BNR = x_BNI @ down.reshape(x_BNI.shape[-1], -1)
    return layer.lora_scale * jnp.tensordot(x_BNR, up, 1)
