"""Values that a file states about its model outside the arrays, under names that many training scripts use.

Such values are in Lightning's `hyper_parameters`, an `args` of argparse, a `config` at any key, or a safetensors file's
metadata. The image size, the heads, the pooling, the activation and the epsilon, which no array shows, are taken from
them if the arrays do not contradict, also where the code of a format has only one value for them. Sizes that the arrays
show are compared with them. Names of classes (`classes`, `class_to_idx`) become labels. A mean and a std, with the
values stated in the same mapping, become the preprocessing.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from math import prod
from typing import Any, TypeAlias, get_args

from vit_core.arrays import LazyArray
from vit_core.checkpoints.checkpoint import Assumption
from vit_core.checkpoints.containers import MODULES
from vit_core.checkpoints.formats.activation_names import activation_named
from vit_core.checkpoints.formats.interface import Fields, Reading, Source
from vit_core.checkpoints.formats.rules import read_by_rules
from vit_core.checkpoints.formats.stated_mappings import stated_mappings
from vit_core.checkpoints.image_facts import with_preprocessing
from vit_core.checkpoints.overlapping_patches import check_overlap
from vit_core.config import ViTConfig
from vit_core.errors import InexpressibleError, InputError, one_line
from vit_core.field_text import field_text

_NORMS = {"layernorm": "layer_norm", "rmsnorm": "rms_norm"}
_POOLING = {"token": "cls", "cls": "cls", "avg": "gap", "mean": "gap", "gap": "gap", "map": "map"}
_ASSUMED = {
    "image_size": ("image_size", "img_size", "input_size", "image_resolution", "input_resolution", "resolution"),
    "heads": ("heads", "num_heads", "n_heads", "nhead", "num_attention_heads"),
    "pooling": ("global_pool", "pooling", "pool", "gp"),
    "pool_prefix": ("pool_include_prefix",),
    "branch_norm": ("branch_norm",),
    "activation": ("act_layer", "hidden_act"),
    "norm": ("norm_layer",),
    "norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_eps", "ln_eps"),
}
"""Field that arrays do not show -> names that scripts give it. The image size is first, because some files cannot be
read without it."""
_OF_MANY_MODELS = ("activation", "norm", "norm_epsilon")
"""Fields that configs of language models have too. They are ignored in a mapping whose sizes are those of another
model."""
_SET_BY_SCRIPTS = ("pooling", "activation", "norm_epsilon")
"""Fields that scripts change in models of others, even if the code of these has only one value."""
_SHOWN = {
    "patch_size": ("patch_size",),
    "channels": ("in_chans", "in_channels", "num_channels"),
    "width": ("embed_dim", "hidden_size"),
    "depth": ("depth", "num_layers", "num_hidden_layers"),
    "num_classes": ("num_classes", "n_classes", "nb_classes", "num_labels"),
}
"""Field that arrays show -> names that scripts give it."""
_ACTIVATIONS: tuple[str, ...] = get_args(ViTConfig.model_fields["activation"].annotation)
_POOLINGS = (*dict.fromkeys(_POOLING.values()), "cls_gap")
"""Stated poolings that are read. (`first` may be the class token or the first patch.)"""
_Mappings: TypeAlias = list[tuple[tuple[str, ...], Mapping[Any, Any]]]
"""Mappings of a file with the keys that lead to each."""
_LABELS = (
    *("classes", "class_names", "labels", "label_names", "class_to_idx", "idx_to_class", "id2label", "label2id"),
    *("idx2label", "label2idx", "idx_to_label", "label_to_idx", "idx2class", "class2idx", "label_map"),
)


@dataclass(frozen=True)
class Fact:
    """A value that a file states."""

    key: str
    """The top-level key of the file under which it is."""
    name: str
    value: Any
    depth: int
    """Number of mappings around it."""

    @property
    def where(self) -> str:
        """Its place in the file, for messages: "hyper_parameters: img_size"."""
        return self.name if self.key == self.name else f"{self.key[:60]}: {self.name}"


def read_with_facts(read: Callable[[Source, Fields], Reading], source: Source, fields: Fields) -> Reading:
    """A reading that also uses the values which the file states outside its arrays. `fields`, given by the user, have
    priority.

    read: the format's own reading. Raises its InputError if it fails both with these values and without them. Raises
    InputError for a stated activation or pooling that ViTConfig cannot express.
    """
    mappings = list(stated_mappings(source.facts))
    facts = list(_facts(mappings))
    first, failure = _attempt(read, source, fields)
    about_it = [(path, values) for path, values in mappings if first is None or _is_about(values, first)]
    own, taken = list(_facts(about_it)), _Taken(first)
    for field in _ASSUMED:
        found = None if field in fields else _fact_of(field, own if field in _OF_MANY_MODELS else facts)
        if found is None or not _is_open(first, field, *found):
            continue
        if field == "pooling" and found[1] not in _POOLINGS:
            _check_pooling(source, _fact_of(field, own))
        elif field == "activation" and (found[1] not in _ACTIVATIONS or _is_of_gate(taken.reading, found[0])):
            _check_activation(taken.reading, source, *found)
        else:
            taken.take(read, source, fields, field, *found, about_it)
    reading = taken.reading
    if reading is None:
        assert failure is not None
        raise failure
    if not {"heads"} & {*fields, *taken.values}:
        reading = _with_doubt(reading, _fact_of("heads", facts))
    if "image_size" not in fields and "image_size" not in taken.values:
        check_overlap(reading.config.model, about_it, None, source.path)
    contradictions = _contradictions(facts, reading.config.model)
    reading, label_note, label_key = _with_labels(reading, facts)
    reading, image_note, image_keys = with_preprocessing(reading, mappings, source.beside)
    return replace(
        reading,
        notes=(*reading.notes, *taken.notes, *contradictions, *label_note, *image_note),
        used=reading.used | taken.used | label_key | image_keys,
        stated=reading.stated | set(taken.values),
    )


@dataclass
class _Taken:
    """A reading (None as long as the file cannot be read), and the stated values that it was made with."""

    reading: Reading | None
    values: dict[str, Any] = dataclass_field(default_factory=dict)
    notes: list[str] = dataclass_field(default_factory=list)
    used: set[str] = dataclass_field(default_factory=set)
    """The top-level keys of the values."""

    def take(
        self,
        read: Callable[[Source, Fields], Reading],
        source: Source,
        fields: Fields,
        field: str,
        fact: Fact,
        value: Any,
        about_it: _Mappings,
    ) -> None:
        """Reads the file again with a stated value of a field. If the arrays contradict it, notes that it is ignored.
        Raises InputError for a value that ViTConfig cannot express, and for patches that overlap.

        about_it: the mappings that may be about the model of the arrays.
        """
        wanted = {**self.values, field: value, **fields}
        better, why_not = _attempt(read, source, wanted, whole=self.reading is not None)
        if better is not None:
            self.reading, self.values[field] = better, value
            self.used.add(fact.key)
            self.notes.append(f"{field_text(field, value)}: stated by {fact.where}")
            return
        if field == "image_size" and self.reading:
            check_overlap(self.reading.config.model, about_it, value, source.path)
        stated = f"{fact.where} states {field_text(field, value)}"
        if isinstance(why_not, InexpressibleError):
            raise InputError(f"{source.path}: {stated}, but {_reason(why_not)}; use --set {field}=VALUE for another")
        self.notes.append(f"{stated}, ignored because the arrays contradict it ({_reason(why_not)})")


def _is_open(reading: Reading | None, field: str, fact: Fact, value: Any) -> bool:
    """Whether a stated value may be used: where the format assumed one, and where the format has only one, although
    scripts change it. The attributes of the model's own modules precede what the name of an architecture implies."""
    if reading is None or any(one.field == field for one in reading.assumptions):
        return True
    if field in reading.by_name and (field != "heads" or fact.key == MODULES):
        return True
    if value == getattr(reading.config.model, field):
        return False
    if fact.key == MODULES:
        return field in ("heads", *_SET_BY_SCRIPTS)
    return field in _SET_BY_SCRIPTS and field not in reading.stated


