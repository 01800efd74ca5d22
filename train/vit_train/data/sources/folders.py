"""Class folders, and image files below a folder."""

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vit_core.errors import InputError, abbreviate
from vit_core.image_files import extensions, files_below
from vit_core.labels import numbers_by_name
from vit_train.config import Data
from vit_train.data.sources import held_out, split_names
from vit_train.data.sources.split import Listed, Split, Which, size_and_time

UNLABELLED = ("images",)
"""The name of the single class of images without labels."""
RUN = b"run.json"
"""A file that marks the folder of a training run."""
NO_CLASSES = ("__MACOSX", "@eaDir")
"""Folders without images: macOS adds the first to archives, Synology's file servers add the second to folders."""
HEIC = (b".heic", b".heif")
NUMPY = b".npy"
"""Extension of arrays. They count as images only if a class has no other images, because they may be features of
them."""


@dataclass(frozen=True, eq=False)
class Files(Listed):
    """Image files below a folder, stored as two arrays instead of a Python object for each, because there may be
    millions."""

    root: str
    names_N: np.ndarray
    """Bytes: paths below the root."""
    labels_N: np.ndarray

    def __len__(self) -> int:
        return len(self.names_N)

    def name(self, i: int) -> str:
        """Path of file i."""
        return os.path.join(self.root, os.fsdecode(self.names_N[i]))

    def __getitem__(self, i: Any) -> Any:
        return {"image": self._read(i), "label": int(self.labels_N[i])}

    def head(self, i: int, length: int) -> bytes:
        """The first bytes of file i."""
        return self._read(i, length)

    def _read(self, i: int, length: int = -1) -> bytes:
        try:
            with open(self.name(i), "rb") as file:
                return file.read(length)
        except OSError as error:
            raise InputError(f"cannot read image {self.name(i)!r}: {error.strerror}") from None

    def sizes_and_times(self) -> np.ndarray:
        """int64 [N, 2]: the size and the time of each file."""
        return np.array([size_and_time(self.name(i)) for i in range(len(self))])

    @property
    def keys_N(self) -> np.ndarray:
        """Paths below the root."""
        return self.names_N

    @property
    def identity(self) -> tuple[object, ...]:
        """Paths below the root, and labels."""
        return self.names_N.tobytes(), self.labels_N.tobytes()

    def places(self) -> Iterable[object]:
        """The path of each file, with links resolved in the folders above it."""
        root = os.fsencode(os.path.realpath(self.root))
        return (os.path.join(root, name) for name in self.names_N.tolist())


def class_folders(folder: Path, data: Data, which: Which) -> Split:
    """A split of FOLDER/<split>/<class>/... or FOLDER/<class>/... If there is no split for evaluation, one is drawn.

    The classes are those of the training split. To evaluate a finished model, no training split is needed. Raises
    InputError for a missing split, a folder without images, and a class that training does not have.
    """
    splits = split_folders(folder, {data.train_split, data.eval_split} - {None})
    evaluation = split_names.choose(str(folder), splits, data, "eval" if which == "train" else which) or ""
    alone = which == "test" and evaluation and data.train_split is None and not split_names.has_training(splits)
    train = evaluation if alone else split_names.choose(str(folder), splits, data, "train") or ""
    labels = subfolders(folder / train)
    title = os.path.basename(os.path.abspath(folder))
    unknown = split_names.unknown_names_note(title, splits, data)
    if evaluation and which != "train":
        files, notes = _image_files(folder, evaluation, labels)
        return Split(files, tuple(labels), f"{title}/{evaluation}", (*unknown, *notes))
    files, notes = _image_files(folder, train, labels)
    title += f"/{train}" if train else ""
    if not evaluation:
        files = held_out.part(files, labels, data, which, str(folder))
        title = held_out.share_title(title, data, which)
    return Split(files, tuple(labels), title, (*unknown, *notes))


def unlabelled_folder(folder: Path, data: Data, which: Which) -> Split:
    """A split of all images below FOLDER, whose folders are ignored, or of FOLDER/<split>/... If there is no split for
    evaluation, one is drawn. Raises InputError if there are no images."""
    asked = {name.casefold() for name in (data.train_split, data.eval_split) if name}
    splits = [name for name in subfolders(folder) if split_names.is_known(name) or name.casefold() in asked]
    train = split_names.choose(str(folder), splits, data, "train") or ""
    evaluation = split_names.choose(str(folder), splits, data, "eval" if which == "train" else which) or ""
    chosen = evaluation if evaluation and which != "train" else train
    ignored: Counter[bytes] = Counter()
    names = sorted(_images(os.fsencode(folder), os.fsencode(chosen), ignored))
    if not names:
        raise InputError(f"{folder / chosen}: no images; expected files such as .jpg or .png in it or below it")
    files = Files(str(folder), np.array(names), np.zeros(len(names), np.int32))
    title = os.path.basename(os.path.abspath(folder)) + (f"/{chosen}" if chosen else "")
    if not evaluation:
        files = held_out.part(files, UNLABELLED, data, which, str(folder))
        title = held_out.share_title(title, data, which)
    return Split(files, UNLABELLED, title, _ignored_notes(str(folder / chosen), ignored))


