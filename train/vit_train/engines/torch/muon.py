"""Muon in PyTorch; vit_train.config.Optimizer documents its formula. Matrices of one shape are moved together, in few
kernels."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vit_train.config import MUON_RMS, NEWTON_SCHULZ, NEWTON_SCHULZ_STEPS
from vit_train.engines.torch.many_tensors import TOGETHER


class Muon(torch.optim.Optimizer):
    """Muon for matrices, by groups with "lr", "momentum" and "nesterov", without weight decay.

    torch's takes one matrix after another and computes the iteration in bfloat16; here it is computed in the type of
    the parameters.
    """

    found_inf: Tensor | None = None
    """A scalar; if it is 1, a step changes nothing. torch's GradScaler sets it for its fused optimizers."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                by_shape.setdefault(p.shape, []).append(p)
            for shape, params in by_shape.items():
                count = max(1, TOGETHER // shape.numel())
                for first in range(0, len(params), count):
                    self._move(params[first : first + count], group)

    def _move(self, params: Sequence[Tensor], group: dict[str, Any]) -> None:
        """Changes matrices of one shape, and their momentum, in place."""
        buffers, kept = [self.state[p]["momentum_buffer"] for p in params], group["momentum"]
        g_NRC = torch.stack([p.grad for p in params if p.grad is not None])
        old_NRC, before_NRC = torch.stack(list(params)), torch.stack(buffers)
        after_NRC = kept * before_NRC + (1 - kept) * g_NRC
        direction_NRC = orthogonalized(kept * after_NRC + (1 - kept) * g_NRC if group["nesterov"] else after_NRC)
        new_NRC = old_NRC - direction_NRC * (group["lr"] * MUON_RMS * math.sqrt(max(params[0].shape)))
        if self.found_inf is not None:
            valid = self.found_inf == 0
            new_NRC, after_NRC = torch.where(valid, new_NRC, old_NRC), torch.where(valid, after_NRC, before_NRC)
        torch._foreach_copy_([*params, *buffers], [*new_NRC, *after_NRC])


def orthogonalized(x_NRC: Tensor) -> Tensor:
    """U f(S) V^T of each matrix whose singular value decomposition is U S V^T, with f of vit_train.config.Optimizer;
    zero for a matrix of zeros. x_NRC: [..., rows, columns]."""
    a, b, c = NEWTON_SCHULZ
    tall = x_NRC.shape[-2] > x_NRC.shape[-1]
    y = x_NRC.mT if tall else x_NRC
    norms = y.square().sum(dim=(-2, -1), keepdim=True).sqrt()
    y = y / norms.clamp(min=torch.finfo(y.dtype).tiny)
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = y @ y.mT
        y = a * y + (b * square + c * square @ square) @ y
    return y.mT if tall else y
