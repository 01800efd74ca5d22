"""Linear layers by the processor's fastest products. vit_jax/layers.py has the other twin's."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor as Array
from torch import nn

from vit_core.processor import processor_lists
from vit_torch.fused import AVX512

MKL_IS_SLOW = AVX512 and processor_lists("AuthenticAMD")
"""Whether MKL, torch's choice for float32, uses only half the width of this processor's vectors."""
FEWEST_PRODUCTS = 2**20
"""oneDNN takes longer to start: with fewer multiplications of numbers than this, MKL is as fast or faster."""


class Linear(nn.Linear):
    """torch.nn.Linear with the products of `linear`."""

    def forward(self, input: Array) -> Array:
        return linear(input, self.weight, self.bias)


def linear(x: Array, weight_OI: Array, bias_O: Array | None) -> Array:
    """x [..., I] times the transposed weight, plus the bias: [..., O], as torch.nn.functional.linear computes it.

    On CPUs with vectors of 512 bits, large layers call oneDNN themselves: in float32 on AMD's, where MKL takes twice as
    long, and in bfloat16 with a bias, which torch would copy to the whole output first. oneDNN is a part of torch;
    `torch.backends.mkldnn.enabled = False` turns this off.
    """
    if uses_onednn(x, weight_OI, bias_O):
        return OneDnnLinear.apply(x, weight_OI, bias_O)
    return F.linear(x, weight_OI, bias_O)


def uses_onednn(x: Array, weight_OI: Array, bias_O: Array | None) -> bool:
    """Whether `linear` calls oneDNN itself.

    It does not in programs that torch.compile or an export makes, nor where something else works on the tensors, which
    would not know the call: DTensor, torch.func, dual numbers, autocast, a tracer or a dispatch mode.
    """
    faster = {torch.float32: MKL_IS_SLOW, torch.bfloat16: AVX512 and bias_O is not None}
    plain = (torch.Tensor, nn.Parameter)
    return (
        faster.get(x.dtype, False)
        and not torch.compiler.is_compiling()
        and not torch._C._is_tracing()
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._len_torch_dispatch_stack()
        and torch.autograd.forward_ad._current_level < 0
        and not torch.is_autocast_enabled("cpu")
        and bool(torch.backends.mkldnn.enabled)
        and type(x) in plain
        and type(weight_OI) in plain
        and x.device.type == weight_OI.device.type == "cpu"
        and x.dtype == weight_OI.dtype
        and (bias_O is None or bias_O.dtype == x.dtype)
        and x.numel() * len(weight_OI) >= FEWEST_PRODUCTS
    )


class OneDnnLinear(torch.autograd.Function):
    """oneDNN's linear layer. Its gradients are products of `linear` again, so it has derivatives of every order."""

    @staticmethod
    def forward(ctx: Any, x: Array, weight_OI: Array, bias_O: Array | None) -> Array:
        ctx.save_for_backward(x, weight_OI)
        return torch.ops.mkldnn._linear_pointwise(x, weight_OI, bias_O, "none", [], "")

    @staticmethod
    def backward(ctx: Any, grad: Array) -> tuple[Array | None, ...]:
        (x, weight_OI), (for_x, for_weight, for_bias) = ctx.saved_tensors, ctx.needs_input_grad
        grad_TO, x_TI = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        return (
            linear(grad, weight_OI.t(), None) if for_x else None,
            linear(grad_TO.t(), x_TI.t(), None) if for_weight else None,
            grad_TO.sum(0) if for_bias else None,
        )
