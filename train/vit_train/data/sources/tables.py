"""Tables of images: a .csv, .tsv or .jsonl file with a column of paths and a column of labels."""

import csv
import json
import os
import re
import shlex
from pathlib import Path
from typing import Self, cast

import numpy as np

from vit_core.errors import InputError, abbreviate
from vit_train.config import Data
from vit_train.data.sources.extensions import with_extensions
from vit_train.data.sources.folders import Files
from vit_train.data.sources.listing import Listing, column, optional_column
from vit_train.data.sources.several_labels import columns_of_flags, names_of_columns, names_of_list, split_cell

JSON_LINES = ".jsonl"
SUFFIXES = (".csv", ".tsv", JSON_LINES)
PATHS = ("path", "image", "file", "file_name", "filename", "image_path", "filepath", "img", "image_name", "image_id")
LABELS = ("label", "labels", "class", "class_name", "category", "target")
SPLITS = ("split", "subset", "partition")
"""Names of columns (paths, labels, splits) that are tried, in this order and in any case, if none is asked for."""


def table(file: Path, data: Data) -> Listing:
    """The images that a table lists, by paths relative to the table's folder.

    The first line has the names of the columns. Raises InputError, which names the line, for a row that cannot be used.
    """
    names, rows = _rows(file)
    where = str(file)
    if data.image_column is None:
        _check_first_line(file, names)
    image = column(where, names, data.image_column, PATHS, "image_column")
    classes = [column(where, names, name, (), "label_columns") for name in data.label_columns]
    label = None if classes else _label_column(where, names, [row for _, row in rows], data)
    split = optional_column(where, names, data.split_column, SPLITS, "split_column")
    group = None if data.group is None else column(where, names, data.group, (), "group")
    wanted = [name for name in (image, label, split, group, *classes) if name is not None]
    may_be_empty = {*classes, label} if data.label_separator is not None else {*classes}
    needed = [names.index(name) for name in wanted if name not in may_be_empty]
    _check_rows(file, names, rows, needed, None if label is None else names.index(label))
    _check_text(file, rows, {name: names.index(name) for name in wanted}, lists=label)
    cells = {name: [row[names.index(name)].strip() for _, row in rows] for name in wanted}
    lines = [f"{file}, line {line}" for line, _ in rows]
    written, paths = _paths(file.parent, cells[image], lines)
    if not os.path.exists(file.parent / paths[0]):
        raise InputError(f"{lines[0]}: no file {file.parent / paths[0]}; paths are relative to the table's folder")
    values = list(zip(*(cells[name] for name in cells if name != image), strict=True))
    _check_repeated(file, paths, [line for line, _ in rows], values)
    images = Files(str(file.parent), np.array([os.fsencode(path) for path in paths]), np.zeros(len(rows), np.int32))
    named: list[str] | list[tuple[str, ...]]
    if label is None:
        named = [
            names_of_columns(where, classes, row)
            for where, *row in zip(lines, *(cells[name] for name in classes), strict=True)
        ]
    else:
        named = _labels(label, lines, [row[names.index(label)] for _, row in rows], data.label_separator)
    splits, groups = (cells[name] if name else None for name in (split, group))
    notes = _completed_note(file, written, paths)
    return Listing(file.stem, images, named, tuple(classes) or None, splits, groups, notes)


