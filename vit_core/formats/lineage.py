"""What the lineages in this folder have in common: what they are given, what they give, how to tell what no file says.

A lineage is a module: `recognises` a source by its content, `read`s one, and (where there is somebody to write for)
knows which models it can `hold` and how they are `written`. Arrays are named in one list of rules for both ways.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isqrt
from pathlib import Path
from typing import Any, Literal, Protocol

from vit_core.arrays import LazyArrays
from vit_core.checkpoint import Checkpoint, CheckpointConfig
from vit_core.config import ViTConfig
from vit_core.errors import InputError
from vit_core.formats.rules import Rule
from vit_core.variants import VARIANTS

Fields = Mapping[str, Any]
"""Fields of ViTConfig that the user says, because no file can."""


@dataclass(frozen=True)
class Source:
    """A foreign checkpoint as it lies there."""

    path: Path
    arrays: LazyArrays
    config: Mapping[str, Any] = field(default_factory=dict)
    """config.json beside the weights; empty where there is none."""
    preprocessor: Mapping[str, Any] = field(default_factory=dict)
    """preprocessor_config.json, likewise."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reading:
    """How a source is to be read."""

    config: CheckpointConfig
    rules: Sequence[Rule]
    arrays: LazyArrays
    """The source's, with what wraps their names taken off."""
    left_out: str = r"(?!)"
    """A regular expression of the names of arrays that are no part of the model."""
    notes: tuple[str, ...] = ()
    """What was assumed."""


@dataclass(frozen=True)
class Writing:
    """How a checkpoint is to be written."""

    arrays: LazyArrays
    texts: Mapping[str, str] = field(default_factory=dict)
    """Files that stand beside the weights in a folder."""
    notes: tuple[str, ...] = ()


class Lineage(Protocol):
    """A module of this folder that reads."""

    NAME: str

    def recognises(self, source: Source) -> bool:
        """Whether a source is of this lineage, by its content."""

    def read(self, source: Source, fields: Fields) -> Reading:
        """How to read it. InputError for what has no place in the schema, with the reason."""


class Written(Lineage, Protocol):
    """A module of this folder that writes too."""

    CONTAINERS: tuple[Literal["folder", ".safetensors", ".pth", ".npz"], ...]
    """What it is written as, the default first."""

    def holds(self, model: ViTConfig) -> Mapping[str, tuple[Any, ...]]:
        """Field -> the values that the format can hold. InputError for a reason that is no field's alone."""

    def write(self, checkpoint: Checkpoint) -> Writing:
        """How to write one that it holds."""


def heads_of(width: int, depth: int, mlp_dim: int, fields: Fields) -> tuple[int, str | None]:
    """Attention heads where they are fused into one matrix: those of the published architecture of this size, else one
    for each 64 of the width; and a note that says so, unless `fields` does."""
    if "heads" in fields:
        return fields["heads"], None
    for name, sizes in VARIANTS.items():
        if (sizes["width"], sizes["depth"], sizes["mlp_dim"]) == (width, depth, mlp_dim):
            heads = sizes["heads"]
            return heads, f"heads: {heads}, as in ViT-{name}; no array tells, --set heads=N for others"
    heads = max(width // 64, 1)
    return heads, f"heads: {heads}, one for each 64 of the width; no array tells, --set heads=N for others"


def image_of(patches: int, patch_size: tuple[int, int], fields: Fields, where: object) -> tuple[int, int]:
    """Image size from the number of positions on the grid, taken for square unless `fields` says."""
    if "image_size" in fields:
        size = fields["image_size"]
        return (size, size) if isinstance(size, int) else tuple(size)
    side = isqrt(patches)
    if side * side != patches or not patches:
        raise InputError(f"{where}: {patches} positions are no square grid; say --set image_size=HEIGHTxWIDTH")
    return side * patch_size[0], side * patch_size[1]


def axes_of(shapes: Mapping[str, tuple[int, ...]], name: str, axes: int, where: object) -> tuple[int, ...]:
    """The shape of an array the config is worked out from. InputError where it is missing or not of so many axes."""
    if len(shapes.get(name, ())) != axes:
        found = f"has shape {list(shapes[name])}" if name in shapes else "is missing"
        raise InputError(f"{where}: {name} {found}; expected an array of {axes} axes")
    return shapes[name]


def layers_of(names: Mapping[str, Any], prefix: str) -> int:
    """How many layers there are: one more than the largest number after the prefix ("blocks.11.norm1" has 12)."""
    found = (re.match(r"[0-9]{1,4}(?![0-9])", name.removeprefix(prefix)) for name in names if name.startswith(prefix))
    return 1 + max((int(number[0]) for number in found if number), default=-1)


def call(function: str, arguments: Mapping[str, Any]) -> str:
    """A call as one writes it."""
    return f"{function}({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"


def left_behind(config: CheckpointConfig) -> tuple[str, ...]:
    """A note of what is not in the weights."""
    lost = [name for name in ("preprocessing", "labels") if getattr(config, name)]
    return (f"a state dict carries no {' or '.join(lost)}",) if lost else ()


def not_carried(checkpoint: Checkpoint, resampling: str) -> tuple[str, ...]:
    """Notes of what a state dict leaves behind; `resampling` is what its lineage does with positions."""
    model, notes = checkpoint.config.model, [*left_behind(checkpoint.config)]
    if model.position_embedding == "learned" and model.position_resampling != resampling:
        notes.append(f"position_resampling: {resampling} when read again, not {model.position_resampling}")
    return tuple(notes)


def without_prefix(arrays: LazyArrays, *prefixes: str) -> LazyArrays:
    """With the prefixes taken off, in turn, that all names, or all names of a model, begin with."""
    for prefix in prefixes:
        if any(name.startswith(prefix) for name in arrays):
            stripped = {name.removeprefix(prefix): entry for name, entry in arrays.entries.items()}
            if len(stripped) == len(arrays):  # else two names would be one: whoever reads them refuses the longer
                arrays = LazyArrays(stripped)
    return arrays