def _with_doubt(reading: Reading, found: tuple[Fact, Any] | None) -> Reading:
    """The reading with its heads as an assumption, if the file names an architecture with these and states another
    number, which may be that of another module."""
    heads = reading.config.model.heads
    if found is None or "heads" not in reading.stated or found[1] == heads:
        return reading
    why = f"as in the architecture that the file names, although {found[0].where} states {found[1]}"
    assumption = Assumption("heads", heads, why, f"--set heads={found[1]} for that")
    return replace(reading, assumptions=(*reading.assumptions, assumption))


def _is_about(values: Mapping[Any, Any], reading: Reading) -> bool:
    """Whether a mapping may be about the model of the arrays: it states no other width and no other depth."""
    stated = ((field, _value_of(field, values.get(name))) for field in ("width", "depth") for name in _SHOWN[field])
    return all(value in (None, getattr(reading.config.model, field)) for field, value in stated)


def _is_of_gate(reading: Reading | None, fact: Fact) -> bool:
    """Whether an activation is that of a gate, which is SiLU in our models; transformers' Dinov2 ignores hidden_act."""
    return reading is not None and reading.config.model.mlp == "swiglu" and fact.name == "act_layer"


def _check_activation(reading: Reading | None, source: Source, fact: Fact, value: str) -> None:
    """Raises InputError for an activation that ViTConfig does not have, except the SiLU of a gated MLP."""
    if value == "silu" and reading is not None and reading.config.model.mlp == "swiglu":
        return
    if _is_of_gate(reading, fact):
        raise InputError(
            f"{source.path}: {fact.where} states '{one_line(value)[:60]}' for MLPs with a gate, which is SiLU in "
            "ViTConfig; if that is not the activation of the gates, use --set activation=gelu"
        )
    raise InputError(
        f"{source.path}: {fact.where} states '{one_line(value)[:60]}', which ViTConfig cannot express; if it is not "
        f"the activation of this model's MLPs, use --set activation=NAME with one of {', '.join(_ACTIVATIONS)}"
    )


