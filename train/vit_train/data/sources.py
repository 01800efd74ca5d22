"""Where examples come from: class folders, prepared tensorflow-datasets sets, the embedded digits.

Images are returned as the bytes of their files. TensorFlow is never imported, and nothing is downloaded.
"""

import hashlib
import os
import re
import zlib
from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from vit_core.errors import InputError, unknown_name
from vit_train.config import Data
from vit_train.data import digits

Example = Mapping[str, Any]
"""{"image": the bytes of an image file, "label": the number of its class}; of a multi-label split the label is a
sequence of such numbers, which may be empty."""
Which = Literal["train", "eval"]

EVALUATION = ("test", "validation", "val")
"""Names of splits to evaluate on, where none is asked for: the first that exists."""
PREPARED = ("features.json", "dataset_info.json")
"""Files that tensorflow-datasets writes beside the records of a set."""


@dataclass(frozen=True)
class Split:
    """Examples of a split, each read when it is asked for; picklable, so that other processes can read them."""

    examples: Sequence[Example]
    """Reading one raises InputError for a file or record that cannot be read. They may have an attribute `labels_N`,
    the label of each: then class weights and balanced sampling need not read every example first."""
    labels: tuple[str, ...]
    """Names of the classes, by label."""
    title: str
    """For people: "cifar10 train", "photos/val"."""
    multilabel: bool = False
    """Whether an example may have any number of classes, instead of exactly one."""

    def name(self, i: int) -> str:
        """Where a person finds example i: its file, or its position ("cifar10 train[123]")."""
        return self.examples.path(i) if isinstance(self.examples, Files) else f"{self.title}[{i}]"

    def fingerprint(self) -> str:
        """A hash of the examples' identities, their order and the labels' names; moving the data does not change it."""
        kind = ("multilabel",) if self.multilabel else ()
        identity = len(self), self.labels, *_identity(self.examples), *kind
        return hashlib.sha256(repr(identity).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.examples)


def _identity(examples: Sequence[Example]) -> tuple[object, ...]:
    if isinstance(examples, Files):
        return examples.names_N.tobytes(), examples.labels_N.tobytes()
    return (
        tuple((os.path.basename(file), *part) for file, *part in examples.parts)
        if isinstance(examples, Records)
        else ()
    )


@dataclass(frozen=True, eq=False)
class Files(Sequence[Example]):
    """Image files below a folder. Millions of them stay small: two arrays, no Python object for each."""

    root: str
    names_N: np.ndarray
    """Bytes: paths below the root."""
    labels_N: np.ndarray

    def __len__(self) -> int:
        return len(self.names_N)

    def path(self, i: int) -> str:
        """Path of file i."""
        return os.path.join(self.root, os.fsdecode(self.names_N[i]))

    def __getitem__(self, i: Any) -> Any:
        try:
            with open(self.path(i), "rb") as file:
                return {"image": file.read(), "label": int(self.labels_N[i])}
        except OSError as error:
            raise InputError(f"cannot read image {self.path(i)!r}: {error.strerror}") from None

    def take(self, indices: np.ndarray) -> "Files":
        """The files of these indices, in their order."""
        return Files(self.root, self.names_N[indices], self.labels_N[indices])


@dataclass(frozen=True, eq=False)
class Records(Sequence[Example]):
    """Examples in ArrayRecord files, as tensorflow-datasets writes them.

    They are not read with tensorflow-datasets: it asks a file for a list of records, which takes time in proportion to
    all records of the file (0.2 ms for CIFAR-10's 50,000); a range takes 0.01 ms.
    """

    parts: tuple[tuple[str, int, int], ...]
    """File, first record and number of records."""
    image: str
    label: str

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(count for _, _, count in self.parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, i: Any) -> Any:
        i = range(len(self))[i]  # IndexError beyond the end, as loops over a sequence expect
        part = bisect_right(self._ends, i)
        path, first, count = self.parts[part]
        position = first + i - (self._ends[part] - count)
        try:
            (record,) = _reader(path).read(position, position + 1)
            feature = tf_example_pb2.Example.FromString(record).features.feature
            return {"image": feature[self.image].bytes_list.value[0], "label": feature[self.label].int64_list.value[0]}
        except Exception as error:  # the reader in C++ and protobuf each have their own
            reason = " ".join(str(error).split())
            raise InputError(f"cannot read record {position} of {path}: {reason}") from None


@cache
def _reader(path: str) -> ArrayRecordReader:
    """One reader for all threads of a process, never closed, with the options of array_record's own random access."""
    return ArrayRecordReader(path, options="readahead_buffer_size:0", file_reader_buffer_size=32768)


