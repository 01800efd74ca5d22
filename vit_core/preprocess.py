"""Preprocessing: from an image file to the array that both twins get. This module imports neither JAX nor PyTorch.

Geometry is timm's evaluation transform: torchvision's `Resize` + `CenterCrop` ("crop"), a stretch of both sides
("squash", as SigLIP's), or the whole image within borders ("border"), on 8-bit pixels by Pillow's antialiased
resampling: equal bit for bit to timm, to torchvision on Pillow images, and to transformers' processors with its PIL
backend, whose crop is rounded another way (`crop_rounding`). big_vision also stretches both sides, but with
TensorFlow's resampling, so its bits differ. Decoded JPEG pixels depend on the libjpeg that Pillow was built with;
nothing later depends on the machine.
"""

import io
import math
import os
from functools import cache, lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from pydantic import Field, model_validator

from vit_core.config import Size
from vit_core.errors import InputError
from vit_core.jpeg import START, Smallest, decode_jpeg
from vit_core.naflex import fit_grid
from vit_core.pixels import Pixels
from vit_core.planes import LEVELS, NUMPY, TYPES, Planes, checked_pixels, image_pixels, read_pixels
from vit_core.schema import Positive, Schema

MODES = {1: "L", 3: "RGB"}
"""Number of channels -> Pillow's name for 8-bit pixels."""

DecodedImage: TypeAlias = Pixels | Planes
"""A decoded image: pixels for 8-bit grayscale and RGB, otherwise planes."""
ImageSource: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | np.ndarray
"""The source of an image: a file, the bytes of a file, a Pillow image, or pixels [H, W, C] or [H, W]."""

MAX_RESIZED_PIXELS = 2**27
"""A 1 x 65535 image would grow to gigapixels before its crop; refused beyond this many (512 MiB in Pillow)."""


class Preprocessing(Schema):
    """How images become arrays for a model, as a checkpoint records it."""

    image_size: Size
    """(height, width) in pixels; an int means square."""
    channels: Positive = 3
    """1: grayscale; 3: RGB; another number: all channels of a TIFF or NumPy file."""
    bit_depth: Literal[8, 16] = 8
    """Bits of a pixel in each channel. 16: batches are uint16, with 65535 as white; images of 8 bits are multiplied by
    257."""
    mean: tuple[float, ...] = Field(default_factory=lambda data: (0.5,) * data.get("channels", 3))
    """Mean of each channel, subtracted from pixels in [0, 1]."""
    std: tuple[Annotated[float, Field(gt=0.0)], ...] = Field(
        default_factory=lambda data: (0.5,) * data.get("channels", 3)
    )
    """Standard deviation of each channel, by which the difference is divided."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    """Pillow's filter; when an image is reduced, all filters except nearest antialias."""
    resize: Literal["crop", "squash", "border"] = "crop"
    """Crop: keep the aspect ratio, cover image_size / crop_fraction, cut out the center. Squash: stretch both sides.
    Border: keep the aspect ratio, fit into image_size / crop_fraction, fill the rest with the mean, cut out the
    center."""
    crop_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Side of the center crop over side of the resized image (timm's crop_pct)."""
    crop_rounding: Literal["half_even", "floor"] = "half_even"
    """Rounding of the start of the crop if the margin is odd: half of it to even (torchvision, timm), or down
    (transformers). They differ by one pixel for a margin of 3, 7, 11, ... pixels."""
    exif_rotation: bool = False
    """Rotate the image by its EXIF orientation. Off by default, as in torchvision, timm and big_vision (Pillow always
    rotates TIFF files)."""
    max_patches: Positive | None = None
    """Keep the aspect ratio of each image: both sides are multiplied by one factor and rounded up to whole patches, so
    that it has at most this number of patches (SigLIP 2's NaFlex, arXiv:2502.14786). None: all images have
    image_size."""
    patch_size: Size | None = None
    """With max_patches: (height, width) of a patch in pixels, always the model's."""

    @property
    def pixel_type(self) -> np.dtype[Any]:
        """Type of the pixels before they are normalized: uint8 or uint16."""
        return np.dtype(TYPES[self.bit_depth])

    @model_validator(mode="after")
    def _one_per_channel(self) -> Self:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise ValueError(f"{name} has {len(values)} values, expected one for each of {self.channels} channels")
        return self

    @model_validator(mode="after")
    def _whole_images(self) -> Self:
        if self.max_patches is not None and self.crop_fraction != 1.0:
            raise ValueError("max_patches: images are taken whole; leave crop_fraction 1")
        return self

    def fitted(self, height: int, width: int) -> "Preprocessing":
        """The preprocessing for an image of this height and width in pixels: with max_patches, its image_size is that
        of this image. Raises InputError if patch_size is missing."""
        if self.max_patches is None:
            return self
        if self.patch_size is None:
            raise InputError("preprocessing.max_patches: needs preprocessing.patch_size, that of the model")
        grid = fit_grid(height, width, self.patch_size, self.max_patches)
        size = tuple(count * patch for count, patch in zip(grid, self.patch_size, strict=True))
        return self.replace(image_size=size, max_patches=None, patch_size=None, resize="squash")


IMAGE_FIELDS = ("mean", "std", "resize", "crop_fraction", "interpolation")
"""The fields of Preprocessing in which other projects differ."""


def preprocessing_text(preprocessing: Preprocessing) -> str:
    """`IMAGE_FIELDS` and the other fields that are not the default, as `--preprocessing` takes them: `mean=0.5,0.5,0.5
    std=0.5,0.5,0.5 resize=crop crop_fraction=1 interpolation=bicubic`."""
    rest = ("bit_depth", "crop_rounding", "exif_rotation", "max_patches")
    others = [name for name in rest if getattr(preprocessing, name) != Preprocessing.model_fields[name].default]
    return " ".join(f"{name}={_value_text(getattr(preprocessing, name))}" for name in (*IMAGE_FIELDS, *others))


def _value_text(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_value_text, value))
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value).lower()


