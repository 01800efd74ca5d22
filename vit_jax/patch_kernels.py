"""The patch kernel for patches of another size, in JAX. Read it beside vit_torch/patch_kernels.py."""

import jax.numpy as jnp
from jax import Array

from vit_core.patch_kernels import METHODS, kernel_matrix


def resized(kernel_PQCD: Array, size: tuple[int, int]) -> Array:
    """The kernel for patches of `size` (height, width), as FlexiViT resizes it (vit_core.patch_kernels): a linear map,
    through which gradients reach the kernel. At least in float32, rounded once."""
    precise = kernel_PQCD.astype(jnp.promote_types(kernel_PQCD.dtype, jnp.float32))
    sides = zip(kernel_PQCD.shape[:2], size, strict=True)
    rows, columns = (jnp.asarray(kernel_matrix(METHODS[0], *side), precise.dtype) for side in sides)
    return jnp.einsum("yp,xq,pqcd->yxcd", rows, columns, precise).astype(kernel_PQCD.dtype)