def split_folders(folder: Path, asked: Collection[str | None] = ()) -> list[str]:
    """Names of the split folders in a folder; empty if it has class folders directly.

    They are splits if one of them has a known name of a split, or one that is asked for, and contains folders. (A class
    of images of trains may be called "train".)
    """
    inside = subfolders(folder)
    wanted = {name.casefold() for name in asked if name}
    known = [
        name
        for name in inside
        if (split_names.is_known(name) or name.casefold() in wanted) and subfolders(folder / name)
    ]
    return [name for name in inside if subfolders(folder / name)] if known else []


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, without hidden ones and those of other programs, sorted."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    return [name for name in names if name not in NO_CLASSES]


def _image_files(folder: Path, split: str, labels: Sequence[str]) -> tuple[Files, tuple[str, ...]]:
    """All images in a split's class folders, sorted by class and path; and notes on ignored files."""
    root, below = folder / split, os.fsencode(split)
    number_of = numbers_by_name(labels)
    names: list[bytes] = []
    numbers: list[int] = []
    ignored: Counter[bytes] = Counter()
    beside = _images_beside_classes(root, ignored)
    for name in subfolders(root):
        if (label := number_of(name)) is None:
            raise InputError(
                f"{root / name}: training has no class of this name; expected one of its {len(labels)} classes"
            )
        found = sorted(_images(os.fsencode(folder), os.path.join(below, os.fsencode(name)), ignored))
        if images := [path for path in found if not path.lower().endswith(NUMPY)]:
            ignored[NUMPY] += len(found) - len(images)
            found = images
        if not found:
            raise InputError(f"{root / name}: no images; add files such as .jpg or .png, or remove the folder")
        names += found
        numbers += [label] * len(found)
    if not names:
        raise InputError(
            f"{root}: no class folders; expected {root}/CLASS/image files; to train a masked autoencoder "
            "(--mae.mask-ratio 0.75) on images without classes, add --data.no-labelled"
        )
    return Files(str(folder), np.array(names), np.array(numbers, np.int32)), (
        *beside,
        *_ignored_notes(str(root), ignored),
    )


def _images_beside_classes(root: Path, ignored: Counter[bytes]) -> tuple[str, ...]:
    """A note on images beside the class folders, which are ignored. Counts the extensions of other files there."""
    with os.scandir(os.fsencode(root)) as entries:
        names = [entry.name for entry in entries if entry.is_file() and not entry.name.startswith(b".")]
    images = sorted(name for name in names if os.path.splitext(name)[1].lower() in extensions())
    ignored.update(os.path.splitext(name)[1].lower() for name in set(names).difference(images))
    if not images:
        return ()
    which = abbreviate(map(os.fsdecode, images))
    return (f"{root}: ignored, because they are in no class folder: {len(images):,} images ({which})",)


def _images(root: bytes, below: bytes, ignored: Counter[bytes]) -> Iterator[bytes]:
    """Image files in the folder `below` a root, as paths below the root. Counts the extensions of other files in
    `ignored`. Raises InputError if a training run is inside."""
    for name in files_below(root, below):
        extension = os.path.splitext(name)[1].lower()
        if extension in extensions() or extension == NUMPY:
            yield name
        elif os.path.basename(name) == RUN:
            folder = os.path.join(root, os.path.dirname(name))
            raise InputError(f"{os.fsdecode(folder)}: a training run is inside the data folder; move it elsewhere")
        else:
            ignored[extension] += 1


def _ignored_notes(where: str, ignored: Counter[bytes]) -> tuple[str, ...]:
    """A note on the number of other files, by extension."""
    if not (ignored := +ignored):
        return ()
    kinds = ", ".join(f"{count:,} {os.fsdecode(kind) or 'without extension'}" for kind, count in ignored.most_common(6))
    more = f" and {len(ignored) - 6} more kinds" if len(ignored) > 6 else ""
    heic = "; pip install pillow-heif to read HEIC" if any(ignored[kind] for kind in HEIC) else ""
    return (f"{where}: files that are not read as images: {kinds}{more}{heic}",)
