"""Linear layers in PyTorch, by the processor's fastest products. Read it beside vit_jax/linear.py.

I and O are the inputs and outputs of a layer; N counts all tokens of a batch.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor as Array
from torch import nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

from vit_core.processor import processor_lists
from vit_torch.onednn import AVX512, can_be_called, without_gradients

MKL_IS_SLOW = AVX512 and processor_lists("AuthenticAMD")
"""Whether MKL, torch's choice for float32, uses only half the width of this processor's vectors."""
FEWEST_PRODUCTS = 2**23
"""With fewer multiplications of numbers than this, torch's product is faster, because the call takes longer."""
GELUS = {"gelu": "none", "gelu_tanh": "tanh"}
"""oneDNN's name for the approximation in each GELU."""


class Linear(nn.Linear):
    """torch.nn.Linear with the products of `linear`."""

    def forward(self, input: Array) -> Array:
        return linear(input, self.weight, self.bias)


class AdaptedLinear(Linear):
    """A linear layer with a low-rank adapter (vit_core.lora): W x + b + scale B A x."""

    def __init__(self, layer: nn.Linear, rank: int, scale: float) -> None:
        """Takes the parameters of a layer; those of the adapter have the same type and device, and no values yet."""
        with torch.device("meta"):
            super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None)
        self.weight, self.bias, self.scale = layer.weight, layer.bias, scale
        device, dtype = layer.weight.device, layer.weight.dtype
        self.lora_A = Linear(layer.in_features, rank, bias=False, device=device, dtype=dtype)
        self.lora_B = Linear(rank, layer.out_features, bias=False, device=device, dtype=dtype)

    def forward(self, input: Array) -> Array:
        return super().forward(input) + self.scale * self.lora_B(self.lora_A(input))


def linear(x: Array, weight_OI: Array, bias_O: Array | None) -> Array:
    """x [..., I] times the transposed weight, plus the bias: [..., O], as torch.nn.functional.linear computes it.

    On CPUs with vectors of 512 bits, large layers call oneDNN themselves: in float32 on AMD's, where MKL takes twice as
    long, and in bfloat16 with a bias, which torch would copy to the whole output first.
    """
    if not uses_onednn(x, weight_OI, bias_O):
        return F.linear(x, weight_OI, bias_O)
    multiply = product if without_gradients() else onednn_linear
    return multiply(x.reshape(-1, x.shape[-1]), weight_OI, bias_O).view(*x.shape[:-1], len(weight_OI))


def linear_gelu(layer: nn.Module, x: Array, activation: str) -> Array | None:
    """The activation of a linear layer's output [..., O] in one call of oneDNN; None if that is not possible or slower.

    Only without gradients, which need the values before the activation, and in bfloat16, where the result is rounded
    once in place of twice. A layer has to be called itself if it is more than a linear layer, has hooks, or another
    forward method (such as accelerate's).
    """
    hooks = layer._forward_hooks, layer._forward_pre_hooks, _global_forward_hooks, _global_forward_pre_hooks
    observed = any(hooks) or "forward" in vars(layer)
    if activation not in GELUS or type(layer) is not Linear or observed:
        return None
    if x.dtype != torch.bfloat16 or not without_gradients() or not uses_onednn(x, layer.weight, layer.bias):
        return None
    out_NO = product(x.reshape(-1, x.shape[-1]), layer.weight, layer.bias, GELUS[activation])
    return out_NO.view(*x.shape[:-1], layer.out_features)


def uses_onednn(x: Array, weight_OI: Array, bias_O: Array | None) -> bool:
    """Whether `linear` calls oneDNN itself."""
    faster = {torch.float32: MKL_IS_SLOW, torch.bfloat16: AVX512 and bias_O is not None}
    usable = faster.get(x.dtype, False) and can_be_called(x, weight_OI, bias_O)
    return usable and x.numel() * len(weight_OI) >= FEWEST_PRODUCTS


def product(x_NI: Array, weight_OI: Array, bias_O: Array | None, gelu: str | None = None) -> Array:
    """oneDNN's linear layer [T, O], followed by a GELU with an approximation by its name. It has no derivative."""
    activation = "none" if gelu is None else "gelu"
    return cast(Array, torch.ops.mkldnn._linear_pointwise(x_NI, weight_OI, bias_O, activation, [], gelu or ""))


@torch.library.custom_op("vit_parity::onednn_linear", mutates_args=(), device_types="cpu")
def onednn_linear(x_NI: Array, weight_OI: Array, bias_O: Array | None) -> Array:
    """oneDNN's linear layer [T, O], as an operator that has a derivative and that torch.compile knows."""
    return product(x_NI, weight_OI, bias_O)


@onednn_linear.register_fake
def _(x_NI: Array, weight_OI: Array, bias_O: Array | None) -> Array:
    return x_NI.new_empty((len(x_NI), len(weight_OI)))


@onednn_linear.register_vmap
def _(info: Any, axes: tuple[int | None, ...], *inputs: Array) -> tuple[Array, int]:
    # Reached where a gradient is computed for several directions at once (jacobian(vectorize=True)).
    return torch.vmap(F.linear, axes)(*inputs), 0


def _save(ctx: Any, inputs: tuple[Array, Array, Array | None], output: Array) -> None:
    ctx.save_for_backward(*inputs[:2])


def _gradients(ctx: Any, grad_NO: Array) -> tuple[Array | None, ...]:
    """Two more products, which have derivatives again. Without a bias, torch's own in bfloat16 are as fast."""
    (x_NI, weight_OI), (for_x, for_weight, for_bias) = ctx.saved_tensors, ctx.needs_input_grad
    multiply = onednn_linear if x_NI.dtype == torch.float32 else F.linear
    return (
        multiply(grad_NO, weight_OI.t(), None) if for_x else None,
        multiply(grad_NO.t(), x_NI.t(), None) if for_weight else None,
        grad_NO.sum(0) if for_bias else None,
    )


onednn_linear.register_autograd(_gradients, setup_context=_save)