def assumed_preprocessing(preprocessing: Preprocessing) -> str:
    """The message for a checkpoint without preprocessing."""
    return (
        "preprocessing: the checkpoint does not record how its images were made; assumed "
        f"{preprocessing_text(preprocessing)}"
    )


@cache
def register_formats() -> None:
    """Lets Pillow read HEIC, where the package pillow-heif is installed. (It reads AVIF by itself.)"""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return
    register_heif_opener()


def decode_image(source: str | os.PathLike[str] | bytes, channels: int = 3, exif_rotation: bool = False) -> Image.Image:
    """The image in a file (or in the bytes of one), mode "RGB" or "L" by `channels`: its first frame, in full.

    As in torchvision's and timm's data sets: Pillow's `convert`, which drops alpha (the hidden colors show), ignores
    ICC profiles and turns CMYK to RGB. Other than there, 16-bit grayscale is scaled to 8 bits rather than clipped.
    InputError, in one line with the file's name, for whatever is not a whole image of known range.
    """
    if channels not in MODES:
        raise InputError(f"cannot decode to {channels} channels: expected 1 (grayscale) or 3 (RGB)")
    name = "image bytes" if isinstance(source, bytes) else f"image {os.fspath(source)!r}"
    register_formats()
    # Half an image must never pass for a whole one, but other libraries lift Pillow's check for the whole process.
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
        if size < 0 and isinstance(error, OSError):
            raise InputError(f"cannot read {name}: {error.strerror}") from error
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


def decode(source: ImageSource, preprocessing: Preprocessing, smallest: Smallest | None = None) -> DecodedImage:
    """The image in a file (or in the bytes of one, or in memory), with the channels and bits of `preprocessing`.

    8-bit grayscale and RGB: as `decode_image`. Others: from TIFF, NumPy (.npy, [H, W, C]), arrays and what Pillow
    reads; their number of channels has to be that of `preprocessing`. smallest: the size that is needed of a JPEG file,
    which may then be decoded smaller than it is. Raises InputError as `decode_image` does.
    """
    ordinary = preprocessing.bit_depth == 8 and preprocessing.channels in MODES
    if not isinstance(source, str | os.PathLike | bytes):
        return _from_memory(source, preprocessing, ordinary)
    if ordinary and not _is_numpy(source):
        content = source if isinstance(source, bytes) else _jpeg_file(source)
        if content is not None and preprocessing.channels == 3 and not preprocessing.exif_rotation:
            pixels_HWC = decode_jpeg(content, smallest)
            if pixels_HWC is not None:
                return Pixels(pixels_HWC)
        return Pixels.of(decode_image(source, preprocessing.channels, preprocessing.exif_rotation))
    name = "image bytes" if isinstance(source, bytes) else f"image {os.fspath(source)!r}"
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
        planes = Planes.of(read_pixels(content, preprocessing.channels), preprocessing.bit_depth)
    except Exception as error:  # decoders answer broken files with exceptions of every kind
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"cannot decode {name}: {reason}") from error
    return Pixels(planes.pixels()) if ordinary else planes