def _check_pooling(source: Source, found: tuple[Fact, Any] | None) -> None:
    """Raises InputError for a pooling of this model that ViTConfig does not have."""
    if found is not None:
        fact, value = found
        raise InputError(
            f"{source.path}: {fact.where} states the pooling '{one_line(value)[:60]}', which ViTConfig cannot express; "
            f"if it is not the pooling of this model, use --set pooling=NAME with one of {', '.join(_POOLINGS)}"
        )


def _attempt(
    read: Callable[[Source, Fields], Reading], source: Source, fields: Fields, *, whole: bool = False
) -> tuple[Reading | None, InputError | None]:
    """The reading with these fields, or the error. whole: whether the shapes of all arrays have to fit it."""
    try:
        reading = read(source, fields)
        if whole:
            read_by_rules(reading.rules, reading.config.model, reading.arrays, source.path)
        return reading, None
    except InputError as error:
        return None, error


def _reason(error: InputError | None) -> str:
    return str(error).rpartition(": ")[2]


def _facts(mappings: Iterable[tuple[tuple[str, ...], Mapping[Any, Any]]]) -> Iterator[Fact]:
    """Every value with a known name, the outermost first."""
    known = {name for names in (*_ASSUMED.values(), *_SHOWN.values()) for name in names} | set(_LABELS)
    for path, values in mappings:
        for name, value in values.items():
            if str(name) in known and value is not None:
                yield Fact(path[0] if path else str(name), str(name), value, len(path))


def _fact_of(field: str, facts: list[Fact]) -> tuple[Fact, Any] | None:
    """The outermost fact about a field, and its value in the form of the field; the attributes of the model's modules
    precede other facts. None if there is none, or several at the same level differ."""
    names = (_ASSUMED | _SHOWN)[field]
    found = [(one, value) for one in facts if one.name in names and (value := _value_of(field, one.value)) is not None]
    found = [(one, value) for one, value in found if one.key == MODULES] or found
    outermost = [(one, value) for one, value in found if one.depth == found[0][0].depth]
    return outermost[0] if len({value for _, value in outermost}) == 1 else None


