"""The images that a command line gives: files, folders, patterns, tables, or paths on standard input."""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
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

    def label_of(self, path: str) -> str | None:
        """The name of an image's folder, if that is directly below a named folder; otherwise None."""
        for folder in self.folders:
            if path.startswith(os.path.join(folder, "")):
                inside = os.path.relpath(path, folder).split(os.sep)
                return text_of(inside[0]) if len(inside) > 1 else None
        return None


def text_of(path: str) -> str:
    """A path as text that can be encoded, also if its name contains invalid bytes."""
    return os.fsencode(path).decode("utf-8", "replace")


def named_images(words: Sequence[str], stdin: bool = False) -> NamedImages:
    """The images that words name: a file, a folder (all images in it and below), a pattern such as `photos/*.jpg`, or a
    table (.csv, .tsv, .jsonl) with a column of paths, relative to its folder. With `stdin`, paths of images
    are read from standard input, one on each line, as they are needed.

    Raises InputError for a path that does not exist, a pattern without matches, a folder without images, and a table
    without a column of paths, or none of whose images exists.
    """
    if stdin and words:
        raise InputError(f"-: reads the images from standard input; leave out {abbreviate(words)}")
    if stdin:
        return NamedImages(_lines(), None)
    if not words:
        raise InputError("no images: give files, folders, patterns or tables, or - for paths on standard input")
    paths = [path for word in words for path in _expanded(word)]
    return NamedImages(paths, len(paths), tuple(word for word in words if os.path.isdir(word)))


def _expanded(word: str) -> list[str]:
    if os.path.exists(word):
        return _named(word)
    if not has_magic(word):
        raise InputError(f"{word}: no such image; expected a file, folder, table or pattern ('photos/*.jpg')")
    if not (found := sorted(glob(word, recursive=True))):
        raise InputError(f"{word}: no file matches this pattern")
    return [path for name in found for path in _named(name)]


def _named(path: str) -> list[str]:
    """The images of a path that exists."""
    if os.path.isdir(path):
        return images_below(path)
    return listed_images(Path(path)) if path.lower().endswith(SUFFIXES) else [path]


def _lines() -> Iterator[str]:
    for line in sys.stdin:
        if path := line.rstrip("\r\n"):
            yield path
