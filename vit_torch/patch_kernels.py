"""The patch kernel for patches of another size, in PyTorch. Read it beside vit_jax/patch_kernels.py."""

import torch
from torch import Tensor as Array

from vit_core.patch_kernels import METHODS, kernel_matrix


def resized(kernel_DCPQ: Array, size: tuple[int, int]) -> Array:
    """The kernel for patches of `size` (height, width), as FlexiViT resizes it (vit_core.patch_kernels): a linear map,
    through which gradients reach the kernel. At least in float32, rounded once."""
    precise = kernel_DCPQ.to(torch.promote_types(kernel_DCPQ.dtype, torch.float32))
    sides = zip(kernel_DCPQ.shape[2:], size, strict=True)
    rows, columns = (precise.new_tensor(kernel_matrix(METHODS[0], *side)) for side in sides)
    return torch.einsum("yp,xq,dcpq->dcyx", rows, columns, precise).to(kernel_DCPQ.dtype)
