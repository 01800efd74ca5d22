"""Fields of ViTConfig and Preprocessing as text on a command line: `heads=6`, `image_size=224x336`, `mean=0.5`."""

import json
import re
from collections.abc import Iterable
from typing import Any, get_args

from vit_core.config import ViTConfig
from vit_core.errors import InputError, unknown_name
from vit_core.preprocess import Preprocessing
from vit_core.rope import Rope

_SIZE_FIELDS = ("image_size", "patch_size")


def parse_fields(words: Iterable[str]) -> dict[str, Any]:
    """Fields of ViTConfig from words such as `heads=6`; sizes are written 224 or 224x336, no value is `none`.

    Raises InputError for a word without `=` and for a field that ViTConfig does not have. Values are validated later,
    by ViTConfig.
    """
    fields: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise InputError(f"--set {word}: expected FIELD=VALUE, such as heads=6")
        if name not in ViTConfig.model_fields:
            raise unknown_name("field of the config", name, ViTConfig.model_fields)
        is_name = text in get_args(ViTConfig.model_fields[name].annotation)  # of which "none" is one in some fields
        fields[name] = parse_size(text) if name in _SIZE_FIELDS else text if is_name else _parse_value(text)
    return fields


def parse_preprocessing(words: Iterable[str]) -> dict[str, Any]:
    """Fields of Preprocessing from words such as `mean=0.485,0.456,0.406`; the image size and the number of channels
    are those of the model.

    Raises InputError for a word without `=` and for any other field. Values are validated later, by Preprocessing.
    """
    known = [name for name in Preprocessing.model_fields if name not in ("image_size", "channels")]
    fields: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise InputError(f"--preprocessing {word}: expected FIELD=VALUE, such as mean=0.485,0.456,0.406")
        if name not in known:
            raise unknown_name("field of the preprocessing", name, known)
        is_list = name in ("mean", "std") and not text.startswith("[")
        fields[name] = [_parse_value(part) for part in text.split(",")] if is_list else _parse_value(text)
    return fields


def field_text(name: str, value: Any) -> str:
    """A field as `parse_fields` reads it: `image_size=224x336`."""
    if name in _SIZE_FIELDS:
        return f"{name}={'x'.join(map(str, value))}"
    if value is None:
        return f"{name}=none"
    if isinstance(value, Rope):
        value = str(value)
    return f"{name}={value if isinstance(value, str) else json.dumps(value, separators=(',', ':'))}"


def parse_size(text: str) -> int | tuple[int, int]:
    """An image size in pixels: `384`, or height x width as `384x512` and as it is printed: `384 512`, `384 x 512`.

    Raises InputError for any other text.
    """
    numbers = re.split(r" *[x ] *", text.lower())
    if len(numbers) > 2 or not all(number.isascii() and number.isdigit() and len(number) < 7 for number in numbers):
        raise InputError(
            f"image size '{text}': expected pixels, such as 384, or height x width, such as 384x512 (up to 999999)"
        )
    return int(numbers[0]) if len(numbers) == 1 else (int(numbers[0]), int(numbers[1]))


def _parse_value(text: str) -> Any:
    if text.lower() in ("true", "false", "none", "null"):
        return {"true": True, "false": False}.get(text.lower())
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
