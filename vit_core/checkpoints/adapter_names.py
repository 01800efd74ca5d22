"""The places of adapters of transformers' models in the parameter table. transformers' classes have other names, and
separate matrices for queries, keys and values, which are rows of one matrix here.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, get_args

from vit_core.arrays import LazyArrays
from vit_core.checkpoints.formats.transformers.names import FAMILIES, Names
from vit_core.config import ViTConfig
from vit_core.lora import is_adapter
from vit_core.parameters import parameters

CLASSIFIER = "classifier.weight"
"""Name in transformers of the weight of a head that was trained without adapters."""
_ASIDE = re.compile(r"text_model\.|text_projection\.")
_MATRIX = re.compile(r"\.lora_[AB]\.weight$")


@dataclass(frozen=True)
class Place:
    """Rows of a parameter, along its first axis."""

    parameter: str
    first: int
    stop: int


def without_text_tower(arrays: LazyArrays) -> LazyArrays:
    """The arrays without those of the text towers of CLIP and SigLIP; unchanged if all adapters are of text towers."""
    kept = {name: entry for name, entry in arrays.entries.items() if not _ASIDE.match(name)}
    return LazyArrays(kept) if any(map(is_adapter, kept)) else arrays


def places_in(model: ViTConfig, arrays: LazyArrays) -> Mapping[str, Place]:
    """Name of a parameter in transformers -> its place in the base, for the transformers class that has most names in
    common with the arrays. Empty if all names are ours (which are timm's), and if no class has any of them."""
    targets = {_MATRIX.sub(".weight", name) for name in arrays}
    best: dict[str, Place] = {}
    if targets <= parameters(model).keys():
        return best
    for names in _all_names(model.mlp == "swiglu"):
        with suppress(KeyError):  # a class that lacks a parameter of this model
            places = _places(model, names)
            if len(targets & places.keys()) > len(targets & best.keys()):
                best = places
    return best


def _all_names(gated: bool) -> Iterator[Names]:
    ages: tuple[Literal["files", "memory"], ...] = get_args(Names.__dataclass_fields__["age"].type)
    for age in ages:
        for model_type in FAMILIES:
            for prefixed in (True, False):
                yield Names(model_type, prefixed, gated, age)


def _places(model: ViTConfig, names: Names) -> dict[str, Place]:
    rows, found = parameters(model), dict[str, Place]()
    for one in names.rules(model):
        if len(one.ours) > 1 or one.layout is not None:  # not rows of one parameter
            continue
        length = rows[one.ours[0]].shape[0] // len(one.theirs)
        for i, theirs in enumerate(one.theirs):
            found[theirs] = Place(one.ours[0], i * length, (i + 1) * length)
    return found
