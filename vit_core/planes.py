"""Images of any number of channels, of 8 or 16 bits, from TIFF files, NumPy files (.npy) and what Pillow reads.

Pillow resamples no such image as a whole. Each channel is an image of floating-point numbers of its own (Pillow's mode
"F"), all are changed alike, and numbers are rounded once, at the end.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from vit_core.errors import InputError

LEVELS = {8: 255, 16: 65535}
"""Number of bits of a pixel -> its largest value."""
TYPES = {8: np.uint8, 16: np.uint16}
"""Number of bits of a pixel -> the type of the array."""
MAX_VALUES = 2**28
"""Pixels times channels of an image, at most."""
RGB = 3
"""The number of channels to which grayscale pixels are converted."""
NUMPY = b"\x93NUMPY"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of the files; TIFF's last two are BigTIFF."""


@dataclass(frozen=True)
class Planes:
    """An image, channel by channel. It has those methods of Pillow's images that crop, resize, turn and move."""

    planes: tuple[Image.Image, ...]
    """One for each channel, of mode "F"."""
    bits: int
    """8 or 16: values range over [0, 255] or [0, 65535], and may be a little outside after resampling."""

    @classmethod
    def of(cls, pixels_HWC: np.ndarray, bits: int) -> "Planes":
        """From uint8 or uint16 [H, W, C]; scaled where the type has another number of bits: by 257, or divided by it
        and rounded to nearest."""
        found = 8 * pixels_HWC.dtype.itemsize
        if found < bits:
            pixels_HWC = pixels_HWC.astype(np.uint16) * np.uint16(257)
        elif found > bits:
            pixels_HWC = ((pixels_HWC.astype(np.uint32) + 128) // 257).astype(np.uint8)
        channels = np.moveaxis(pixels_HWC, -1, 0).astype(np.float32)
        return cls(tuple(Image.fromarray(np.ascontiguousarray(plane_HW)) for plane_HW in channels), bits)

    @property
    def width(self) -> int:
        """In pixels."""
        return self.planes[0].width

    @property
    def height(self) -> int:
        """In pixels."""
        return self.planes[0].height

    def each(self, change: Callable[[Image.Image], Image.Image]) -> "Planes":
        """Every channel changed alike."""
        return Planes(tuple(map(change, self.planes)), self.bits)

    def crop(self, box: tuple[int, int, int, int]) -> "Planes":
        """The pixels in (left, top, right, bottom)."""
        return self.each(lambda plane: plane.crop(box))

    def resize(self, size: tuple[int, int], resample: Image.Resampling) -> "Planes":
        """Resampled to (width, height)."""
        return self.each(lambda plane: plane.resize(size, resample))

    def transpose(self, method: Image.Transpose) -> "Planes":
        """Flipped or turned."""
        return self.each(lambda plane: plane.transpose(method))

    def transform(self, size: tuple[int, int], method: Any, data: Any, resample: Image.Resampling) -> "Planes":
        """Moved, as Pillow's method of this name does it; black outside the border."""
        return self.each(lambda plane: plane.transform(size, method, data, resample))

    def pixels(self) -> np.ndarray:
        """uint8 or uint16 [H, W, C]: rounded to nearest and clipped."""
        values_HWC = np.stack([np.asarray(plane) for plane in self.planes], axis=-1)
        return np.rint(values_HWC).clip(0, LEVELS[self.bits]).astype(TYPES[self.bits])


def read_pixels(content: bytes, channels: int) -> np.ndarray:
    """uint8 or uint16 [H, W, C] from the bytes of a TIFF or NumPy file, or of one that Pillow reads.

    Nothing in the file is run. Raises InputError for another number of channels or type of pixels, and other
    exceptions, as the libraries do, for a damaged file.
    """
    if content.startswith(NUMPY):
        pixels = _from_numpy(content)
    elif content.startswith(TIFF):
        pixels = _from_tiff(content)
    else:
        pixels = _from_pillow(content)
    return checked_pixels(pixels, channels)


def checked_pixels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """uint8 or uint16 [H, W, C] from [H, W, C], or from one channel [H, W] or [H, W, 1], which becomes each of three as
    in Pillow's conversion from grayscale to RGB. Raises InputError for another number of channels or type."""
    pixels_HWC = pixels[..., None] if pixels.ndim == 2 else pixels
    if channels == RGB and pixels_HWC.ndim == 3 and pixels_HWC.shape[-1] == 1:
        pixels_HWC = np.repeat(pixels_HWC, RGB, axis=-1)
    if pixels_HWC.ndim != 3 or pixels_HWC.shape[-1] != channels:
        raise InputError(f"its shape is {list(pixels.shape)}; expected [height, width, {channels}]")
    if pixels_HWC.dtype.newbyteorder("=") not in (np.uint8, np.uint16):
        raise InputError(f"its pixels are {pixels_HWC.dtype}; expected uint8 or uint16")
    return pixels_HWC.astype(pixels_HWC.dtype.newbyteorder("="), copy=False)


def _from_numpy(content: bytes) -> np.ndarray:
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject or np.prod(shape, dtype=object) * dtype.itemsize > len(content):  # before memory is taken
        raise InputError(f"its header says {dtype} {list(shape)}, which its {len(content)} bytes cannot hold")
    array: np.ndarray = np.load(io.BytesIO(content), allow_pickle=False)
    return array


def _from_tiff(content: bytes) -> np.ndarray:
    """The first image of a TIFF; its channels may be interleaved, in planes, or in pages."""
    try:
        import tifffile
    except ImportError:
        raise InputError(
            "it is a TIFF of such channels, which needs tifffile: pip install 'vit-parity[tiff]'"
        ) from None
    with tifffile.TiffFile(io.BytesIO(content)) as tiff:
        series = tiff.series[0]
        axes, shape = series.axes, series.shape
        if "Y" not in axes or "X" not in axes or len(axes) > 3 or np.prod(shape, dtype=object) > MAX_VALUES:
            raise InputError(f"it holds {axes} {list(shape)}; expected one image of height, width and channels")
        pixels = series.asarray()
    rest = [i for i, axis in enumerate(axes) if axis not in "YX"]
    return pixels.transpose(axes.index("Y"), axes.index("X"), *rest)


def _from_pillow(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        if image.format == "PNG" and len(content) > 25 and content[24] == 16 and content[25] != 0:
            raise InputError("it is a PNG of 16-bit colors, which Pillow reads as 8 bits; save it as TIFF")
        return image_pixels(image)


def image_pixels(image: Image.Image) -> np.ndarray:
    """The pixels of a Pillow image, [H, W] or [H, W, C]. Raises InputError if they are indices into a palette."""
    image.load()
    if image.mode == "P":
        raise InputError("its colors are in a palette; expected one value for each channel")
    pixels = np.asarray(image)
    return pixels.astype(np.uint16) if image.mode.startswith("I") else pixels