def listed_images(file: Path, label_column: str | None = None) -> list[tuple[str, str | None]]:
    """The path and the label of each image that a table lists. The path has the folder of the table before it, and is
    completed by the extension of the file; the label is None without a column of labels, and where its cell is empty.

    Raises InputError, which names the line, for a row without a path; and for a table none of whose images exists, or
    without the column that is asked for.
    """
    names, rows = _rows(file)
    _check_first_line(file, names)
    image = optional_column(str(file), names, None, PATHS, "image_column")
    if image is None:
        raise InputError(f"{file}: no column {' or '.join(PATHS[:3])}; found: {abbreviate(names)}; rename the column")
    label = optional_column(str(file), names, label_column, LABELS, "label_column")
    i = names.index(image)
    _check_rows(file, names, rows, [i], None)
    _check_text(file, rows, {name: names.index(name) for name in (image, label) if name is not None})
    cells, lines = [row[i].strip() for _, row in rows], [f"{file}, line {line}" for line, _ in rows]
    paths = [str(file.parent / path) for path in _paths(file.parent, cells, lines)[1]]
    if not any(map(os.path.isfile, paths)):
        raise InputError(
            f"{lines[0]}: no file {paths[0]}, nor one of any other row; paths are relative to the table's folder"
        )
    labels = [None if label is None else row[names.index(label)].strip() or None for _, row in rows]
    _check_repeated(file, paths, [line for line, _ in rows], [(label or "",) for label in labels])
    return list(zip(paths, labels, strict=True))


def _paths(folder: Path, cells: list[str], lines: list[str]) -> tuple[list[str], list[str]]:
    """Paths as they are written, with this system's separators; and completed by the extensions of the files. Raises
    InputError for a cell that can be no path."""
    for path, line in zip(cells, lines, strict=True):
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", path):
            raise InputError(f"{line}: {path} is an address; download the images, and give the paths of the files")
        if "\0" in path:
            raise InputError(f"{line}: the path {path!r} contains a zero byte; write the table as UTF-8 text")
    windows = next((path for path in cells if "\\" in path), None)
    slashed = windows is not None and not os.path.exists(folder / windows)
    written = [os.path.normpath(_slashed(path) if slashed else path) for path in cells]
    return written, with_extensions(folder, written, lines)


def _slashed(path: str) -> str:
    """A Windows path with the separators of this system."""
    return path.replace("\\", "/")


class _Nested(str):
    """The text of a cell that is a list or an object in JSON, with its value."""

    value: object

    def __new__(cls, value: object) -> Self:
        """The text of a value."""
        text = super().__new__(cls, value)
        text.value = value
        return text


def _check_text(file: Path, rows: list[tuple[int, list[str]]], used: dict[str, int], lists: str | None = None) -> None:
    """Raises InputError for a list or an object in a column that is used. lists: a column that may have lists."""
    for line, row in rows:
        for name, i in used.items():
            cell = row[i]
            if isinstance(cell, _Nested) and not (name == lists and isinstance(cell.value, list)):
                fix = ", or a list of these for an image of several classes" if name == lists else ""
                raise InputError(f"{file}, line {line}: {name} is a list or an object; expected text or a number{fix}")


def _label_column(where: str, names: list[str], rows: list[list[str]], data: Data) -> str:
    """The column of labels. Raises InputError, which names columns of 1 and 0 if there are some, if there is none."""
    try:
        return column(where, names, data.label_column, LABELS, "label_column")
    except InputError as error:
        flags = columns_of_flags(names, rows) if data.label_column is None else []
        if len(flags) < 2:
            raise
        options = " ".join(map(shlex.quote, flags[:6])) + (" ..." if len(flags) > 6 else "")
        raise InputError(
            f"{error}; or, for the {len(flags)} columns that have 1 or 0 in every line, --data.label-columns {options}"
        ) from None


def _labels(
    column: str, lines: list[str], cells: list[str], separator: str | None
) -> list[str] | list[tuple[str, ...]]:
    """The label of each row; if a row has a list, the names of the classes of each."""
    if not any(isinstance(cell, _Nested) for cell in cells):
        return [cell.strip() for cell in cells]
    found = []
    for line, cell in zip(lines, cells, strict=True):
        if isinstance(cell, _Nested):
            found.append(names_of_list(line, column, cast("list[object]", cell.value)))
        else:
            found.append(split_cell(cell, separator) if separator else (cell.strip(),))
    return found


