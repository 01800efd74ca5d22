"""Muon in PyTorch; vit_train.config.Optimizer documents its formula. Matrices of one shape are moved together, in few
kernels."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vit_train.config import MUON_RMS, NEWTON_SCHULZ, NEWTON_SCHULZ_STEPS
from vit_train.engines.torch.many_tensors import TOGETHER
from vit_train.engines.torch.slicing import Piece, Slicing


class Muon(torch.optim.Optimizer):
    """Muon for matrices, by groups with "lr", "momentum" and "nesterov", without weight decay.

    torch's takes one matrix after another and computes the iteration in bfloat16; here it is computed in the type of
    the parameters. Of matrices that processes have in pieces, each process orthogonalizes a share.
    """

    found_inf: Tensor | None = None
    """A scalar; if it is 1, a step changes nothing. torch's GradScaler sets it for its fused optimizers."""

    def __init__(
        self, groups: list[dict[str, Any]], defaults: dict[str, Any], slicing: Slicing, pieces: Mapping[Tensor, Piece]
    ) -> None:
        super().__init__(groups, defaults)
        self.slicing, self.pieces = slicing, pieces

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[Tensor]] = {}
            for p in group["params"]:
                by_shape.setdefault(self.pieces[p].shape, []).append(p)
            for shape, params in by_shape.items():
                count = max(1, TOGETHER // math.prod(shape)) * self.slicing.count
                for first in range(0, len(params), count):
                    self._move(params[first : first + count], group)

    def _move(self, params: Sequence[Tensor], group: dict[str, Any]) -> None:
        """Changes matrices of one shape, or this process's pieces of them, and their momentum, in place."""
        buffers, kept = [self.state[p]["momentum_buffer"] for p in params], group["momentum"]
        pieces = [self.pieces[p] for p in params]
        g = self.slicing.join([p.grad for p in params if p.grad is not None])
        old, before = self.slicing.join(params), self.slicing.join(buffers)
        after = kept * before + (1 - kept) * g
        seen = kept * after + (1 - kept) * g if group["nesterov"] else after
        direction = self.slicing.on_whole(orthogonalized, seen, pieces)
        new = old - direction * (group["lr"] * MUON_RMS * math.sqrt(max(pieces[0].shape)))
        if self.found_inf is not None:
            valid = self.found_inf == 0
            new, after = torch.where(valid, new, old), torch.where(valid, after, before)
        torch._foreach_copy_([*params, *buffers], [*self.slicing.part(new, params), *self.slicing.part(after, params)])


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
