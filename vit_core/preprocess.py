"""From an image file to the array both twins see. Nothing here knows JAX or PyTorch, so there is one array, not two.

Geometry is timm's evaluation transform, which is torchvision's `Resize` + `CenterCrop` ("crop"), or a stretch of both
sides ("squash", as SigLIP's), on 8-bit pixels by Pillow's antialiased resampling: equal to timm's bit for bit.
big_vision stretches likewise, but with TensorFlow's resampling, so not to the same bits.
Decoded JPEG pixels depend on the libjpeg that Pillow was built with; nothing later depends on the machine.
"""

import io
import math
import os
from typing import Annotated, Literal, Self

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from pydantic import Field, model_validator

from vit_core.config import Size
from vit_core.errors import InputError
from vit_core.schema import Schema

MODES = {1: "L", 3: "RGB"}
"""Pillow's name for 8-bit pixels of so many channels."""

MAX_RESIZED_PIXELS = 2**27
"""A 1 x 65535 image would grow to gigapixels before its crop; refused beyond this many (512 MiB in Pillow)."""


class Preprocessing(Schema):
    """What a checkpoint records about how its images were made into arrays."""

    image_size: Size
    """(height, width) in pixels; an int means square."""
    channels: Literal[1, 3] = 3
    """1: grayscale; 3: RGB."""
    mean: tuple[float, ...] = Field(default_factory=lambda data: (0.5,) * data.get("channels", 3))
    """Subtracted, per channel, from pixels that range over [0, 1]."""
    std: tuple[Annotated[float, Field(gt=0.0)], ...] = Field(
        default_factory=lambda data: (0.5,) * data.get("channels", 3)
    )
    """What the difference is divided by, per channel."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    """Pillow's filter; all but nearest widen with the scale when shrinking (antialias)."""
    resize: Literal["crop", "squash"] = "crop"
    """Crop: keep the aspect ratio, cover image_size / crop_fraction, cut out the centre. Squash: stretch both sides."""
    crop_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Side of the centre crop over side of the resized image (timm's crop_pct)."""
    exif_rotation: bool = False
    """Turn the image as its EXIF orientation says. Off, as in training everywhere (TIFF: Pillow always turns it)."""

    @model_validator(mode="after")
    def _one_per_channel(self) -> Self:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise ValueError(f"{name} has {len(values)} values, expected one for each of {self.channels} channels")
        return self


def decode_image(source: str | os.PathLike[str] | bytes, channels: int = 3, exif_rotation: bool = False) -> Image.Image:
    """The image in a file (or in the bytes of one), mode "RGB" or "L" by `channels`: its first frame, in full.

    As in torchvision's and timm's data sets: Pillow's `convert`, which drops alpha (the hidden colours show), ignores
    ICC profiles and turns CMYK to RGB. Other than there, 16-bit grayscale is scaled to 8 bits rather than clipped.
    InputError, in one line with the file's name, for whatever is not a whole image of known range.
    """
    if channels not in MODES:
        raise InputError(f"cannot decode to {channels} channels: expected 1 (grayscale) or 3 (RGB)")
    name = "image bytes" if isinstance(source, bytes) else f"image {os.fspath(source)!r}"
    # Half a picture must never pass for a whole one, but other libraries lift Pillow's check for the whole process.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    size = -1
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            with Image.open(file) as image:
                image.load()  # before its mode is read, which some decoders settle only here
                if exif_rotation:
                    ImageOps.exif_transpose(image, in_place=True)
                return _eight_bits(image).convert(MODES[channels])
    except Exception as error:  # decoders answer broken files with SyntaxError, struct.error, IndexError and more
        if size == 0:
            reason = "it is empty"
        elif isinstance(error, UnidentifiedImageError):  # its own text prints the address of a Python object
            reason = f"its {size} bytes begin no image format that Pillow knows"
        else:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"cannot decode {name}: {reason}; expected a whole JPEG, PNG or the like") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image in a mode that Pillow's `convert` brings to 8 bits faithfully."""
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, for which no white level is agreed")
    if image.mode.startswith("I"):
        # `convert` clips at 255, so a 16-bit scan would come out all white. 65535 = 255 * 257: divide, to the nearest.
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError(f"its pixels range over [{levels.min()}, {levels.max()}], outside 16 bits")
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    image.info.pop("transparency", None)  # alpha is dropped; a palette's would only make Pillow warn
    return image


