"""Ordinary images: 8 bits, grayscale or RGB, as one array. (Others are `vit_core.planes.Planes`.)"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from vit_core import resampling


@dataclass(frozen=True)
class Pixels:
    """An image with those methods of Pillow's images that crop, resize, turn and move, and with their bits."""

    pixels_HWC: np.ndarray
    """uint8, of 1 or 3 channels; not changed by anyone."""

    @classmethod
    def of(cls, image: Image.Image) -> "Pixels":
        """From an image of Pillow's, of mode "L" or "RGB"."""
        return cls(np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, -1))

    @property
    def width(self) -> int:
        """In pixels."""
        return self.pixels_HWC.shape[1]

    @property
    def height(self) -> int:
        """In pixels."""
        return self.pixels_HWC.shape[0]

    def image(self) -> Image.Image:
        """The same as an image of Pillow's."""
        mode = "L" if self.pixels_HWC.shape[-1] == 1 else "RGB"
        return Image.frombytes(mode, (self.width, self.height), np.ascontiguousarray(self.pixels_HWC))

    def crop(self, box: tuple[int, int, int, int]) -> "Pixels":
        """The pixels in (left, top, right, bottom); black outside the image."""
        left, top, right, bottom = box
        if min(left, top) < 0 or right > self.width or bottom > self.height:
            return Pixels.of(self.image().crop(box))
        return Pixels(self.pixels_HWC[top:bottom, left:right])

    def resize(self, size: tuple[int, int], resample: Image.Resampling) -> "Pixels":
        """Resampled to (width, height)."""
        width, height = size
        return Pixels(resampling.resize(self.pixels_HWC, height, width, resample.name.lower()))

    def transpose(self, method: Image.Transpose) -> "Pixels":
        """Flipped or turned."""
        if method == Image.Transpose.FLIP_LEFT_RIGHT:
            return Pixels(resampling.mirror(self.pixels_HWC))
        return Pixels.of(self.image().transpose(method))

    def transform(self, size: tuple[int, int], method: Any, data: Any, resample: Image.Resampling) -> "Pixels":
        """Moved, as Pillow's method of this name does it; black outside the border."""
        return Pixels.of(self.image().transform(size, method, data, resample))