def _jpeg_file(path: str | os.PathLike[str]) -> bytes | None:
    """The bytes of a JPEG file; None for another one, or one that cannot be read."""
    try:
        with open(path, "rb") as file:
            start = file.read(len(START))
            return start + file.read() if start == START else None
    except (OSError, ValueError):  # a name with a null byte
        return None


def _from_memory(source: Image.Image | np.ndarray, preprocessing: Preprocessing, ordinary: bool) -> DecodedImage:
    """The same image as from a file of these pixels; what is given is not changed."""
    channels, ordinary_pixels = preprocessing.channels, False
    try:
        if not isinstance(source, Image.Image | np.ndarray):
            raise InputError(f"it is of type {type(source).__name__}; expected a path, bytes, a PIL image or an array")
        if isinstance(source, np.ndarray):
            known = source.ndim == 2 or (source.ndim == 3 and source.shape[2] <= 4)
            ordinary_pixels = ordinary and known and source.dtype == np.uint8
        if isinstance(source, Image.Image) or ordinary_pixels:
            image = source.copy() if isinstance(source, Image.Image) else _as_image(source)
            if preprocessing.exif_rotation:
                ImageOps.exif_transpose(image, in_place=True)
            if ordinary:
                return Pixels.of(_eight_bits(image).convert(MODES[channels]))
            source = image_pixels(image)
        planes = Planes.of(checked_pixels(source, channels), preprocessing.bit_depth)
    except Exception as error:  # an image that was opened from a file is decoded here
        raise InputError(f"cannot use the image: {' '.join(str(error).split()) or type(error).__name__}") from error
    return Pixels(planes.pixels()) if ordinary else planes


def _as_image(pixels: np.ndarray) -> Image.Image:
    """Pillow's image of uint8 [H, W] or [H, W, C]."""
    return Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)


def _is_numpy(source: str | os.PathLike[str] | bytes) -> bool:
    if isinstance(source, bytes):
        return source.startswith(NUMPY)
    return os.fspath(source).endswith(".npy")


