"""Patch kernels for another patch size, as FlexiViT resizes them (arXiv:2212.08013, section 3.4)."""

from functools import lru_cache

import numpy as np

from vit_core.errors import InputError
from vit_core.position_embeddings import resampling_matrix

METHODS = ("bilinear_antialias", "bicubic_antialias", "bilinear")
"""How the patch itself would be resized: by timm's two, of which the first is the default, or as in big_vision, whose
tf.image.resize does not antialias. For patches of less than half the size that leaves pixels out, so that a kernel
answers a plain image with a part of what it did; networks that were trained with it expect just that."""


@lru_cache(maxsize=64)
def kernel_matrix(method: str, source: int, target: int) -> np.ndarray:
    """The matrix [target, source] that resizes one axis of a kernel, float64, read-only.

    With the matrix B that resizes patches, it is the pseudo-inverse of B's transpose: the resized kernel gives on
    resized patches what the kernel gave before, exactly where patches grow, and as nearly as possible otherwise.
    """
    matrix: np.ndarray = np.linalg.pinv(
        resampling_matrix(method, source, target).T,
        rcond=max(source, target) * np.finfo(np.float64).eps,  # some matrices are singular: bicubic from 32 to 48
    )
    matrix.flags.writeable = False
    return matrix


def resize_kernel(kernel_DCPQ: np.ndarray, size: tuple[int, int], method: str = METHODS[0]) -> np.ndarray:
    """The kernel [D, C, P, Q] for patches of another size (height, width), computed in float64, in its own type.

    Resizing is separable, and so is its pseudo-inverse. Raises InputError for an unknown method.
    """
    if method not in METHODS:
        raise InputError(f"patch_resampling: {method!r}, expected one of {', '.join(METHODS)}")
    rows, columns = (kernel_matrix(method, *axis) for axis in zip(kernel_DCPQ.shape[2:], size, strict=True))
    resized = np.einsum("Pp,Qq,dcpq->dcPQ", rows, columns, kernel_DCPQ.astype(np.float64), optimize=True)
    return resized.astype(kernel_DCPQ.dtype)
