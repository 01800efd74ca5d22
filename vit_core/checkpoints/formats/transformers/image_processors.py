"""Reads and writes transformers' preprocessor_config.json, for what Preprocessing can express: a fixed size and
Pillow's filters.

Its processors stretch (ViT, SigLIP), stretch and crop (DeiT), or scale the shortest edge and crop (Bit, which is
DINOv2's, and CLIP). The pixels equal those of the PIL backend bit for bit. The torchvision backend, the default if
torchvision is installed, rounds differently and differs by a few levels of 255.
"""

import json
from collections.abc import Mapping
from math import floor, nextafter
from typing import Any, Literal

from vit_core.checkpoints.formats.channel_constants import equal_in_one, per_channel
from vit_core.checkpoints.formats.interface import Source
from vit_core.checkpoints.formats.known_keys import unknown_keys
from vit_core.config import ViTConfig
from vit_core.errors import InputError
from vit_core.preprocess import Preprocessing, crop_rounding_matters

_HALF = [0.5, 0.5, 0.5]
_IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
_CLIP: dict[str, Any] = {
    "size": {"shortest_edge": 224},
    "crop_size": 224,
    "do_center_crop": True,
    "resample": 3,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "ViT": {"size": 224, "resample": 2, "image_mean": _HALF, "image_std": _HALF},
    "DeiT": {**_CLIP, "size": 256, "image_mean": _HALF, "image_std": _HALF},
    "Siglip": {"size": 224, "resample": 3, "image_mean": _HALF, "image_std": _HALF},
    "Siglip2": {"resample": 2, "image_mean": _HALF, "image_std": _HALF, "default_to_square": True},
    "Bit": _CLIP,
    "CLIP": _CLIP,
    "Beit": {"size": 224, "crop_size": 224, "resample": 3, "image_mean": _HALF, "image_std": _HALF},
    "DINOv3ViT": {"size": 224, "resample": 2, "image_mean": _IMAGENET[0], "image_std": _IMAGENET[1]},
}
"""Processor -> its defaults."""
_OF_MODEL = {
    "vit": "ViT",
    "deit": "DeiT",
    "vit_mae": "ViT",
    "vit_msn": "ViT",
    "ijepa": "ViT",
    "dinov2": "Bit",
    "dinov2_with_registers": "Bit",
    "dinov3_vit": "DINOv3ViT",
    "beit": "Beit",
    "data2vec-vision": "Beit",
    "internvl_vision": "GotOcr2",
    "siglip_vision_model": "Siglip",
    "siglip2_vision_model": "Siglip2",
    "aimv2_vision_model": "CLIP",
    "clip_vision_model": "CLIP",
}
_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's number of a filter -> its name."""
_PROCESSOR = {"crop": "BitImageProcessor", "squash": "ViTImageProcessor", "squash, cropped": "DeiTImageProcessor"}
_ROUNDING: Literal["floor"] = "floor"
"""How all processors round the position of the center crop, in both backends."""
_KNOWN = frozenset(
    ("image_processor_type", "feature_extractor_type", "processor_class", "_processor_class", "_valid_processor_keys")
    + ("do_convert_rgb", "do_resize", "size", "default_to_square", "resample", "do_center_crop", "crop_size")
    + ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "do_pad", "pad_size", "device")
    + ("do_reduce_labels", "reduce_labels", "patch_size", "max_num_patches")
    + ("data_format", "input_data_format", "return_tensors", "disable_grouping", "image_seq_length")
    + ("model_input_names", "transformers_version", "_auto_class")
)
"""Keys that are read here, or that do not change pixels."""
FILE = "preprocessor_config.json"


