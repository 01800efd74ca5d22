"""Finds the layers after a backbone of keras_hub: the hidden layer and the head of its image classifiers."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vit_core.arrays import LazyArray
from vit_core.checkpoints.containers.keras import TASK as IN_PRESET
from vit_core.checkpoints.formats.interface import Fields, Source
from vit_core.checkpoints.formats.keras_hub.families import CLIP, DEIT, SIGLIP, Family
from vit_core.checkpoints.formats.keras_hub.stated import TASK, Stated, shown
from vit_core.errors import InputError, abbreviate

HIDDEN, OUTPUT = "pre_logits", "predictions"
"""The names of the two layers in keras_hub's classifiers."""
PROJECTION = "vision_projection"
"""The name of the layer between CLIP's image tower and its loss."""
DENSE = "layers/dense"
_POOLING = {"token": "cls", "gap": "gap"}
_PROBABILITIES = {"softmax": "softmax", "sigmoid": "sigmoid", "linear": None, None: None}


@dataclass(frozen=True)
class Head:
    """The layers after a backbone."""

    arrays: Mapping[str, LazyArray] = field(default_factory=dict)
    layers: Mapping[str, str] = field(default_factory=dict)
    """Our layer -> its name in the file."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Those of ViTConfig."""
    probabilities: Any = None
    """How its outputs become probabilities, as in CheckpointConfig."""
    notes: tuple[str, ...] = ()


def find_head(source: Source, family: Family, said: Stated, fields: Fields, *, class_token: bool) -> Head:
    """The layers after the backbone; none for a backbone alone and for `fields["num_classes"]` 0. Raises InputError for
    layers that are not those of keras_hub's classifiers."""
    if family in (SIGLIP, CLIP):
        return _projection(source, family, fields)
    root, arrays = _root(source, family)
    backbone = {"num_classes": 0, "pooling": "cls" if class_token else "gap"}
    groups = _groups(root, arrays)
    if not groups or fields.get("num_classes") == 0:
        missing = (f"{TASK} states a classifier, whose weights are missing: left out",)
        return Head(fields=backbone, notes=missing if said.task and not groups else ())
    _check_layers(source, family, root, arrays, groups)
    layers = dict(zip(("pre_logits.fc", "head")[-len(groups) :], groups, strict=True))
    shapes = {ours: _kernel(source, arrays, theirs) for ours, theirs in layers.items()}
    representation = shapes["pre_logits.fc"][1] if "pre_logits.fc" in shapes else None
    classes = shapes["head"][1]
    _check_sizes(source, said, representation, classes)
    pooling = fields.get("pooling", _pooling(source, said))
    if family is DEIT and pooling == "gap":
        raise InputError(
            f"{source.path}: pooling 'gap' of DeiT is over its two tokens too, which ViTConfig cannot express"
        )
    return Head(
        {name: entry for name, entry in arrays.items() if name.startswith(tuple(f"{one}/vars/" for one in groups))},
        layers,
        {
            "num_classes": classes,
            "representation": representation,
            **_pooled(pooling, class_token=class_token),
        },
        *_activation(source, said),
    )


def _projection(source: Source, family: Family, fields: Fields) -> Head:
    """CLIP's projection of the class token, as a head without bias; SigLIP has none."""
    found: dict[str, Any] = {"num_classes": 0, "pooling": "map" if family is SIGLIP else "cls"}
    named = (name for name, layer in source.keras.items() if layer == PROJECTION)
    name = next((f"{name}/0" for name in named if f"{name}/0" in source.beside), None)
    if name is None or fields.get("num_classes") == 0 or len(source.beside.entries[name].shape) != 2:
        return Head(fields=found)
    entry = source.beside.entries[name]
    found |= {"num_classes": entry.shape[1], "head_bias": False}
    return Head({name: entry}, {"head": name.removesuffix("/vars/0")}, found)


def _pooled(pooling: str, *, class_token: bool) -> dict[str, Any]:
    """The fields of a pooling. keras_hub's mean includes the class token; its "token" is the first one."""
    first = "cls" if class_token else "first"
    return {"pooling": first if pooling == "cls" else pooling, "pool_prefix": pooling == "gap" and class_token}


def _root(source: Source, family: Family) -> tuple[str, Mapping[str, LazyArray]]:
    """The prefix of the classifier's layers, and all arrays among which they are."""
    if any(name.startswith(f"{IN_PRESET}/") for name in source.arrays):
        return f"{IN_PRESET}/", source.arrays.entries
    if source.prefix[-2:] == ("layers", family.in_whole_model):
        return "".join(f"{part}/" for part in source.prefix[:-2]), source.beside.entries
    return "", {}


def _groups(root: str, arrays: Mapping[str, LazyArray]) -> list[str]:
    """The Dense layers, in their order in the model."""
    found = {
        match[1]: int(match[2] or 0) for name in arrays if (match := re.match(rf"({root}{DENSE}(?:_(\d+))?)/", name))
    }
    return sorted(found, key=found.__getitem__)


def _check_layers(
    source: Source, family: Family, root: str, arrays: Mapping[str, LazyArray], groups: list[str]
) -> None:
    """Raises InputError for other layers than those of keras_hub's classifiers. (Early files do not name layers.)"""
    parts = root.count("/") + 2
    layers = {"/".join(name.split("/")[:parts]) for name in arrays if name.startswith(f"{root}layers/")}
    others = sorted(layers - {*groups, f"{root}layers/{family.in_whole_model}"})
    expected = (HIDDEN, OUTPUT)[-len(groups) :]
    names = [source.keras.get(f"{group}/vars") for group in groups]
    if others or len(groups) > 2 or any(name not in (None, own) for name, own in zip(names, expected, strict=True)):
        found = abbreviate([*groups, *others], most=4)
        raise InputError(
            f"{source.path}: after the backbone are {found} (named {', '.join(map(shown, names))}), expected "
            f"{HIDDEN} and {OUTPUT}, the layers of keras_hub's classifiers; --set num_classes=0 leaves them out"
        )


def _kernel(source: Source, arrays: Mapping[str, LazyArray], group: str) -> tuple[int, int]:
    entry = arrays.get(f"{group}/vars/0")
    if entry is None or len(entry.shape) != 2:
        raise InputError(f"{source.path}: {group}/vars/0 is missing or no matrix, expected the kernel of a head")
    return entry.shape[0], entry.shape[1]


def _check_sizes(source: Source, said: Stated, representation: int | None, classes: int) -> None:
    for key, value in (("num_classes", classes), ("intermediate_dim", representation)):
        if key in said.task and said.task[key] != value:
            raise InputError(
                f"{source.path}: {TASK}: {key} is {shown(said.task[key])}, but the arrays are those of {shown(value)}"
            )


def _pooling(source: Source, said: Stated) -> str:
    value = said.task.get("pooling", "token")
    if value not in _POOLING:
        raise InputError(
            f"{source.path}: {TASK}: pooling is {shown(value)}, which classifies each token; expected 'token' or 'gap'"
        )
    return _POOLING[value]


def _activation(source: Source, said: Stated) -> tuple[Any, tuple[str, ...]]:
    """How outputs become probabilities, and a note on the activation of the head."""
    value = said.task.get("activation")
    if not isinstance(value, str | None) or value not in _PROBABILITIES:
        raise InputError(
            f"{source.path}: {TASK}: activation is {shown(value)}; expected null, 'softmax' or 'sigmoid', which are "
            "applied to the outputs of our models"
        )
    probabilities = _PROBABILITIES[value]
    note = f"outputs: logits, before the {value} of keras_hub's classifier"
    return probabilities, (note,) if probabilities else ()
