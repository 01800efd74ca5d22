"""Images of any size and aspect in one batch, as sequences of patches with padding (NaViT, arXiv:2307.06304; SigLIP 2's
NaFlex, arXiv:2502.14786). Everything that depends on sizes alone is computed here, for both twins.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vit_core.errors import InputError
from vit_core.position_embeddings import axis_matrices
from vit_core.rotations import coordinates

if TYPE_CHECKING:
    from vit_core.config import ViTConfig


class PatchedImages(NamedTuple):
    """A batch of images as patches, independent of a model: B images, at most N patches, V values in a patch."""

    patches_BNV: np.ndarray
    """Pixels: the patches of an image row by row, each flattened from (height, width, channels); zeros after the last
    one."""
    grids_B2: np.ndarray
    """int32: patches down and across."""


class Patches(NamedTuple):
    """A batch of images as patches, as the input of a model: h w is the config's grid."""

    patches_BNV: Any
    """As in PatchedImages, but normalized."""
    rows_BNh: Any
    """For each patch, the weights of the rows of the position table."""
    columns_BNw: Any
    """For each patch, the weights of the table's columns."""
    coordinates_BN2: Any
    """For each patch, its rotary coordinates (vit_core.rotations); None without rotary positions."""
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


def patchify(image_HWC: np.ndarray, patch_size: tuple[int, int]) -> np.ndarray:
    """An image [H, W, C] as patches [h * w, V], row by row. Raises InputError for sides that are not multiples of the
    patch size."""
    (H, W, C), (P, Q) = image_HWC.shape, patch_size
    if H % P or W % Q:
        raise InputError(f"an image of {H}x{W} is not a multiple of the patch {P}x{Q}; resize it by fit_grid")
    patches_hPwQC = image_HWC.reshape(H // P, P, W // Q, Q, C)
    return patches_hPwQC.transpose(0, 2, 1, 3, 4).reshape(-1, P * Q * C)


def patched(images: Sequence[np.ndarray], patch_size: tuple[int, int], length: int | None = None) -> PatchedImages:
    """Images [H, W, C], with sides that are multiples of the patch size, as one batch.

    length: number of patches to which all images are padded (default: that of the largest image). Raises InputError for
    images that do not fit.
    """
    flat = [patchify(image, patch_size) for image in images]
    longest = max(len(patches_NV) for patches_NV in flat)
    N = longest if length is None else length
    if longest > N:
        raise InputError(f"length: {N} is less than the {longest} patches of the largest image")
    patches_BNV = np.zeros((len(flat), N, flat[0].shape[1]), flat[0].dtype)
    for i, patches_NV in enumerate(flat):
        patches_BNV[i, : len(patches_NV)] = patches_NV
    sizes_B2 = np.array([image.shape[:2] for image in images], np.int32)
    return PatchedImages(patches_BNV, sizes_B2 // np.array(patch_size, np.int32))


def placed(images: PatchedImages, config: ViTConfig, dtype: Any = np.float64) -> Patches:
    """A batch with the position weights and coordinates that a model needs, as `dtype`. Raises InputError as
    `check_model` does."""
    check_model(config)
    (B, N, _), (h, w) = images.patches_BNV.shape, config.grid
    rows_BNh, columns_BNw = (np.zeros((B, N, side), dtype) for side in (h, w))
    coordinates_BN2 = None if config.rope is None else np.zeros((B, N, 2), dtype)
    for i, (down, across) in enumerate(images.grids_B2.tolist()):
        rows, columns = axis_matrices(config.position_resampling, (h, w), (down, across))
        rows_BNh[i, : down * across] = np.repeat(rows, across, axis=0)
        columns_BNw[i, : down * across] = np.tile(columns, (down, 1))
        if config.rope is not None and coordinates_BN2 is not None:
            coordinates_BN2[i, : down * across] = coordinates(config.rope, (down, across), 0)
    valid_BN = np.arange(N) < images.grids_B2.prod(axis=1)[:, None]
    return Patches(images.patches_BNV, rows_BNh, columns_BNw, coordinates_BN2, valid_BN)


def check_model(config: ViTConfig) -> None:
    """Raises InputError for a model that cannot take patches of any aspect."""
    if config.relative_bias != "none" or config.stem_layers is not None or config.patch_norms:
        raise InputError(
            "patches of any aspect need a model without relative positions, a stem and norms of whole patches"
        )


def collate(images: Sequence[np.ndarray], config: ViTConfig, length: int | None = None) -> Patches:
    """Normalised images [H, W, C] as an input batch of a model; see `patched` and `placed`."""
    return placed(patched(images, config.patch_size, length), config)