def open_split(data: Data, which: Which) -> Split:
    """A run's training or evaluation examples.

    Raises InputError where there are none, fewer than two classes, or the data are not on this machine.
    """
    _require_local(data)
    try:
        if data.name == "digits":
            split = _prepared_split(_digits(data), data, which)
        elif data.name.startswith(".") or "/" in data.name or os.sep in data.name:
            folder = Path(data.name).expanduser()
            prepared = _prepared_in(folder)
            split = _prepared_split(prepared[-1], data, which) if prepared else _folder_split(folder, data, which)
        else:
            split = _prepared_split(_find(data), data, which)
    except OSError as error:
        where = os.fsdecode(error.filename or data.name)
        raise InputError(
            f"{where}: {error.strerror}; expected a readable folder of class folders, or a prepared set"
        ) from None
    if len(split.labels) < 2:
        raise InputError(f"{split.title}: classes: {', '.join(split.labels) or 'none'}; expected two or more")
    return split


def _require_local(data: Data) -> None:
    """InputError for data in a store: ArrayRecord's reader finds 0 records on s3:// and does not return on gs://."""
    for option, path in (("data.name", data.name), ("data.directory", data.directory)):
        if path is not None and "://" in path:
            raise InputError(
                f"{option}: {path} is in a store, and training data are read from this machine only; copy them to a "
                f"folder (gcloud storage cp -r, aws s3 cp --recursive) or mount the bucket, and set {option} to it"
            )


def _digits(data: Data) -> Path:
    cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory = Path(data.directory or Path(cache_home) / "vit-parity").expanduser()
    try:
        return digits.prepare_set(directory)
    except OSError as error:
        raise InputError(
            f"digits: cannot write to {directory} ({error.strerror or error}); set --data.directory to another folder"
        ) from None


# Class folders


def _folder_split(folder: Path, data: Data, which: Which) -> Split:
    """A split of FOLDER/<split>/<class>/... or FOLDER/<class>/...; without a split to evaluate on, one is drawn."""
    splits = split_folders(folder, {data.train_split, data.eval_split} - {None})
    train = data.train_split or ("train" if splits else "")
    evaluation = data.eval_split or _first(splits) or ""
    for name in (train, evaluation):
        if name and name not in splits:
            raise _no_split(str(folder), name, splits or ["only class folders"])
    labels = _subfolders(folder / train)
    title = os.path.basename(os.path.abspath(folder))
    if evaluation and which == "eval":
        return Split(_image_files(folder, evaluation, labels), tuple(labels), f"{title}/{evaluation}")
    files = _image_files(folder, train, labels)
    title += f"/{train}" if train else ""
    if not evaluation:
        files = _part(files, labels, data, which)
        title += " (held out)" if which == "eval" else ""
    return Split(files, tuple(labels), title)


def split_folders(folder: Path, asked: Collection[str | None] = ()) -> list[str]:
    """Names of the split folders in a folder; none where it has class folders directly.

    They are splits if one of them has the name of a split ("train", one of EVALUATION, or one asked for) and contains
    folders: a class of trains may be called "train".
    """
    inside = _subfolders(folder)
    known = [name for name in inside if name in ("train", *EVALUATION, *asked) and _subfolders(folder / name)]
    return [name for name in inside if _subfolders(folder / name)] if known else []


def _first(splits: Collection[str]) -> str | None:
    return next((name for name in EVALUATION if name in splits), None)


def _no_split(where: str, name: str, known: Collection[str]) -> InputError:
    return InputError(f"{where}: no split '{name}'; found: {', '.join(known)}")


def _subfolders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _image_files(folder: Path, split: str, labels: Sequence[str]) -> Files:
    """All images in a split's class folders, sorted by class and path, whatever the order of the file system."""
    root = folder / split
    label_of = {name: label for label, name in enumerate(labels)}
    names: list[bytes] = []
    counts: dict[int, int] = {}
    for name in _subfolders(root):
        if name not in label_of:
            raise InputError(f"{root / name}: no class of that name in training; expected one of those {len(labels)}")
        found = sorted(_walk(os.fsencode(root / name), ()))
        if not found:
            raise InputError(f"{root / name}: no images; expected files as .jpg or .png, or remove the folder")
        names += found
        counts[label_of[name]] = len(found)
    if not names:
        raise InputError(f"{root}: no class folders; expected {root}/CLASS/image files")
    start = len(os.path.join(os.fsencode(folder), b""))
    labels_N = np.repeat(np.array([*counts], np.int32), [*counts.values()])
    return Files(str(folder), np.array([name[start:] for name in names]), labels_N)


def _walk(folder: bytes, above: tuple[tuple[int, int], ...]) -> Iterator[bytes]:
    """Image files below a folder, recognized by their extensions; no file is opened."""
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:
        raise InputError(f"{os.fsdecode(folder)}: a link back to a folder that it is in; remove it")
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(b"."):
                continue
            if entry.is_dir():
                yield from _walk(entry.path, (*above, here))
            elif os.path.splitext(entry.name)[1].lower() in _extensions():
                yield entry.path


@cache
def _extensions() -> frozenset[bytes]:
    """Extensions of the formats that Pillow reads. (It writes some formats that it does not read, such as PDF.)"""
    known = Image.registered_extensions()
    return frozenset(os.fsencode(extension) for extension, format in known.items() if format in Image.OPEN)


