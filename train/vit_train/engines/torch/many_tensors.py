"""The same arithmetic on each of many tensors. On a GPU it is done in few kernels, each of which takes microseconds
however small its tensors are, by the functions that torch's own optimizers use (`torch._foreach_...`)."""

from collections.abc import Iterator

import torch
from torch import Tensor

TOGETHER = 2**24
"""Elements of the tensors that are computed together, at most: 64 MiB in float32, of which a step needs a few times as
much for a moment. A larger tensor is computed alone."""


def squared_norms(tensors: list[Tensor]) -> Tensor:
    """The sum of squares of each tensor: [tensors]."""
    if all(x.is_cuda for x in tensors):
        return torch.stack(torch._foreach_norm(tensors)).square()
    # torch's norm adds float32 one by one on a CPU: for 4 million elements its error is 1e-4, that of a sum 2e-8.
    return torch.stack([x.square().sum() for x in tensors])


def multiply(tensors: list[Tensor], factor: Tensor) -> None:
    """Multiplies each tensor by a scalar, in place."""
    torch._foreach_mul_(tensors, factor)


def move(tensors: list[Tensor], targets: list[Tensor], share: Tensor) -> None:
    """Moves each tensor by a share, a scalar, of its way to its target, in place."""
    for some in _parts(tensors):
        found = tensors[some]
        if len(found) == 1:  # which may be large: without a copy
            found[0].lerp_(targets[some][0], share)
            continue
        ways = torch._foreach_sub(targets[some], found)
        torch._foreach_mul_(ways, share)
        torch._foreach_add_(found, ways)


def shrink(tensors: list[Tensor], share: Tensor) -> None:
    """Subtracts a share, a scalar, of each tensor from it, in place. (A product with 1 - share would lose a small share
    to rounding in float32.)"""
    for some in _parts(tensors):
        found = tensors[some]
        if len(found) == 1:  # which may be large: without a copy
            found[0].addcmul_(found[0], share, value=-1)
        else:
            torch._foreach_sub_(found, torch._foreach_mul(found, share))


def _parts(tensors: list[Tensor]) -> Iterator[slice]:
    """The tensors in parts of at most TOGETHER elements, in order."""
    first = elements = 0
    for i, x in enumerate(tensors):
        if i > first and elements + x.numel() > TOGETHER:
            yield slice(first, i)
            first, elements = i, 0
        elements += x.numel()
    if tensors:
        yield slice(first, len(tensors))
