"""The preprocessing of images that keras_hub's image converters state, in both directions.

A converter resizes images and computes pixels * scale + offset, from pixels of 0 to 255. Source: keras_hub/src/layers/
preprocessing/image_converter.py.
"""

from collections.abc import Mapping
from math import sqrt
from typing import Any

from vit_core.checkpoints.formats.channel_constants import per_channel
from vit_core.checkpoints.formats.keras_hub.stated import CONVERTER, shown
from vit_core.checkpoints.formats.known_keys import unknown_keys
from vit_core.config import ViTConfig
from vit_core.errors import InputError
from vit_core.preprocess import Preprocessing

_FILTERS = {"nearest": "nearest", "bilinear": "bilinear", "bicubic": "bicubic", "lanczos3": "lanczos"}
"""Keras's name of a filter -> Pillow's."""
_KNOWN = frozenset(
    ("name", "trainable", "dtype", "image_size", "height", "width", "scale", "offset", "mean", "variance")
    + ("interpolation", "antialias", "crop_to_aspect_ratio", "pad_to_aspect_ratio", "bounding_box_format")
)
_DIGITS = 12
"""Significant digits of a mean and a std: they are quotients, whose last digits are rounding errors."""


def read_preprocessing(
    converter: Mapping[str, Any], model: ViTConfig, where: object
) -> tuple[Preprocessing | None, list[str]]:
    """The preprocessing that a converter states, and notes. None, with a note on the reason, if Preprocessing cannot
    express it."""
    if not converter:
        return None, []
    notes = unknown_keys(CONVERTER, converter, _KNOWN, "pixels")
    try:
        scale, offset = _scale_and_offset(converter, model.channels)
        std = [_rounded(1 / (255 * value)) for value in scale]
        preprocessing = Preprocessing.parse(
            {
                "image_size": model.image_size,
                "channels": model.channels,
                "mean": [_rounded(-value / (255 * factor)) for value, factor in zip(offset, scale, strict=True)],
                "std": std,
                "interpolation": _filter(converter.get("interpolation", "bilinear")),
                "resize": _resize(converter),
            },
            f"{where}: {CONVERTER}",
        )
    except (InputError, TypeError, ValueError, ZeroDivisionError) as reason:
        return None, [f"left out: preprocessing ({reason})", *notes]
    size = converter.get("image_size") or [converter.get("height"), converter.get("width")]
    if size != [None, None] and list(size) != list(model.image_size):
        notes.append(f"{CONVERTER} is for {shown(size)} pixels; used for the model's image size instead")
    if not converter.get("antialias") and preprocessing.interpolation != "nearest":
        notes.append(f"{CONVERTER}: Keras resizes without antialiasing; here it is used, so reduced images differ")
    return preprocessing, notes


def converter_fields(preprocessing: Preprocessing) -> dict[str, Any] | None:
    """The arguments of a converter that does the same; None if there is none."""
    p = preprocessing
    if p.bit_depth != 8 or p.exif_rotation or p.max_patches is not None or p.resize == "border" or p.crop_fraction < 1:
        return None
    return {
        "image_size": list(p.image_size),
        "scale": [1 / (255 * std) for std in p.std],
        "offset": [-mean / std for mean, std in zip(p.mean, p.std, strict=True)],
        "interpolation": next(theirs for theirs, ours in _FILTERS.items() if ours == p.interpolation),
        "antialias": True,
        "crop_to_aspect_ratio": p.resize == "crop",
        "pad_to_aspect_ratio": False,
    }


def _scale_and_offset(converter: Mapping[str, Any], channels: int) -> tuple[list[float], list[float]]:
    """The factor and the summand of each channel. Early files have a mean and a variance of the scaled pixels."""
    scale, offset = converter.get("scale"), converter.get("offset")
    factors = _numbers(1.0 if scale is None else scale, channels)
    if converter.get("mean") is not None and converter.get("variance") is not None:
        means, variances = (_numbers(converter[key], channels) for key in ("mean", "variance"))
        stds = [sqrt(value) for value in variances]
        factors = [factor / std for factor, std in zip(factors, stds, strict=True)]
        return factors, [-mean / std for mean, std in zip(means, stds, strict=True)]
    return factors, _numbers(0.0 if offset is None else offset, channels)


def _numbers(values: Any, channels: int) -> list[float]:
    numbers = [float(value) for value in per_channel(values, channels)]  # type: ignore[attr-defined]
    if len(numbers) != channels:
        raise ValueError(f"{len(numbers)} values for {channels} channels")
    return numbers


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}") + 0.0  # no negative zero


def _filter(name: object) -> str:
    if name not in _FILTERS:
        raise ValueError(f"interpolation {shown(name)}, expected one of {', '.join(_FILTERS)}")
    return _FILTERS[str(name)]


def _resize(converter: Mapping[str, Any]) -> str:
    if converter.get("pad_to_aspect_ratio"):
        raise ValueError("pad_to_aspect_ratio fills borders with zeros, which Preprocessing cannot express")
    return "crop" if converter.get("crop_to_aspect_ratio", True) else "squash"
