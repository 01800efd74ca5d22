"""`Listing`, the images and labels of a table, parquet files or shards, and its division into splits and classes."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, cast

import numpy as np

from vit_core.errors import InputError, abbreviate
from vit_core.labels import numbers_by_name
from vit_train.config import Data
from vit_train.data.sources import held_out, split_names
from vit_train.data.sources.groups import Groups, NoGroupsError
from vit_train.data.sources.several_labels import split_cell, with_labels
from vit_train.data.sources.split import Listed, Split, Which

T = TypeVar("T")
SEPARATORS = "|;,"
"""Usual separators between several labels in one cell."""


@dataclass(frozen=True)
class Listing:
    """All images of a data set, before division into splits. Each sequence has one entry for each image."""

    title: str
    images: Listed
    """In any order, without labels (all 0)."""
    cells: Sequence[str] | Sequence[int] | Sequence[tuple[str, ...]]
    """The label of each image as it is written: text or an integer; or the names of all its classes, if an image may
    have several."""
    classes: tuple[str, ...] | None = None
    """Names of the classes 0, 1, ..., if labels are numbers with names."""
    splits: Sequence[str] | None = None
    groups: Sequence[str] | None = None
    notes: tuple[str, ...] = ()


def split_of(listing: Listing, data: Data, which: Which) -> Split:
    """A split of a listing. If no split for evaluation is known, one is drawn.

    Classes are those of the training split, sorted: text alphabetically, as class folders are, and numbers by value.
    Examples are sorted by class, then by key, then as they are listed, so that the same images have the same order in
    every kind of source. Raises InputError for a missing split, and for classes that training does not have.
    """
    found = list(dict.fromkeys(listing.splits or ()))
    train = split_names.choose(listing.title, found, data, "train")
    evaluation = split_names.choose(listing.title, found, data, "eval" if which == "train" else which)
    name = train if which == "train" or evaluation is None else evaluation
    training_N, chosen_N = _rows(listing, train), _rows(listing, name)
    listing = replace(listing, classes=listing.classes or _classes_in_keys(listing))
    options = data.label_separator is not None or bool(data.label_columns)
    multilabel = options or isinstance(listing.cells[0], tuple)
    if multilabel:
        listing = replace(listing, cells=_name_sets(listing, data))
    labels = listing.classes or _classes(listing, training_N)
    if multilabel:
        chosen_N = chosen_N[np.lexsort((chosen_N, listing.images.keys_N[chosen_N]))]
        examples: Listed = with_labels(listing.images.take(chosen_N), _numbers(listing, labels, chosen_N, name))
    else:
        labels_M = np.array([number for (number,) in _numbers(listing, labels, chosen_N, name)], np.int32)
        order = np.lexsort((chosen_N, listing.images.keys_N[chosen_N], labels_M))
        chosen_N = chosen_N[order]
        examples = replace(listing.images.take(chosen_N), labels_N=labels_M[order])  # type: ignore[type-var]
    title = f"{listing.title}/{name}" if name else listing.title
    groups = _groups(listing, data, chosen_N)
    if evaluation is None:
        rows_M = held_out.rows_of_part(examples, labels, data, which, title, groups)
        examples, groups = examples.take(rows_M), None if groups is None else groups.take(rows_M)
        title = held_out.share_title(title, data, which)
    unknown = split_names.unknown_names_note(listing.title, found, data)
    divided = _divided_groups_note(listing, data, train, evaluation)
    notes = (*listing.notes, *unknown, *divided, *(() if multilabel else _separator_note(listing.title, labels)))
    return Split(examples, labels, title, notes, multilabel, groups)


def _groups(listing: Listing, data: Data, rows_M: np.ndarray) -> Groups | None:
    """The group of each row; None if no column names them."""
    if listing.groups is None or data.group is None:
        return None
    return Groups.of(data.group, [listing.groups[i] for i in rows_M.tolist()])


def _divided_groups_note(listing: Listing, data: Data, train: str | None, evaluation: str | None) -> tuple[str, ...]:
    """A note on groups that the data's own splits divide, which a drawn split never does."""
    if listing.groups is None or evaluation in (None, train):
        return ()
    there = [{listing.groups[i] for i in _rows(listing, name).tolist()} for name in (train, evaluation)]
    if not (both := sorted(set.intersection(*there))):
        return ()
    return (
        f"{listing.title}: {len(both)} groups ({data.group}) have images in both {train} and {evaluation}: "
        f"{abbreviate(both)}; such an evaluation overestimates the accuracy on new groups",
    )