def read_preprocessing(
    source: Source, model: ViTConfig, model_type: str, said_size: object
) -> tuple[Preprocessing | None, list[str]]:
    """The preprocessing that the file states, but for the model's image size; and notes. It is None, with a note on the
    reason, if Preprocessing cannot express it or a value is invalid. said_size: the image size in config.json, or None.
    """
    if not source.preprocessor:
        return None, []
    notes = unknown_keys(FILE, source.preprocessor, _KNOWN, "pixels")
    try:
        if said_size not in (None, model.image_size):
            raise _Unsaid(f"it is for {said_size[0]}x{said_size[1]} pixels, which whole patches do not cover")  # type: ignore[index]
        kind = _kind(source.preprocessor, model_type)
        fields, size = _preprocessing_fields(source.preprocessor, kind, model)
    except _Unsaid as reason:
        return None, [f"{FILE} left out: {reason}", *notes]
    where = f"{source.path}: {FILE}"
    try:
        if kind == "Siglip2":
            fields |= {"max_patches": source.preprocessor.get("max_num_patches", 256), "patch_size": model.patch_size}
        preprocessing = Preprocessing.parse({**fields, "image_size": model.image_size}, where)
    except InputError as reason:
        return None, [f"left out: preprocessing ({reason})", *notes]
    if source.preprocessor.get("do_normalize") is not False:
        constants = {key: source.preprocessor.get(key) for key in ("image_mean", "image_std")}
        notes += equal_in_one(FILE, constants, model.channels)
    if kind == "DINOv3ViT":
        notes.append(
            f"{FILE}: DINOv3's processor does not round pixels to whole levels after resizing; here they are rounded"
        )
    if size != model.image_size:
        notes.append(f"{FILE} is for {size[0]}x{size[1]} pixels; used for the model's image size instead")
    return preprocessing, notes


class _Unsaid(Exception):
    """Preprocessing cannot express what the file states."""


def _kind(file: Mapping[str, Any], model_type: str) -> str:
    """The name of the processor in a file, or of the model's default one, without suffixes such as "ImageProcessor"."""
    kind = file.get("image_processor_type") or file.get("feature_extractor_type") or _OF_MODEL.get(model_type, "ViT")
    for end in ("Pil", "Fast", "ImageProcessor", "FeatureExtractor"):
        kind = str(kind).removesuffix(end)
    return str(kind)


def _preprocessing_fields(
    file: Mapping[str, Any], kind: str, model: ViTConfig
) -> tuple[dict[str, Any], tuple[int, int]]:
    """The fields of Preprocessing except image_size, and the image size (height, width)."""
    if kind not in _DEFAULTS:
        raise _Unsaid(f"it is for {kind[:60]}ImageProcessor")
    said = {**_DEFAULTS[kind], **{key: value for key, value in file.items() if value is not None}}
    if kind == "Siglip2":  # its processor chooses a size for each image
        said["size"] = list(model.image_size)
    if model.channels not in (1, 3):
        raise _Unsaid(f"the model has {model.channels} channels, expected 1 or 3")
    if not (said.get("do_resize", True) is said.get("do_rescale", True) is True):
        raise _Unsaid("images are not resized or not rescaled (do_resize or do_rescale is false)")
    if said.get("rescale_factor", 1 / 255) not in (1 / 255, 0.00392156862745098):
        raise _Unsaid("rescale_factor is not 1/255")
    if said.get("do_pad", False) is not False:
        raise _Unsaid("images are padded (do_pad)")
    square = said.get("default_to_square", kind in ("ViT", "DeiT", "Beit", "DINOv3ViT"))
    resize, whole = _size(said["size"], "squash" if square else "crop")
    cropped = said.get("do_center_crop", False)
    if cropped:
        _, size = _size(said.get("crop_size"), "squash")
    elif resize == "squash":
        size = whole
    else:
        raise _Unsaid("the shortest edge is scaled without a crop")
    fractions = {_fraction(side, full) for side, full in zip(size, whole, strict=True)}
    if len(fractions) > 1:
        raise _Unsaid(f"the crop of {size[0]}x{size[1]} from {whole[0]}x{whole[1]} has another aspect ratio")
    normalized = said.get("do_normalize", True)
    return {
        "channels": model.channels,
        "mean": per_channel(said["image_mean"] if normalized else 0.0, model.channels),
        "std": per_channel(said["image_std"] if normalized else 1.0, model.channels),
        "interpolation": _filter(said["resample"]),
        "resize": resize,
        "crop_fraction": fractions.pop(),
        **({"crop_rounding": _ROUNDING} if cropped and (resize == "crop" or size != whole) else {}),
    }, size