def resize_image(image: DecodedImage | Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    """uint8 or uint16 [H, W, C] (C last, also when 1) from a decoded image, by `preprocessing`'s geometry.

    Raises InputError as `resized` does, and if the mode of an image of Pillow's does not have `channels` channels.
    """
    return np.array(pixels_of(resized(as_decoded(image, preprocessing.channels), preprocessing)))


def as_decoded(image: DecodedImage | Image.Image, channels: int) -> DecodedImage:
    """A decoded image; one of Pillow's as pixels. Raises InputError if its mode is not that of `channels`."""
    if not isinstance(image, Image.Image):
        return image
    if image.mode != MODES.get(channels):
        raise InputError(f"cannot resize an image of mode {image.mode}: expected {MODES.get(channels, 'planes')}")
    return Pixels.of(image)


def pixels_of(image: DecodedImage) -> np.ndarray:
    """uint8 or uint16 [H, W, C] of a decoded image; maybe read-only."""
    return image.pixels() if isinstance(image, Planes) else image.pixels_HWC


def resized(image: DecodedImage, preprocessing: Preprocessing) -> DecodedImage:
    """A decoded image at the size of `preprocessing`, by its geometry.

    Raises InputError if the aspect ratio is too extreme to resize in memory.
    """
    preprocessing = preprocessing.fitted(image.height, image.width)
    image, (height, width) = uncropped(image, preprocessing), preprocessing.image_size
    top = crop_start(image.height - height, preprocessing.crop_rounding)
    left = crop_start(image.width - width, preprocessing.crop_rounding)
    return image.crop((left, top, left + width, top + height))


def uncropped(image: DecodedImage, preprocessing: Preprocessing) -> DecodedImage:
    """The whole resized image, of which `resized` takes the center; it covers the size of `preprocessing`.

    Raises InputError as `resized` does.
    """
    made = preprocessing
    full_height, full_width = _resized_size(image.height, image.width, made.image_size, made.crop_fraction, made.resize)
    if full_height * full_width * (len(image.planes) if isinstance(image, Planes) else 1) > MAX_RESIZED_PIXELS:
        raise InputError(
            f"cannot resize an image of {image.height} x {image.width} pixels to {full_height} x {full_width} before "
            f"the crop: expected at most {MAX_RESIZED_PIXELS} pixels; use resize 'squash' or a less extreme image"
        )
    if (image.height, image.width) != (full_height, full_width):
        image = image.resize((full_width, full_height), Image.Resampling[preprocessing.interpolation.upper()])
    if preprocessing.resize == "border":
        image = _with_borders(image, preprocessing)
    return image


def crop_start(margin: int, rounding: Literal["half_even", "floor"]) -> int:
    """Number of pixels that a center crop leaves out before it begins, of `margin` pixels that it leaves out."""
    return margin // 2 if rounding == "floor" else round(margin / 2)  # Python's round: half to even, as torchvision's


def crop_rounding_matters(preprocessing: Preprocessing) -> bool:
    """Whether another crop_rounding gives other pixels for some image."""
    if preprocessing.resize != "squash":
        return True  # the margin depends on the image's aspect ratio
    margins = (math.floor(side / preprocessing.crop_fraction) - side for side in preprocessing.image_size)
    return any(crop_start(margin, "floor") != crop_start(margin, "half_even") for margin in margins)


def _with_borders(image: DecodedImage, preprocessing: Preprocessing) -> DecodedImage:
    """The image in the center of one that covers image_size, the rest filled with the mean; timm's CenterCropOrPad."""
    fill = tuple(round(LEVELS[preprocessing.bit_depth] * mean) for mean in preprocessing.mean)
    if isinstance(image, Planes):
        pairs = zip(image.planes, fill, strict=True)
        return Planes(tuple(_bordered(plane, preprocessing.image_size, level) for plane, level in pairs), image.bits)
    return Pixels.of(_bordered(image.image(), preprocessing.image_size, fill if len(fill) > 1 else fill[0]))


def _bordered(image: Image.Image, image_size: tuple[int, int], fill: Any) -> Image.Image:
    height, width = image_size
    size = (max(image.width, width), max(image.height, height))
    bordered = Image.new(image.mode, size, fill)
    bordered.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
    return bordered


@lru_cache
def _resized_size(
    height: int, width: int, image_size: tuple[int, int], crop_fraction: float, resize: str
) -> tuple[int, int]:
    """(height, width) of the whole resized image, in the exact arithmetic of timm, torchvision and transformers."""
    target_height, target_width = (math.floor(side / crop_fraction) for side in image_size)
    ratios = height / target_height, width / target_width
    match resize:
        case "squash":
            return target_height, target_width
        case "border":  # timm's ResizeKeepRatio(longest=1.0): fit into both sides, rounded
            # Pillow refuses a side of no pixels, which timm would ask for.
            return max(round(height / max(ratios)), 1), max(round(width / max(ratios)), 1)
        case "crop" if target_height == target_width:  # torchvision's Resize(int): the longer side truncated
            short, long = sorted((height, width))
            grown = int(target_height * long / short)
            return (grown, target_width) if height > width else (target_height, grown)
    return round(height / min(ratios)), round(width / min(ratios))  # timm's ResizeKeepRatio: cover both sides, rounded


def offset_and_scale(preprocessing: Preprocessing) -> tuple[np.ndarray, np.ndarray]:
    """float32 [C] and float32 [C] for `(pixels - offset) * scale`: 255 mean and 1 / (255 std), each rounded once; 65535
    instead of 255 for pixels of 16 bits."""
    levels = float(LEVELS[preprocessing.bit_depth])
    offset = levels * np.array(preprocessing.mean, np.float64)
    scale = 1.0 / (levels * np.array(preprocessing.std, np.float64))
    return offset.astype(np.float32), scale.astype(np.float32)


def normalize(pixels: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """float32 [..., H, W, C] from uint8 [..., H, W, C]: (x / 255 - mean) / std, as one subtraction and one product.
    From uint16 and with 65535, where `preprocessing` has 16 bits.

    A product after a difference is no fused multiply-add, and both round correctly on every device, so the twins may do
    the same there, from `offset_and_scale`, and get these very bits. A division would not do: XLA compiles x / s with s
    broadcast to x * (1 / s), and its division on NVIDIA GPUs is not correctly rounded. Raises InputError for other than
    the type of these bits or another number of channels.
    """
    if pixels.dtype != preprocessing.pixel_type or pixels.shape[-1:] != (preprocessing.channels,):
        raise InputError(
            f"cannot normalize {pixels.dtype} {list(pixels.shape)}: expected {preprocessing.pixel_type} "
            f"[..., {preprocessing.channels}]"
        )
    offset, scale = offset_and_scale(preprocessing)
    normalized: np.ndarray = (pixels.astype(np.float32) - offset) * scale
    return normalized


def load_image(source: ImageSource, preprocessing: Preprocessing) -> np.ndarray:
    """float32 [H, W, C], ready for either twin: decode, resize, normalize. Errors are those of the three."""
    image = decode(source, preprocessing)
    return normalize(resize_image(image, preprocessing), preprocessing)