def _separator_note(title: str, labels: Sequence[str]) -> tuple[str, ...]:
    """A note on labels that look like several labels, because their parts between separators occur in other labels
    too."""
    for separator in SEPARATORS:
        parts = [split_cell(label, separator) for label in labels]
        enough = all if separator == "," else any  # names of classes may have commas: "maillot, tank suit"
        times = Counter(part for names in parts for part in names)
        found = [i for i, names in enumerate(parts) if len(names) > 1 and enough(times[name] > 1 for name in names)]
        if found:
            return (
                f"{title}: {len(found)} labels contain '{separator}' and are used as single classes: "
                f"{_quoted([labels[i] for i in found])}; if it separates several classes of an image, set "
                f"--data.label-separator '{separator}'",
            )
    return ()


def _quoted(labels: Sequence[str]) -> str:
    """Labels in quotation marks, because they may contain commas and semicolons."""
    return abbreviate([f"'{label}'" for label in labels])


def _name_sets(listing: Listing, data: Data) -> list[tuple[str, ...]]:
    """The names of each image's classes."""
    separator = data.label_separator
    return [
        cell if isinstance(cell, tuple) else split_cell(str(cell), separator) if separator else (str(cell),)
        for cell in listing.cells
    ]


def _classes(listing: Listing, training_N: np.ndarray) -> tuple[str, ...]:
    """The names of the classes that the training images have, sorted."""
    cells = [listing.cells[i] for i in training_N.tolist()]
    names = {name for cell in cells for name in (cell if isinstance(cell, tuple) else (cell,))}
    return tuple(map(str, sorted(names)))


def _classes_in_keys(listing: Listing) -> tuple[str, ...] | None:
    """The names of classes for labels that are numbers, from keys such as CLASS/NAME, if the numbers are those of the
    sorted folders; otherwise None."""
    if not isinstance(listing.cells[0], int):
        return None
    folders = [os.path.basename(os.path.dirname(key)) for key in listing.images.keys_N.tolist()]
    pairs = sorted(set(zip(listing.cells, folders, strict=True)))
    names = sorted(os.fsdecode(folder) for _, folder in pairs)
    if [number for number, _ in pairs] != [*range(len(pairs))] or "" in names:
        return None
    return tuple(names) if [os.fsdecode(folder) for _, folder in pairs] == names else None


def _rows(listing: Listing, split: str | None) -> np.ndarray:
    """Indices of the images of a split, or of all images if there are no splits."""
    if split is None or listing.splits is None:
        return np.arange(len(listing.images))
    return np.flatnonzero(np.array(listing.splits) == split)


def _numbers(listing: Listing, labels: tuple[str, ...], rows_M: np.ndarray, split: str | None) -> list[tuple[int, ...]]:
    """The numbers of each row's classes. Raises InputError for a label that is not a class of the training split."""
    cells = [listing.cells[i] for i in rows_M.tolist()]
    if listing.classes is not None and isinstance(cells[0], int):
        return [(cell,) for cell in cells]
    names = [cell if isinstance(cell, tuple) else (str(cell),) for cell in cells]
    number_of = numbers_by_name(labels)
    number = {name: number_of(name) for name in {name for each in names for name in each}}
    if unknown := sorted(name for name, known in number.items() if known is None):
        notes = () if isinstance(cells[0], tuple) else _separator_note(listing.title, [*labels, *unknown])
        hint = "".join(f"; {note.removeprefix(f'{listing.title}: ')}" for note in notes)
        raise InputError(
            f"{listing.title}/{split}: training has no class of this name: {_quoted(unknown)}; expected one of "
            f"its {len(labels)} classes{hint}"
        )
    return [tuple(cast(int, number[name]) for name in each) for each in names]


def column(where: str, names: Sequence[str], asked: str | None, usual: Sequence[str], option: str) -> str:
    """The column that is asked for or, if none is, the first with a usual name (in any case). option: the field of
    `Data`, for messages. Raises InputError if there is no such column."""
    if (found := optional_column(where, names, asked, usual, option)) is not None:
        return found
    fix = f"set --data.{option.replace('_', '-')}"
    raise InputError(f"{where}: no column {' or '.join(usual[:3])}; found: {abbreviate(names)}; {fix}")


def optional_column(
    where: str, names: Sequence[str], asked: str | None, usual: Sequence[str], option: str
) -> str | None:
    """The same as `column`, but None if no column is asked for and none has a usual name."""
    if asked is not None:
        if asked not in names:
            kind = NoGroupsError if option == "group" else InputError
            raise kind(f"{where}: data.{option}: no column '{asked}'; found: {abbreviate(names)}")
        return asked
    lower = {name.casefold(): name for name in reversed(names)}
    return next((lower[name] for name in usual if name in lower), None)