def _filter(said: object) -> str:
    """The name of a filter, from Pillow's number or a name ("bicubic", "BICUBIC", "PILImageResampling.BICUBIC")."""
    if isinstance(said, int) and not isinstance(said, bool) and said in _FILTERS:
        return _FILTERS[said]
    name = said.rpartition(".")[2].lower() if isinstance(said, str) else ""
    if name not in _FILTERS.values():
        raise _Unsaid(f"resample {str(said)[:60]}")
    return name


def _size(said: object, one_number: str) -> tuple[str, tuple[int, int]]:
    """How an image is resized ("crop" or "squash"), and to what (height, width). one_number: how, if the file has a
    single number."""
    fields = said if isinstance(said, dict) else {}
    edges = {"crop": (fields.get("shortest_edge"),) * 2, "squash": (fields.get("height"), fields.get("width"))}
    if type(said) is int:
        edges[one_number] = (said, said)
    elif isinstance(said, list) and len(said) == 2:
        edges["squash"] = (said[0], said[1])
    for resize, (height, width) in edges.items():
        if type(height) is type(width) is int and min(height, width) > 0 and "longest_edge" not in fields:
            return resize, (height, width)
    raise _Unsaid(f"size {str(said)[:60]}")


def _fraction(side: int, whole: int) -> float:
    """The crop_fraction from which Preprocessing computes exactly `whole` for `side`."""
    for fraction in (side / whole, nextafter(side / whole, 0)):
        if side <= whole and floor(side / fraction) == whole:
            return fraction
    raise _Unsaid(f"the crop of {side} from {whole} pixels")


def preprocessor_texts(
    preprocessing: Preprocessing | None, any_aspect: bool = False
) -> tuple[dict[str, str], list[str]]:
    """File name -> text, and notes. Without a file, and with a note on the reason, if no processor of transformers does
    the same. any_aspect: whether the model's class accepts images that keep their aspect ratio, with max_patches
    patches."""
    if preprocessing is None:
        return {}, []
    p, (height, width) = preprocessing, preprocessing.image_size
    if p.bit_depth != 8:
        return {}, [f"no {FILE}: no processor of transformers keeps 16 bits of a pixel"]
    if p.exif_rotation:
        return {}, [f"no {FILE}: no processor of transformers rotates images by EXIF"]
    if p.max_patches is not None and not any_aspect:
        return {}, [
            f"no {FILE}: this model's class in transformers accepts images of one size, not max_patches patches"
        ]
    if p.max_patches is not None and p.patch_size is not None:  # always set with max_patches
        own = {"patch_size": p.patch_size[0], "max_num_patches": p.max_patches}
        return {FILE: _text({"image_processor_type": "Siglip2ImageProcessor", **own, **_values(p)})}, []
    if p.resize == "border" or (p.resize == "crop" and height != width):
        borders = p.resize == "border"
        what = "pads images with the mean" if borders else "resizes and crops to a size that is not square"
        return {}, [f"no {FILE}: no processor of transformers {what}"]
    notes = []
    if p.crop_rounding != _ROUNDING and crop_rounding_matters(p):
        notes.append(
            f"{FILE}: transformers rounds the position of the crop down (this model: crop_rounding {p.crop_rounding}), "
            "which differs by one pixel if the margin is 3, 7, 11, ... pixels"
        )
    whole_height, whole_width = (floor(side / p.crop_fraction) for side in p.image_size)
    cropped = p.resize == "crop" or p.crop_fraction < 1
    size = {"shortest_edge": whole_height} if p.resize == "crop" else {"height": whole_height, "width": whole_width}
    fields = {
        "image_processor_type": _PROCESSOR["squash, cropped" if p.resize == "squash" and cropped else p.resize],
        "size": size,
        "do_center_crop": cropped,
        **({"crop_size": {"height": height, "width": width}} if cropped else {}),
        **_values(p),
    }
    return {FILE: _text(fields)}, notes


def _values(p: Preprocessing) -> dict[str, Any]:
    """The fields of filter, scale, mean and std, which are the same for every processor."""
    return {
        "do_resize": True,
        "resample": next(code for code, name in _FILTERS.items() if name == p.interpolation),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(p.mean),
        "image_std": list(p.std),
        "do_convert_rgb": p.channels == 3,
    }


def _text(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, indent=2) + "\n"