def _part(files: Files, labels: Sequence[str], data: Data, which: Which) -> Files:
    """The files held out of each class (at least one of two or more; all only for a fraction of 1), or the others."""
    held_N = np.zeros(len(files), bool)
    bounds = np.searchsorted(files.labels_N, np.arange(len(labels) + 1))
    for label, start, stop in zip(labels, bounds, bounds[1:], strict=False):
        count = round(data.held_out * (stop - start))
        if 0 < data.held_out < 1:
            count = min(max(count, 1), stop - start - 1)
        # Seeded by the class's name, not its number: adding another class changes nothing in this one.
        rng = np.random.default_rng([data.split_seed, zlib.crc32(os.fsencode(label))])
        held_N[start + rng.permutation(stop - start)[:count]] = True
    part = files.take(np.flatnonzero(held_N == (which == "eval")))
    if not len(part):
        purpose = "evaluate" if which == "eval" else "train"
        raise InputError(
            f"{files.root}: data.held_out {data.held_out:g} leaves nothing to {purpose} on; set another fraction, or "
            f"use split folders (train; {', '.join(EVALUATION)})"
        )
    return part


# Sets that tensorflow-datasets prepared


def _find(data: Data) -> Path:
    """The version folder of a set by its name: DIRECTORY/name/version."""
    directory = Path(data.directory or tfds.core.constants.DATA_DIR).expanduser()
    names = _subfolders(directory) if directory.is_dir() else []
    sets = [path for name in names for path in _prepared_in(directory / name)]
    for folder in reversed(sets):
        if data.name in (folder.parent.name, f"{folder.parent.name}:{folder.name}"):
            return folder
    fix = "set --data.directory, or write a folder with a slash, as ./photos"
    if not sets:
        raise InputError(f"data set '{data.name}': none is prepared in {directory}; {fix}")
    versions = [f"{path.parent.name}:{path.name}" for path in sets]
    known = versions if ":" in data.name else dict.fromkeys(path.parent.name for path in sets)
    raise InputError(
        f"{unknown_name('data set', data.name, known)}; prepared in {directory}: {', '.join(versions)}; {fix}"
    )


def _prepared_in(folder: Path) -> list[Path]:
    """The folder itself where it is a prepared set, else the versions in it (as 3.0.2), oldest first."""
    if _is_prepared(folder):
        return [folder]
    versions = [name for name in _subfolders(folder) if re.fullmatch(r"\d+\.\d+\.\d+", name)]
    versions.sort(key=lambda name: [int(part) for part in name.split(".")])
    return [folder / name for name in versions if _is_prepared(folder / name)]


def _is_prepared(folder: Path) -> bool:
    return all((folder / file).is_file() for file in PREPARED)


def _prepared_split(folder: Path, data: Data, which: Which) -> Split:
    try:
        info = tfds.builder_from_directory(str(folder), file_format="array_record").info
    except Exception as error:  # damaged JSON, unknown features, another format and more
        reason = " ".join(str(error).split())
        raise InputError(
            f"{folder}: cannot be opened ({reason}); expected a complete set, prepared with file_format='array_record'"
        ) from None
    split = (data.train_split or "train") if which == "train" else (data.eval_split or _first(info.splits))
    if split is None:
        raise InputError(
            f"{info.name}: no split {', '.join(EVALUATION)} to evaluate on; found: {', '.join(info.splits)}; set "
            "--data.eval_split, which takes slices, as 'train[98%:]'"
        )
    image, label = (_one_feature(info, kind) for kind in (tfds.features.Image, tfds.features.ClassLabel))
    classes = info.features[label]
    labels = tuple(classes.names) if classes.num_classes else ()
    return Split(Records(_parts(info, split), image, label), labels, f"{info.name} {split}")


def _one_feature(info: Any, kind: type) -> str:
    found = [name for name, feature in info.features.items() if isinstance(feature, kind)]
    if len(found) != 1:
        listed = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in info.features.items())
        raise InputError(f"{info.name}: {len(found)} features of kind {kind.__name__}; expected one; found {listed}")
    return str(found[0])


def _parts(info: Any, split: str) -> tuple[tuple[str, int, int], ...]:
    """(file, first record, number of records) of the files of a split or slice; InputError for a missing file."""
    try:
        instructions = info.splits[split].file_instructions
    except (ValueError, KeyError, AssertionError) as error:
        if re.fullmatch(r"\w+", split):
            raise _no_split(info.name, split, info.splits) from None
        reason = " ".join(str(error).split())
        raise _no_split(info.name, split, [*info.splits, f"slices of them, as 'train[:98%]' ({reason})"]) from None
    parts = tuple((str(part.filename), part.skip, part.take) for part in instructions if part.take)
    if not parts:
        raise InputError(f"{info.name} {split}: has no examples; expected another split or slice")
    for path, _, _ in parts:
        if not os.path.isfile(path):
            raise InputError(f"{path}: missing; expected every file of {info.name} {split}; copy the set again")
    return parts
