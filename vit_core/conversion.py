"""What `vit convert` and `vit parity A B` do: one checkpoint in two formats, and whether it is still one model."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vit_core import parity
from vit_core.checkpoint import WEIGHTS, Checkpoint, open_checkpoint
from vit_core.config import ViTConfig
from vit_core.errors import InputError, unknown_name
from vit_core.places import absolute

TRAINING_ONLY = ("dropout", "attention_dropout", "stochastic_depth", "head_bias_init", "patch_embedding")
"""Fields of a config that change no output of a trained model."""
SIZES = ("image_size", "patch_size")


class Twin(Protocol):
    """What is asked of a twin's package here."""

    def load(self, path: Checkpoint, *, dtype: str) -> Any: ...

    def predict(self, model: Any, x_BHWC: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Difference:
    """How far two sets of outputs on the same random images are apart."""

    what: str
    max_abs: float
    relative: float
    equal_rounded: int
    outputs: int
    bound: float
    """Of `relative`."""

    @property
    def ok(self) -> bool:
        return self.relative <= self.bound

    def __str__(self) -> str:
        if not np.isfinite(self.max_abs):
            return f"{self.what}: not shown, the outputs are not finite"
        return (
            f"{self.what}: largest difference {self.max_abs:.1e} (relative {self.relative:.1e}, bound "
            f"{self.bound:.0e}), equal bit for bit once rounded to float32: "
            f"{self.equal_rounded} of {self.outputs}"
        )


def fields_of(words: Iterable[str]) -> dict[str, Any]:
    """Fields of ViTConfig from "name=value" words; sizes as 224 or 224x336. InputError for any other."""
    found: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise InputError(f"--set {word}: expected field=value, as heads=6")
        if name not in ViTConfig.model_fields:
            raise unknown_name("field of the config", name, ViTConfig.model_fields)
        found[name] = parse_size(text) if name in SIZES else _value(text)
    return found


def word_of(name: str, value: Any) -> str:
    """A field as `fields_of` takes it."""
    if name in SIZES:
        return f"{name}={'x'.join(map(str, value))}"
    return f"{name}={value if isinstance(value, str) else json.dumps(value, separators=(',', ':'))}"


def _value(text: str) -> Any:
    if text.lower() in ("true", "false", "none", "null"):
        return {"true": True, "false": False}.get(text.lower())
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def parse_size(text: str) -> int | tuple[int, int]:
    """384 or 384x512, height first."""
    numbers = text.lower().split("x")
    if len(numbers) > 2 or not all(number.isascii() and number.isdigit() and len(number) < 7 for number in numbers):
        raise InputError(f"image size '{text}': expected pixels, as 384, or height x width, as 384x512")
    return int(numbers[0]) if len(numbers) == 1 else (int(numbers[0]), int(numbers[1]))


def check_apart(target: Path, *sources: Path) -> None:
    """InputError where writing the target would replace files of a source."""
    target = absolute(target)
    for source in map(absolute, sources):
        holds_it = target == source.parent and (target / WEIGHTS).exists()
        part_of_it = target.parent == source and target.is_file()
        if target == source or holds_it or part_of_it:
            raise InputError(f"{target}: is what is read, or part of it; give the new one another name")


def read_back(path: Path, format: str, written: ViTConfig) -> tuple[Checkpoint, dict[str, Any]]:
    """What was written, opened again, and the fields that had to be said because the file cannot tell them."""
    unsaid: dict[str, Any] = {}
    try:
        opened = open_checkpoint(path, format=format)
    except InputError:  # a grid that is not square, where there is no config to say so
        unsaid = {"image_size": written.image_size}
        opened = open_checkpoint(path, format=format, fields=unsaid)
    if more := different(written, opened.config.model):
        unsaid |= more
        opened = open_checkpoint(path, format=format, fields=unsaid)
    return opened, unsaid


def different(expected: ViTConfig, found: ViTConfig) -> dict[str, Any]:
    """The fields, as expected, in which two configs do not stand for the same outputs."""
    a, b = _effective(expected), _effective(found)
    return {name: getattr(expected, name) for name in a if a[name] != b[name]}


def _effective(config: ViTConfig) -> Mapping[str, Any]:
    fields = {name: getattr(config, name) for name in ViTConfig.model_fields if name not in TRAINING_ONLY}
    return {**fields, "head_dim": config.attention_dim, "layer_scale": config.layer_scale is None}


def outputs_of(twin: Twin, checkpoint: Checkpoint, x_BHWC: np.ndarray) -> np.ndarray:
    """The outputs in float64; the model is gone afterwards, so that two large ones need not fit side by side."""
    return twin.predict(twin.load(checkpoint, dtype="float64"), x_BHWC)


def difference(what: str, a_BC: np.ndarray, b_BC: np.ndarray, bound: float = parity.FLOAT64_BOUND) -> Difference:
    """Of two sets of outputs. InputError where they have another shape."""
    if a_BC.shape != b_BC.shape:
        raise InputError(f"{what}: outputs of shape {a_BC.shape}, expected {b_BC.shape}")
    max_abs, relative = parity.difference(a_BC, b_BC)
    return Difference(what, max_abs, relative, int((np.float32(a_BC) == np.float32(b_BC)).sum()), b_BC.size, bound)
