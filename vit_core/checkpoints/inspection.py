"""The contents of a checkpoint of any format for `vit inspect`: its config, the sizes of its parts, and suspicious
values."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from vit_core.arrays import DTYPES
from vit_core.checkpoints.checkpoint import Assumption, Checkpoint
from vit_core.config import ViTConfig
from vit_core.parameters import parameters
from vit_core.schema import Schema

OUTLIER = 1000.0
"""An element is reported as an outlier if it exceeds the median magnitude of its array by this factor. In a normal
distribution the factor stays below 10."""
_EXPECTED_ZERO = (".bias",)


@dataclass(frozen=True)
class Module:
    """The number of parameters of a module, and the bytes that they take in the file."""

    name: str
    parameters: int
    bytes: int


def modules(checkpoint: Checkpoint) -> list[Module]:
    """The modules of a checkpoint, by the first part of parameter names, such as "patch_embed". All blocks count as one
    module."""
    found: dict[str, list[int]] = {}
    for name, row in parameters(checkpoint.config.model).items():
        module = name.split(".")[0] if not name.startswith("blocks.") else "blocks"
        size = row.size * DTYPES[checkpoint.arrays.entries[name].dtype].itemsize
        counted = found.setdefault(module, [0, 0])
        counted[0] += row.size
        counted[1] += size
    return [Module(name, *counted) for name, counted in found.items()]


def dtypes(checkpoint: Checkpoint) -> dict[str, int]:
    """Name of each type -> number of parameters (elements) that have it."""
    counted: Counter[str] = Counter()
    for name, entry in checkpoint.arrays.entries.items():
        counted[entry.dtype] += parameters(checkpoint.config.model)[name].size
    return dict(counted)


def scan(checkpoint: Checkpoint) -> Iterator[str | None]:
    """Reads every array and yields, for each, a line on suspicious values: not finite, only zeros where that is
    unusual, or outliers. Yields None for an array without any."""
    for name in checkpoint.arrays:
        line = _suspicious(name, checkpoint.arrays[name].astype(np.float32))
        yield None if line is None else f"{name}: {line}"


def _suspicious(name: str, array: np.ndarray) -> str | None:
    if bad := int(array.size - np.isfinite(array).sum()):
        return f"{bad} of {array.size} values are not finite"
    if not array.any():
        return None if name.endswith(_EXPECTED_ZERO) else "all zeros"
    sizes = np.abs(array[array != 0])
    largest, median = float(sizes.max()), float(np.median(sizes))
    if largest > OUTLIER * median:
        return f"an outlier of {largest:.3g}, {largest / median:,.0f} times the median magnitude"
    return None


def chosen(config: ViTConfig) -> dict[str, Any]:
    """The required fields of a config, and those whose values differ from the defaults."""
    return {
        name: getattr(config, name)
        for name, field in ViTConfig.model_fields.items()
        if field.is_required() or getattr(config, name) != field.get_default()
    }


def _assumption(one: Assumption) -> dict[str, Any]:
    value = one.value.model_dump(mode="json") if isinstance(one.value, Schema) else one.value
    value = list(value) if isinstance(value, tuple) else value
    return {"field": one.field, "value": value, "why": one.why, "alternatives": one.alternatives}


def description(checkpoint: Checkpoint) -> dict[str, Any]:
    """The contents of a checkpoint as plain data, for JSON: its config, its notes, and the sizes and types of its
    arrays. No array is read."""
    config = checkpoint.config
    return {
        "path": str(checkpoint.origin),
        "format": checkpoint.format,
        "notes": list(checkpoint.notes),
        "assumptions": [_assumption(one) for one in checkpoint.assumptions],
        "config": config.model_dump(mode="json"),
        "grid": list(config.model.grid),
        "prefix_tokens": config.model.prefix_tokens,
        "parameters": sum(module.parameters for module in modules(checkpoint)),
        "modules": {m.name: {"parameters": m.parameters, "bytes": m.bytes} for m in modules(checkpoint)},
        "dtypes": dtypes(checkpoint),
    }
