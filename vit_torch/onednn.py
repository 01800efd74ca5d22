"""Where layers call oneDNN themselves: torch's library for CPUs, which torch does not use wherever it is fastest."""

from __future__ import annotations

import torch
from torch import Tensor as Array
from torch import nn

AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
"""Whether the vectors of this CPU have 512 bits. Only then does oneDNN multiply matrices fast in bfloat16."""


def can_be_called(*arrays: Array | None) -> bool:
    """Whether a layer may call oneDNN for these arrays, instead of torch's own function.

    It may not in exported programs, which may run on another processor, nor where something else works on the tensors
    and would not know the call: DTensor, torch.func, dual numbers, autocast, a tracer or a dispatch mode.
    `torch.backends.mkldnn.enabled = False` turns oneDNN off.
    """
    given = [array for array in arrays if array is not None]
    return (
        all(array.device.type == "cpu" and array.dtype == given[0].dtype for array in given)
        and all(type(array) in (torch.Tensor, nn.Parameter) for array in given)
        and not torch.compiler.is_exporting()
        and (torch.compiler.is_compiling() or not _others_work_on_tensors())
        and not torch.is_autocast_enabled("cpu")
        and bool(torch.backends.mkldnn.enabled)
    )


def without_gradients() -> bool:
    """Whether operators can be called that have no derivative, and that torch.compile does not know."""
    return not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def softmax(scores_BTNM: Array) -> Array:
    """The softmax over the last axis, in bfloat16 computed in float32 as torch does. oneDNN takes half the time."""
    if AVX512 and scores_BTNM.dtype == torch.bfloat16 and without_gradients() and can_be_called(scores_BTNM):
        return torch.softmax(scores_BTNM.to_mkldnn(), dim=-1).to_dense()
    return torch.softmax(scores_BTNM, dim=-1)


def _others_work_on_tensors() -> bool:
    """Whether a tracer, a transformation of torch.func, a dispatch mode or forward differentiation is active."""
    return (
        torch._C._is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch.autograd.forward_ad._current_level >= 0
    )
