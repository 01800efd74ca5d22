"""Matches the classes of a data set with the outputs of a model, by name."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from vit_core.errors import InputError, abbreviate

Labels = tuple[str, ...]
LabelMatching = Literal["by-name", "by-position", "by-number"]
"""How classes are matched with outputs. By position: class i of the data set is output i. By number: the class named
"7" is output 7."""
_PLACEHOLDER = re.compile(r"LABEL_[0-9]+")
"""The names that transformers gives to classes without names."""


def composed(name: str) -> str:
    """A name with one character for each accented letter (Unicode's form NFC). Folders and archives from macOS may have
    two, which look the same."""
    return unicodedata.normalize("NFC", name)


def numbers_by_name(labels: Sequence[str]) -> Callable[[str], int | None]:
    """A function from the name of a class to its number, or to None for another name. The form of accented letters
    counts only where it is the only difference between two classes."""
    numbers = {composed(label): i for i, label in enumerate(labels)} | {label: i for i, label in enumerate(labels)}
    return lambda name: numbers.get(name, numbers.get(composed(name)))


@dataclass(frozen=True)
class LabelMatch:
    """The output of a model for each class of a data set."""

    outputs: tuple[int, ...]
    """Class of the data set -> output of the model; every output at most once."""
    notes: tuple[str, ...] = ()
    """Notes for the user on how they were matched; empty if the names are the same in the same order."""


def match_labels(
    model_labels: Sequence[str] | None, outputs: int, data_labels: Sequence[str], how: LabelMatching = "by-name"
) -> LabelMatch:
    """Matches every class of a data set with an output of a model.

    model_labels: names of the model's outputs; None, or names like LABEL_0, if it has none. outputs: their number.
    data_labels: names of the data set's classes. By name, the data set may have fewer classes than the model, in any
    order; a model without names is matched by position, if the numbers of classes are equal. Raises InputError, with
    the options that would help, for a class that the model does not have, and for classes that cannot be distinguished.
    """
    model_names, data_names = _names(model_labels), tuple(map(composed, data_labels))
    if how == "by-position":
        return _by_position(outputs, data_names)
    if how == "by-number":
        return _by_number(outputs, data_names)
    if model_names is None:
        return _without_names(outputs, data_names)
    if model_names == data_names:
        return LabelMatch(tuple(range(outputs)))
    unknown = [name for name in data_names if name not in model_names]
    if unknown:
        raise InputError(_unknown_text(unknown, model_names, data_names))
    counts = Counter(model_names), Counter(data_names)
    if ambiguous := [name for name in dict.fromkeys(data_names) if any(count[name] > 1 for count in counts)]:
        raise InputError(
            f"labels: {_quoted(ambiguous)} is the name of several classes, which cannot be told apart by name; "
            "use --labels by-position if both have the same order"
        )
    position = {name: i for i, name in enumerate(model_names)}
    order = tuple(position[name] for name in data_names)
    if len(order) < outputs:
        note = (
            f"labels: the data set has {len(order)} of the model's {outputs} classes; a prediction of another class "
            "counts as wrong"
        )
    else:
        note = "labels: matched by name, as their order differs between model and data set"
    return LabelMatch(order, (note,))


def kept_outputs(model_labels: Sequence[str] | None, data_labels: Sequence[str]) -> tuple[int | None, ...]:
    """For each class of a data set the output of a model for the class of that name; None where the model has no class
    of the name, or where it is the name of several classes of either."""
    model_names, data_names = _names(model_labels) or (), tuple(map(composed, data_labels))
    counts = Counter(model_names), Counter(data_names)
    position = {name: i for i, name in enumerate(model_names)}
    return tuple(position[name] if all(count[name] == 1 for count in counts) else None for name in data_names)


def _names(labels: Sequence[str] | None) -> Labels | None:
    """The names of a model's classes; None for placeholders, which are no names."""
    if labels is None or all(_PLACEHOLDER.fullmatch(name) for name in labels):
        return None
    return tuple(map(composed, labels))


def _without_names(outputs: int, data_names: Labels) -> LabelMatch:
    """Matches by position, if there is no reason against it."""
    if len(data_names) != outputs:
        raise InputError(
            f"labels: the model has no class names and {outputs} outputs, the data set has {len(data_names)} classes; "
            f"fine-tune it on this data set{_ways_out(outputs, data_names)}"
        )
    if _is_in_string_order(data_names, outputs):
        raise InputError(
            "labels: the model has no class names, and the data set's are numbers in the order of text "
            f"({abbreviate(data_names, most=4)}); use --labels by-number if the class called 7 is output 7, or "
            "--labels by-position if the model was trained with the classes in this order"
        )
    note = "labels: the model has no class names; class i of the data set is taken as output i"
    return LabelMatch(tuple(range(outputs)), (note,))


def _by_position(outputs: int, data_names: Labels) -> LabelMatch:
    if len(data_names) > outputs:
        raise InputError(
            f"labels: --labels by-position: the data set has {len(data_names)} classes, the model {outputs} outputs"
        )
    fewer = f" (outputs from {len(data_names)} on have no class)" if len(data_names) < outputs else ""
    note = f"labels: class i of the data set is taken as output i{fewer}"
    return LabelMatch(tuple(range(len(data_names))), (note,))


def _by_number(outputs: int, data_names: Labels) -> LabelMatch:
    numbers = [_number(name) for name in data_names]
    wrong = [name for name, number in zip(data_names, numbers, strict=True) if number is None or number >= outputs]
    if wrong or len(set(numbers)) < len(numbers):
        found = f"is called {_quoted(wrong)}" if wrong else "has the number of another one"
        raise InputError(
            f"labels: --labels by-number: a class {found}; expected a different number from 0 to {outputs - 1} for each"
        )
    note = "labels: the class called i is taken as output i"
    return LabelMatch(tuple(number for number in numbers if number is not None), (note,))


def _number(name: str) -> int | None:
    return int(name) if name.isascii() and name.isdigit() and len(name) < 10 else None


def _is_in_string_order(names: Labels, outputs: int) -> bool:
    """Whether names are the numbers of outputs in another order than their own: 0, 1, 10, 2."""
    numbers = [_number(name) for name in names]
    return sorted(number for number in numbers if number is not None) == list(range(outputs)) != numbers


def _unknown_text(unknown: Sequence[str], model_names: Labels, data_names: Labels) -> str:
    alike = {_simplified(name): name for name in model_names}
    pairs = [(name, alike[_simplified(name)]) for name in unknown if _simplified(name) in alike]
    hint = f" ('{_shortened(pairs[0][0])}' is called '{_shortened(pairs[0][1])}' there)" if pairs else ""
    return (
        f"labels: the model has no class {_quoted(unknown)}{hint}; its classes: {_quoted(model_names)}; rename the "
        f"data set's classes{_ways_out(len(model_names), data_names)}"
    )


def _ways_out(outputs: int, data_names: Labels) -> str:
    """The options that would work."""
    ways = []
    if len(data_names) <= outputs:
        ways.append(", or use --labels by-position if class i of the data set is output i")
    if all((number := _number(name)) is not None and number < outputs for name in data_names):
        ways.append(", or --labels by-number if the class called 7 is output 7")
    return "".join(ways)


def _simplified(name: str) -> str:
    """A name without case, spaces and punctuation."""
    return re.sub(r"[\W_]+", "", name).casefold()


def _quoted(names: Sequence[str]) -> str:
    return abbreviate([f"'{_shortened(name)}'" for name in names], most=3)


def _shortened(name: str) -> str:
    text = " ".join(name.split())
    return text if len(text) <= 40 else f"{text[:40]}..."
