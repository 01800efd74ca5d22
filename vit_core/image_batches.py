"""Makes batches of images: an array if they have one size, otherwise patches."""

import numpy as np

from vit_core.errors import InputError
from vit_core.naflex import PatchedImages, patched
from vit_core.preprocess import Preprocessing

ImageArrays = np.ndarray | PatchedImages
"""Pixels [B, H, W, C], or the patches of images of any aspect."""


class Images:
    """A batch of `count` images in the making. Rows are set one by one, by several threads too: pixels [H, W, C] as
    `preprocessing` makes them. Those that are not set are zeros."""

    def __init__(self, preprocessing: Preprocessing, count: int) -> None:
        self.preprocessing = preprocessing
        # With max_patches an image that is not there has one patch.
        size = preprocessing.patch_size if preprocessing.max_patches is not None else preprocessing.image_size
        if size is None:
            raise InputError("preprocessing.max_patches: needs preprocessing.patch_size, that of the model")
        self.pixels_BHWC = np.zeros((count, *size, preprocessing.channels), preprocessing.pixel_type)
        self.rows = list(self.pixels_BHWC) if preprocessing.max_patches is not None else []

    def __setitem__(self, row: int, pixels_HWC: np.ndarray) -> None:
        if self.rows:
            self.rows[row] = pixels_HWC
        else:
            self.pixels_BHWC[row] = pixels_HWC

    def batch(self) -> ImageArrays:
        """The batch."""
        made, limit = self.preprocessing, self.preprocessing.max_patches
        if limit is None or made.patch_size is None:
            return self.pixels_BHWC
        return patched(self.rows, made.patch_size, limit)
