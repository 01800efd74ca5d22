"""The images that a command line gives: files, folders, patterns, tables, or paths on standard input."""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from glob import glob, has_magic
from itertools import chain
from pathlib import Path

from vit_core.errors import InputError, abbreviate
from vit_core.image_files import images_below
from vit_train.data.sources.tables import SUFFIXES, listed_images


@dataclass(frozen=True)
class NamedImages:
    """Paths of images, in the order in which they are named; those of a folder or a pattern sorted."""

    paths: Iterable[str]
    count: int | None
    """Number of images; None while paths are still being read."""
    folders: tuple[str, ...] = ()
    """The folders that are named."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Path -> label, of the images of tables that have one."""

    def label_of(self, path: str) -> str | None:
        """An image's label in a table or, if it is in a folder directly below a named folder, that folder's name;
        otherwise None."""
        if path in self.labels:
            return self.labels[path]
        for folder in self.folders:
            if path.startswith(os.path.join(folder, "")):
                inside = os.path.relpath(path, folder).split(os.sep)
                return text_of(inside[0]) if len(inside) > 1 else None
        return None


def text_of(path: str) -> str:
    """A path as text that can be encoded, also if its name contains invalid bytes."""
    return os.fsencode(path).decode("utf-8", "replace")


def named_images(words: Sequence[str], stdin: bool = False, label_column: str | None = None) -> NamedImages:
    """The images that words name: a file, a folder (all images in it and below), a pattern such as `photos/*.jpg`, or a
    table (.csv, .tsv, .jsonl) with a column of paths, relative to its folder, and perhaps of labels. With `stdin`,
    paths of images are read from standard input, one on each line, as they are needed.

    Raises InputError for a path that does not exist, a pattern without matches, a folder without images, and a table
    without a column of paths, or none of whose images exists, or without the column of labels that is asked for.
    """
    if stdin and words:
        raise InputError(f"-: reads the images from standard input; leave out {abbreviate(words)}")
    if stdin:
        return NamedImages(_lines(), None)
    if not words:
        raise InputError("no images: give files, folders, patterns or tables, or - for paths on standard input")
    if label_column is not None and not any(word.lower().endswith(SUFFIXES) for word in words):
        raise InputError(f"--data.label-column {label_column}: is for tables (.csv, .tsv, .jsonl), and there is none")
    images = [image for word in words for image in _expanded(word, label_column)]
    paths, folders = [path for path, _ in images], tuple(word for word in words if os.path.isdir(word))
    return NamedImages(paths, len(paths), folders, {path: label for path, label in images if label is not None})


def _expanded(word: str, label_column: str | None) -> list[tuple[str, str | None]]:
    """The images of a word, each with its label in a table."""
    if os.path.exists(word):
        return _named(word, label_column)
    if not has_magic(word):
        raise InputError(f"{word}: no such image; expected a file, folder, table or pattern ('photos/*.jpg')")
    if not (found := sorted(glob(word, recursive=True))):
        raise InputError(f"{word}: no file matches this pattern")
    return [image for name in found for image in _named(name, label_column)]


def _named(path: str, label_column: str | None) -> list[tuple[str, str | None]]:
    """The images of a path that exists."""
    if os.path.isdir(path):
        return [(inside, None) for inside in images_below(path)]
    return listed_images(Path(path), label_column) if path.lower().endswith(SUFFIXES) else [(path, None)]


def _lines() -> Iterator[str]:
    """The lines of standard input that are not empty. Reads the first of them at once, and raises InputError if it
    contains several paths."""
    lines = (line.rstrip("\r\n") for line in sys.stdin)
    if "\0" in (first := next(lines, "")):
        raise InputError(
            "-: paths are separated by zero bytes; expected one on each line, as find prints them without -print0"
        )
    return (path for path in chain([first], lines) if path)