def _value_of(field: str, said: Any) -> Any:
    """A stated value in the form of the field; None if it is not a valid value."""
    if field == "activation":
        return activation_named(said)
    if field == "norm_epsilon":
        return said if isinstance(said, float) and 0 < said < 1 else None
    if field == "norm":
        return next((norm for name, norm in _NORMS.items() if _last_part(said).startswith(name)), None)
    if field == "pool_prefix":
        return said if isinstance(said, bool) else None
    if field == "branch_norm":
        return said if said in ("before", "after") else None
    if field == "pooling":
        return _POOLING.get(said.lower(), said) if isinstance(said, str) and said.lower() not in ("", "none") else None
    if isinstance(said, str):
        with suppress(ValueError, RecursionError):
            said = json.loads(f"[{said[:64].replace('x', ',')}]")
            said = said[0] if len(said) == 1 else said
    if isinstance(said, LazyArray) and said.dtype.startswith("int") and prod(said.shape) <= 3:
        said = said.read().tolist()
    whole = type(said) is int and said > 0
    if field not in ("image_size", "patch_size"):
        return said if whole else None
    if whole:
        return (said, said)
    sides = list(said) if isinstance(said, list | tuple) else []
    if len(sides) == 3:  # with the number of channels, first or last
        sides = sides[1:] if sides[0] in (1, 3) else sides[:2]
    fits = len(sides) == 2 and all(type(side) is int and side > 0 for side in sides)
    return tuple(sides) if fits else None


def _last_part(said: Any) -> str:
    """The last part of a class's name, in small letters and without underscores."""
    text = getattr(said, "kind", said)
    return text.rpartition(".")[2].replace("_", "").lower() if isinstance(text, str) else ""


def _contradictions(facts: list[Fact], model: ViTConfig) -> list[str]:
    """A note for each field of which the arrays have another value than the file states."""
    shown = [(field, found) for field in _SHOWN if (found := _fact_of(field, facts)) is not None]
    notes = (_contradiction_note(field, fact, value, model) for field, (fact, value) in shown)
    return [note for note in notes if note is not None]


def _contradiction_note(field: str, fact: Fact, value: Any, model: ViTConfig) -> str | None:
    """A note if the arrays have another value than the file states. The number of classes is not compared for a model
    without a head."""
    there = getattr(model, field)
    if there == value or (field == "num_classes" and not there):
        return None
    return (
        f"{fact.where} states {field_text(field, value)}, but the arrays have {field_text(field, there)}, which is used"
    )


def _with_labels(reading: Reading, facts: list[Fact]) -> tuple[Reading, list[str], set[str]]:
    config = reading.config
    if config.labels or not config.model.num_classes:
        return reading, [], set()
    fitting = dict[tuple[str, ...], Fact]()
    for fact in facts:
        names = _names_of(fact.value) if fact.name in _LABELS else None
        if names and len(names) == config.model.num_classes and len(set(names)) == len(names):
            fitting.setdefault(names, fact)
    if len(fitting) > 1:
        where = " and ".join(fact.where for fact in fitting.values())
        return reading, [f"labels left out: {where} differ in names or order"], set()
    for names, fact in fitting.items():
        labelled = replace(reading, config=config.replace(labels=names))
        return labelled, [f"labels: {len(names)} names of {fact.where}"], {fact.key}
    return reading, [], set()


def _names_of(said: Any) -> tuple[str, ...] | None:
    """Class names in the order of their numbers, from a list, {number: name} or {name: number}. None for anything
    else."""
    names: list[Any] = []
    if isinstance(said, list | tuple):
        names = list(said)
    elif isinstance(said, Mapping):
        pairs = dict(said.items())
        if all(type(value) is int for value in pairs.values()):
            pairs = {value: key for key, value in pairs.items()}
        by_number = {str(key): name for key, name in pairs.items()}
        names = [by_number.get(str(i)) for i in range(len(by_number))]
    return tuple(names) if all(isinstance(name, str) and name and name.isprintable() for name in names) else None
