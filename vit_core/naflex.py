"""Images of any size and aspect in one batch, as sequences of patches with padding (NaViT, arXiv:2307.06304; SigLIP 2's
NaFlex, arXiv:2502.14786). What is decided by sizes alone is computed here, the same for both twins.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vit_core.errors import InputError
from vit_core.position_embeddings import axis_matrices
from vit_core.preprocess import normalise, resize_image

if TYPE_CHECKING:
    from PIL import Image

    from vit_core.config import ViTConfig
    from vit_core.preprocess import Picture, Preprocessing


class Patches(NamedTuple):
    """A batch of images as patches: B images, N patches at most, P values in a patch, h w the config's grid."""

    patches_BNP: Any
    """Normalised pixels, floats: patches of an image row by row, each with the axes height, width, channels; zeros
    after the last one."""
    rows_BNh: Any
    """For each patch the weights of the rows of the position table."""
    columns_BNw: Any
    """For each patch the weights of the table's columns."""
    valid_BN: Any
    """True for patches of the image, False for padding."""


def fit_grid(height: int, width: int, patch_size: tuple[int, int], max_patches: int) -> tuple[int, int]:
    """Patches (down, across) that an image is resized to: the largest grid of at most max_patches whose sides are the
    image's, times one factor, rounded up to whole patches (transformers' Siglip2ImageProcessor, big_vision).

    Raises InputError for a limit below one patch.
    """
    if max_patches < 1:
        raise InputError(f"max_patches: {max_patches}, expected 1 or more")

    def grid(scale: float) -> tuple[int, int]:
        down, across = (
            max(ceil(scale * side / patch), 1) for side, patch in zip((height, width), patch_size, strict=True)
        )
        return down, across

    # The same bisection as theirs, to the same precision, so that the grids are equal for every image size.
    low, high = 1e-5 / 10, 100.0
    while high - low >= 1e-5:
        middle = (low + high) / 2
        down, across = grid(middle)
        low, high = (middle, high) if down * across <= max_patches else (low, middle)
    return grid(low)


def fit_image(
    image: Picture | Image.Image, preprocessing: Preprocessing, patch_size: tuple[int, int], max_patches: int
) -> np.ndarray:
    """A decoded image, resized to its grid of at most max_patches and normalised: float32 [H, W, C], for `collate`.

    Of `preprocessing` the filter and the constants are used; the size follows from the image. The pixels are those of
    transformers' Siglip2ImageProcessor with its PIL backend. InputError as for `fit_grid` and `resize_image`.
    """
    down, across = fit_grid(image.height, image.width, patch_size, max_patches)
    image_size = (down * patch_size[0], across * patch_size[1])
    whole = preprocessing.replace(image_size=image_size, resize="squash", crop_fraction=1.0)
    return normalise(resize_image(image, whole), whole)


def patchify(image_HWC: np.ndarray, patch_size: tuple[int, int]) -> np.ndarray:
    """An image [H, W, C] as patches [h * w, P], row by row. Raises InputError for sides that are no whole patches."""
    (H, W, C), (P, Q) = image_HWC.shape, patch_size
    if H % P or W % Q:
        raise InputError(f"an image of {H}x{W} is not a multiple of the patch {P}x{Q}; resize it by fit_grid")
    patches_hPwQC = image_HWC.reshape(H // P, P, W // Q, Q, C)
    return patches_hPwQC.transpose(0, 2, 1, 3, 4).reshape(-1, P * Q * C)


def collate(images: Sequence[np.ndarray], config: ViTConfig, length: int | None = None) -> Patches:
    """Images [H, W, C], normalised and of whole patches each, as one batch.

    length: number of patches that all are padded to (default: that of the largest image). Raises InputError for images
    that do not fit, and for models with rotary or relative positions, a stem or patch norms.
    """
    if (config.rope, config.relative_bias, config.stem_layers, config.patch_norms) != (None, "none", None, False):
        raise InputError("patches of any aspect need a model with absolute positions only, no stem and no patch norms")
    flat = [patchify(image, config.patch_size) for image in images]
    longest = max(len(patches_NP) for patches_NP in flat)
    N = longest if length is None else length
    if longest > N:
        raise InputError(f"length: {N} is less than the {longest} patches of the largest image")
    first, (h, w) = flat[0], config.grid
    dtype = np.result_type(first.dtype, np.float32)
    patches_BNP = np.zeros((len(flat), N, first.shape[1]), dtype)
    rows_BNh, columns_BNw = (np.zeros((len(flat), N, side), np.float64) for side in (h, w))
    for i, (image, patches_NP) in enumerate(zip(images, flat, strict=True)):
        down, across = (side // patch for side, patch in zip(image.shape[:2], config.patch_size, strict=True))
        rows, columns = axis_matrices(config.position_resampling, (h, w), (down, across))
        n = len(patches_NP)
        patches_BNP[i, :n] = patches_NP
        rows_BNh[i, :n] = np.repeat(rows, across, axis=0)
        columns_BNw[i, :n] = np.tile(columns, (down, 1))
    valid_BN = np.arange(N) < np.array([len(patches_NP) for patches_NP in flat])[:, None]
    return Patches(patches_BNP, rows_BNh, columns_BNw, valid_BN)