def _check_first_line(file: Path, names: list[str]) -> None:
    """Raises InputError if the first line has a path in place of a column's name."""
    known = any(name.lower() in PATHS for name in names)
    if not known and any(os.path.isfile(file.parent / _slashed(name)) for name in names):
        raise InputError(f"{file}: its first line is an image; expected the names of the columns: path,label")


def _check_rows(
    file: Path, names: list[str], rows: list[tuple[int, list[str]]], needed: list[int], label: int | None
) -> None:
    """Raises InputError for a line without a cell for each column, with the columns' names, or with an empty cell that
    is needed."""
    for line, row in rows:
        if len(row) != len(names):
            raise InputError(f"{file}, line {line}: cells: {len(row)}; expected {len(names)}, as in the first line")
        if [cell.strip() for cell in row] == names:
            raise InputError(
                f"{file}, line {line}: has the names of the columns again, as in the first line; remove it"
            )
        if empty := [i for i in needed if not row[i].strip()]:
            fix = "fill it in, or remove the line"
            if empty[0] == label:
                fix += "; where images may have several classes or none, set --data.label-separator"
            raise InputError(f"{file}, line {line}: nothing in column {names[empty[0]]}; {fix}")


def _rows(file: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The names of the columns, and the other lines with their numbers. Raises InputError for text that is not a
    table."""
    try:
        if file.suffix.lower() == JSON_LINES:
            return _json_rows(file)
        with open(file, encoding="utf-8-sig", newline="") as text:
            first = text.readline()
            text.seek(0)
            delimiter = "\t" if file.suffix.lower() == ".tsv" else max(",;\t", key=first.count)
            reader = csv.reader(text, delimiter=delimiter, strict=True)
            names = [name.strip() for name in next(reader, [])]
            rows = [(reader.line_num, row) for row in reader if row]
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file}: cannot be read as a table ({error}); expected UTF-8 text: save it again as that (in Excel: CSV "
            "UTF-8)"
        ) from None
    except csv.Error as error:
        raise InputError(f"{file}: cannot be read as a table ({error}); expected UTF-8 text") from None
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"{file}: two columns are named '{twice[0]}'; rename one")
    if not rows:
        raise InputError(f"{file}: no rows; expected a line of names, such as path,label, and a line for each image")
    return names, rows


def _json_rows(file: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The names of the columns, and the lines with their numbers, of a file with a JSON object in each line. Raises
    InputError, which names the line, for any other line."""
    found: list[tuple[int, dict[str, str]]] = []
    with open(file, encoding="utf-8-sig") as text:
        for number, line in enumerate(text, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{file}, line {number}: {error}; expected a JSON object in each line") from None
            if not isinstance(row, dict):
                raise InputError(f'{file}, line {number}: expected a JSON object such as {{"path": ..., "label": ...}}')
            found.append((number, {name: _json_cell(cell) for name, cell in row.items()}))
    if not found:
        raise InputError(f"{file}: no rows; expected a JSON object for each image")
    names = list(dict.fromkeys(name for _, row in found for name in row))
    return names, [(number, [row.get(name, "") for name in names]) for number, row in found]


def _json_cell(cell: object) -> str:
    if isinstance(cell, list | dict):
        return _Nested(cell)
    return "" if cell is None else str(cell)


def _check_repeated(file: Path, paths: list[str], lines: list[int], values: list[tuple[str, ...]]) -> None:
    """Raises InputError if an image is listed twice with different values."""
    first: dict[str, int] = {}
    for i, path in enumerate(paths):
        earlier = first.setdefault(path, i)
        if values[earlier] != values[i]:
            raise InputError(
                f"{file}, line {lines[i]}: {path} is in line {lines[earlier]} too, with other values; keep one of them"
            )


def _completed_note(file: Path, written: list[str], paths: list[str]) -> tuple[str, ...]:
    """A line on the names without extensions."""
    changed = [(old, new) for old, new in zip(written, paths, strict=True) if old != new]
    if not changed:
        return ()
    example = " is read as ".join(changed[0])
    return (f"{file}: {len(changed):,} names without extensions are those of the images beside them: {example}",)
