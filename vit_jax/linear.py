"""Linear layers in JAX, by XLA's fastest products. Read it beside vit_torch/linear.py.

model.py explains the names of arrays; I counts the inputs of a layer, R the rank of its adapter.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from vit_core.processor import processor_lists
from vit_jax.sharding import constrain, platform, shares_kernels


class Linear(nnx.LinearGeneral):
    """A linear layer, which may have a low-rank adapter (vit_jax.lora.attach). The functions below apply both."""

    lora_A: nnx.Param[Array]
    lora_B: nnx.Param[Array]
    lora_scale: float


def linear(*sizes: Any, **options: Any) -> Linear:
    """A linear layer of zeros: its values come from the parameter table, drawn by ViT or read from a checkpoint."""
    return Linear(*sizes, kernel_init=nnx.initializers.zeros, rngs=nnx.Rngs(0), **options)


@jax.custom_vjp
def product(x_BND: Array, kernel: Array) -> Array:
    """Product [B, N, ...] over the first axis of a kernel [D, ...]. XLA for CPUs computes its gradient fast if the
    kernel has more outputs than inputs, and in bfloat16 always (see `matmul`)."""
    return matmul(x_BND, kernel, 1)


def _product_forward(x_BND: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return matmul(x_BND, kernel, 1), (x_BND, kernel)  # not `product`: `remat` would not see what it may keep


# JAX writes the gradient of a kernel as a product whose first operand is `grad`. XLA transposes the first operand. It
# should be the smaller one, x; and only then XLA has the fast kernels of CPUs compute the product. For a kernel of
# 768 x 3072 that is twice as fast, for one of 3072 x 768 a little slower.
def _product_backward(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x_BND, kernel = saved
    batch = tuple(range(x_BND.ndim - 1))
    outputs = tuple(range(x_BND.ndim - 1, grad.ndim)), tuple(range(1, kernel.ndim))
    grad_BND, grad_kernel = matmul(grad, kernel, outputs), matmul(x_BND, grad, (batch, batch))
    return grad_BND.astype(x_BND.dtype), grad_kernel.astype(kernel.dtype)


product.defvjp(_product_forward, _product_backward)


def matmul(a: Array, b: Array, axes: Any) -> Array:
    """jnp.tensordot. In bfloat16 on a CPU with instructions for it, the result is computed in float32 and rounded."""
    if needs_float32_result(a, b):
        return jnp.tensordot(a, b, axes, preferred_element_type=jnp.float32).astype(a.dtype)
    return jnp.tensordot(a, b, axes)


def needs_float32_result(a: Array, b: Array) -> bool:
    """Whether `matmul` computes the result in float32: XLA for CPUs multiplies bfloat16 as it is only for such a
    result; for one in bfloat16 it converts both factors to float32, which takes twice as long (jax 0.10.2)."""
    return a.dtype == b.dtype == jnp.bfloat16 and platform() == "cpu" and cpu_multiplies_bfloat16()


def cpu_multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for products of bfloat16. False where Linux does not tell."""
    return processor_lists("avx512_bf16") or processor_lists("amx_bf16")


def to_width(layer: Linear, x_BNF: Array, inputs: str) -> Array:
    """layer(x) as [B, N, D]. inputs: name of the kernel's input axis, for sharding.

    If devices share the kernel, it is transposed, so that its first axis is the sharded one (D). XLA for TPUs then sums
    on each device only its own rows of the gradient; with the kernel as stored, every device would sum all of them.
    Elsewhere the transposition would only cost time. Where `matmul` needs a float32 result, the derivative is that of
    `product`: JAX's own would multiply float32.
    """
    kernel_FD = layer.kernel[...].reshape(x_BNF.shape[-1], -1)
    if shares_kernels():
        x_BND = jnp.einsum("bnf,df->bnd", x_BNF, constrain(kernel_FD.T, f"width {inputs}"))
    else:
        x_BND = product(x_BNF, kernel_FD) if needs_float32_result(x_BNF, kernel_FD) else x_BNF @ kernel_FD
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
