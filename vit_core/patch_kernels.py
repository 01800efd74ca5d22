"""Patch kernels for another patch size, as FlexiViT resizes them (arXiv:2212.08013, section 3.4)."""

from functools import lru_cache

import numpy as np

from vit_core.errors import InputError
from vit_core.position_embeddings import resampling_matrix

METHODS = ("bilinear_antialias", "bicubic_antialias", "bilinear")
"""Methods of resizing the patch itself: timm's two, of which the first is the default, or big_vision's, whose
tf.image.resize does not antialias. For patches of less than half the size, the latter skips pixels, so that the
response of a kernel to a constant image becomes smaller; networks that were trained with it need it."""


@lru_cache(maxsize=64)
def kernel_matrix(method: str, source: int, target: int) -> np.ndarray:
    """The matrix [target, source] that resizes one axis of a kernel, float64, read-only.

    With the matrix B that resizes patches, it is the pseudo-inverse of B's transpose: for resized patches, the resized
    kernel has the outputs that the kernel had before: exactly if patches become larger, and as nearly as possible
    otherwise.
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