def resize_image(image: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    """uint8 [H, W, C] (C last, also when 1) from a decoded image, by `preprocessing`'s geometry.

    InputError where the image's mode is not that of `channels`, or the aspect ratio too extreme to resize in memory.
    """
    channels, (height, width) = preprocessing.channels, preprocessing.image_size
    if image.mode != MODES[channels]:
        raise InputError(f"cannot resize an image of mode {image.mode}: expected {MODES[channels]}")
    full_height, full_width = _resized_size(image.height, image.width, preprocessing)
    if full_height * full_width > MAX_RESIZED_PIXELS:
        raise InputError(
            f"cannot resize an image of {image.height} x {image.width} pixels to {full_height} x {full_width} before "
            f"the crop: expected at most {MAX_RESIZED_PIXELS} pixels; mend with resize 'squash' or a less extreme image"
        )
    image = image.resize((full_width, full_height), Image.Resampling[preprocessing.interpolation.upper()])
    # Python's round, half to even, is torchvision's. The resized image is never smaller than the crop: nothing to pad.
    top, left = round((full_height - height) / 2), round((full_width - width) / 2)
    return np.array(image.crop((left, top, left + width, top + height))).reshape(height, width, channels)


def _resized_size(height: int, width: int, preprocessing: Preprocessing) -> tuple[int, int]:
    """(height, width) of the whole resized image, in the very arithmetic of timm and torchvision."""
    target_height, target_width = (math.floor(side / preprocessing.crop_fraction) for side in preprocessing.image_size)
    if preprocessing.resize == "squash":
        return target_height, target_width
    if target_height == target_width:  # torchvision's Resize(int): the shorter side exact, the longer truncated
        short, long = sorted((height, width))
        grown = int(target_height * long / short)
        return (grown, target_width) if height > width else (target_height, grown)
    ratio = min(height / target_height, width / target_width)  # timm's ResizeKeepRatio: cover both sides, rounded
    return round(height / ratio), round(width / ratio)


def offset_and_scale(preprocessing: Preprocessing) -> tuple[np.ndarray, np.ndarray]:
    """float32 [C] and float32 [C] for `(pixels - offset) * scale`: 255 mean and 1 / (255 std), each rounded once."""
    offset = 255.0 * np.array(preprocessing.mean, np.float64)
    scale = 1.0 / (255.0 * np.array(preprocessing.std, np.float64))
    return offset.astype(np.float32), scale.astype(np.float32)


def normalise(pixels: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """float32 [..., H, W, C] from uint8 [..., H, W, C]: (x / 255 - mean) / std, as one subtraction and one product.

    A product after a difference is no fused multiply-add, and both round correctly on every device, so the twins may
    do the same there, from `offset_and_scale`, and get these very bits. A division would not do: XLA compiles x / s
    with s broadcast to x * (1 / s), and its division on NVIDIA GPUs is not correctly rounded. InputError for other
    than uint8 or another number of channels.
    """
    if pixels.dtype != np.uint8 or pixels.shape[-1:] != (preprocessing.channels,):
        raise InputError(
            f"cannot normalise {pixels.dtype} {list(pixels.shape)}: expected uint8 [..., {preprocessing.channels}]"
        )
    offset, scale = offset_and_scale(preprocessing)
    return (pixels.astype(np.float32) - offset) * scale


def load_image(source: str | os.PathLike[str] | bytes, preprocessing: Preprocessing) -> np.ndarray:
    """float32 [H, W, C], ready for either twin: decode, resize, normalise. Errors are those of the three."""
    image = decode_image(source, preprocessing.channels, preprocessing.exif_rotation)
    return normalise(resize_image(image, preprocessing), preprocessing)
