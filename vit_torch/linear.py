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
FEWEST_PRODUCTS = 2**23
"""With fewer multiplications of numbers than this, torch's product is faster, because the call takes longer."""


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
        return onednn_linear(x.reshape(-1, x.shape[-1]), weight_OI, bias_O).view(*x.shape[:-1], len(weight_OI))
    return F.linear(x, weight_OI, bias_O)


def uses_onednn(x: Array, weight_OI: Array, bias_O: Array | None) -> bool:
    """Whether `linear` calls oneDNN itself.

    It does not in exported programs, which may run on another processor, nor where something else works on the tensors
    and would not know the call: DTensor, torch.func, dual numbers, autocast, a tracer or a dispatch mode.
    """
    faster = {torch.float32: MKL_IS_SLOW, torch.bfloat16: AVX512 and bias_O is not None}
    plain = (torch.Tensor, nn.Parameter)
    return (
        faster.get(x.dtype, False)
        and x.device.type == weight_OI.device.type == "cpu"
        and not torch.compiler.is_exporting()
        and (torch.compiler.is_compiling() or not _others_work_on_tensors())
        and not torch.is_autocast_enabled("cpu")
        and bool(torch.backends.mkldnn.enabled)
        and type(x) in plain
        and type(weight_OI) in plain
        and x.dtype == weight_OI.dtype
        and (bias_O is None or bias_O.dtype == x.dtype)
        and x.numel() * len(weight_OI) >= FEWEST_PRODUCTS
    )


def _others_work_on_tensors() -> bool:
    """Whether a tracer, a transformation of torch.func, a dispatch mode or forward differentiation is active."""
    return (
        torch._C._is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch.autograd.forward_ad._current_level >= 0
    )


@torch.library.custom_op("vit_parity::onednn_linear", mutates_args=(), device_types="cpu")
def onednn_linear(x_TI: Array, weight_OI: Array, bias_O: Array | None) -> Array:
    """oneDNN's linear layer [T, O], as an operator that torch.compile knows."""
    return torch.ops.mkldnn._linear_pointwise(x_TI, weight_OI, bias_O, "none", [], "")


@onednn_linear.register_fake
def _(x_TI: Array, weight_OI: Array, bias_O: Array | None) -> Array:
    return x_TI.new_empty((len(x_TI), len(weight_OI)))


@onednn_linear.register_vmap
def _(info: Any, axes: tuple[int | None, ...], *inputs: Array) -> tuple[Array, int]:
    # Reached where a gradient is computed for several directions at once (jacobian(vectorize=True)).
    return torch.vmap(F.linear, axes)(*inputs), 0


def _save(ctx: Any, inputs: tuple[Array, Array, Array | None], output: Array) -> None:
    ctx.save_for_backward(*inputs[:2])


def _gradients(ctx: Any, grad_TO: Array) -> tuple[Array | None, ...]:
    """Two more products, which have derivatives again. Without a bias, torch's own in bfloat16 are as fast."""
    (x_TI, weight_OI), (for_x, for_weight, for_bias) = ctx.saved_tensors, ctx.needs_input_grad
    multiply = onednn_linear if x_TI.dtype == torch.float32 else F.linear
    return (
        multiply(grad_TO, weight_OI.t(), None) if for_x else None,
        multiply(grad_TO.t(), x_TI.t(), None) if for_weight else None,
        grad_TO.sum(0) if for_bias else None,
    )


onednn_linear.register_autograd(_gradients, setup_context=_save)
