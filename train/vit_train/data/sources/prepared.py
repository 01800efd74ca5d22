"""Data sets that tensorflow-datasets prepared as ArrayRecord, including the digits, which are prepared when they are
used."""

import json
import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from tensorflow_datasets.proto import tf_example_pb2

from vit_core.errors import InputError, unknown_name
from vit_core.storage import unwritable
from vit_train.config import Data
from vit_train.data import digits
from vit_train.data.sources.folders import subfolders
from vit_train.data.sources.groups import Groups
from vit_train.data.sources.split import Source, Split, Which
from vit_train.data.sources.split_names import PREFERRED, no_split
from vit_train.user_cache import user_cache

PREPARED = ("features.json", "dataset_info.json")
"""Files that tensorflow-datasets writes in the folder of a set."""
LABELS = "labels.npz"
"""File that `vit prepare` writes in the same folder: name of a file of records -> the label of each record."""
GROUPS = "groups.json"
"""File that `vit prepare --data.group` writes there: the `column`, the `names` of the groups, and `records`: name of a
file of records -> the group of each record, as an index of the names."""


@dataclass(frozen=True, eq=False)
class Records(Source):
    """Examples in ArrayRecord files, as tensorflow-datasets writes them.

    They are not read with tensorflow-datasets, because it requests a list of records, which takes time in proportion to
    all records of the file (0.2 ms for CIFAR-10's 50,000). A range takes 0.01 ms.
    """

    parts: tuple[tuple[str, int, int], ...]
    """File, first record and number of records."""
    image: str
    label: str
    title: str

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(count for _, _, count in self.parts))

    @cached_property
    def labels_N(self) -> np.ndarray | None:
        """int32 [N]: the label of each example, if LABELS exists, so that the records need not be read; otherwise
        None."""
        labels_file = os.path.join(os.path.dirname(self.parts[0][0]), LABELS)
        if not os.path.exists(labels_file):
            return None
        try:
            with np.load(labels_file) as labels:
                known = [labels[os.path.basename(file)][first : first + count] for file, first, count in self.parts]
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            raise InputError(
                f"{labels_file}: damaged ({error}); remove it, so that the records are read instead"
            ) from None
        return np.concatenate(known)

    def __len__(self) -> int:
        return self._ends[-1]

    def name(self, i: int) -> str:
        """The position of example i in its split."""
        return f"{self.title}[{i}]"

    @property
    def identity(self) -> tuple[object, ...]:
        """Names of the files, and which of their records."""
        return tuple((os.path.basename(file), *part) for file, *part in self.parts)

    def places(self) -> Iterable[object]:
        """The file and the record of each example."""
        return ((os.path.realpath(file), i) for file, first, count in self.parts for i in range(first, first + count))

    def __getitem__(self, i: Any) -> Any:
        i = range(len(self))[i]  # IndexError beyond the end, as loops over a sequence expect
        part = bisect_right(self._ends, i)
        path, first, count = self.parts[part]
        position = first + i - (self._ends[part] - count)
        try:
            (record,) = record_reader(path).read(position, position + 1)
            feature = tf_example_pb2.Example.FromString(record).features.feature
            return {"image": feature[self.image].bytes_list.value[0], "label": feature[self.label].int64_list.value[0]}
        except Exception as error:  # the reader in C++ and protobuf each have their own
            reason = " ".join(str(error).split())
            raise InputError(f"cannot read record {position} of {path}: {reason}") from None


def cache_folder(data: Data) -> Path:
    """The folder for caches of data: data.directory or, if it is not set, ~/.cache/vit-parity."""
    return Path(data.directory or user_cache()).expanduser()


@cache
def record_reader(path: str) -> ArrayRecordReader:
    """One reader for all threads of a process, never closed, with the options of array_record's own random access."""
    return ArrayRecordReader(path, options="readahead_buffer_size:0", file_reader_buffer_size=32768)


def digits_set(data: Data) -> Path:
    """The folder of the set of digits, which is prepared if it is missing."""
    directory = cache_folder(data)
    try:
        return digits.prepare_set(directory)
    except OSError as error:
        raise unwritable(directory, error, "--data.directory") from None


def find_set(data: Data) -> Path:
    """The folder of a set's version by the set's name: DIRECTORY/name/version. Raises InputError, with the known names,
    if there is none."""
    directory = Path(data.directory or tfds.core.constants.DATA_DIR).expanduser()
    names = subfolders(directory) if directory.is_dir() else []
    sets = [path for name in names for path in prepared_in(directory / name)]
    for folder in reversed(sets):
        if data.name in (folder.parent.name, f"{folder.parent.name}:{folder.name}"):
            return folder
    if os.path.exists(data.name):
        raise InputError(
            f"data set '{data.name}': not prepared in {directory}; for the folder or file here use ./{data.name}"
        )
    fix = "set --data.directory, or give a folder with a slash, such as ./photos"
    if not sets:
        raise InputError(f"data set '{data.name}': none is prepared in {directory}; {fix}")
    versions = [f"{path.parent.name}:{path.name}" for path in sets]
    known = versions if ":" in data.name else dict.fromkeys(path.parent.name for path in sets)
    raise InputError(
        f"{unknown_name('data set', data.name, known)}; prepared in {directory}: {', '.join(versions)}; {fix}"
    )


def prepared_in(folder: Path) -> list[Path]:
    """The folder itself if it is a prepared set; otherwise the versions in it (such as 3.0.2), oldest first."""
    if is_prepared(folder):
        return [folder]
    versions = [name for name in subfolders(folder) if re.fullmatch(r"\d+\.\d+\.\d+", name)]
    versions.sort(key=lambda name: [int(part) for part in name.split(".")])
    return [folder / name for name in versions if is_prepared(folder / name)]


def is_prepared(folder: Path) -> bool:
    """Whether a folder is a version of a prepared set."""
    return all((folder / file).is_file() for file in PREPARED)


def prepared_split(folder: Path, data: Data, which: Which) -> Split:
    """A split, or a slice of a split, of the set in a folder. Raises InputError if the set or the split cannot be
    opened."""
    try:
        info = tfds.builder_from_directory(str(folder), file_format="array_record").info
    except Exception as error:  # damaged JSON, unknown features, another format and more
        reason = " ".join(str(error).split())
        raise InputError(
            f"{folder}: cannot be opened ({reason}); expected a complete set, prepared with file_format='array_record'"
        ) from None
    default = next((name for name in PREFERRED[which] if name in info.splits), None)
    split = (data.train_split or "train") if which == "train" else (data.eval_split or default)
    if split is None:
        raise InputError(
            f"{info.name}: no split {', '.join(PREFERRED[which])} to evaluate on; found: {', '.join(info.splits)}; set "
            "--data.eval_split, which may be a slice such as 'train[98%:]'"
        )
    image, label = (_one_feature(info, kind) for kind in (tfds.features.Image, tfds.features.ClassLabel))
    classes = info.features[label]
    labels = tuple(classes.names) if classes.num_classes else ()
    title = f"{info.name} {split}"
    parts = _parts(info, split)
    groups, notes = _groups(folder, parts, data)
    return Split(Records(parts, image, label, title), labels, title, notes, groups=groups)


def _groups(folder: Path, parts: Sequence[tuple[str, int, int]], data: Data) -> tuple[Groups | None, tuple[str, ...]]:
    """The groups of the records in `parts`, if they are stored and no others are asked for; and a note. (Not an error,
    because runs of earlier releases could name a column here, which was not used.)"""
    found = _stored_groups(folder / GROUPS, parts)
    if data.group is None or (found is not None and found.column == data.group):
        return found, ()
    has = "no groups" if found is None else f"the groups of '{found.column}'"
    note = (
        f"{folder}: data.group: the set was prepared with {has}, so its images count as independent; prepare it with "
        f"--data.group {data.group}"
    )
    return None, (note,)


def _stored_groups(file: Path, parts: Sequence[tuple[str, int, int]]) -> Groups | None:
    if not file.is_file():
        return None
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        records = [stored["records"][os.path.basename(name)][first : first + count] for name, first, count in parts]
        group_N = np.concatenate([np.array(each, np.int64) for each in records])
        names = np.array(stored["names"])[group_N]
        column = str(stored["column"])
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: damaged ({error}); prepare the set again") from None
    if len(group_N) != sum(count for _, _, count in parts):
        raise InputError(f"{file}: damaged (it lacks records); prepare the set again")
    return Groups.of(column, names.tolist())


def _one_feature(info: Any, kind: type) -> str:
    found = [name for name, feature in info.features.items() if isinstance(feature, kind)]
    if len(found) != 1:
        listed = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in info.features.items())
        raise InputError(f"{info.name}: {len(found)} features of kind {kind.__name__}; expected one; found {listed}")
    return str(found[0])


def _parts(info: Any, split: str) -> tuple[tuple[str, int, int], ...]:
    """(file, first record, number of records) of each file of a split or a slice. Raises InputError if a file is
    missing."""
    try:
        instructions = info.splits[split].file_instructions
    except (ValueError, KeyError, AssertionError) as error:
        if re.fullmatch(r"\w+", split):
            raise no_split(info.name, split, info.splits) from None
        reason = " ".join(str(error).split())
        raise no_split(info.name, split, [*info.splits, f"slices of them, as 'train[:98%]' ({reason})"]) from None
    parts = tuple((str(part.filename), part.skip, part.take) for part in instructions if part.take)
    if not parts:
        raise InputError(f"{info.name} {split}: has no examples; expected another split or slice")
    for path, _, _ in parts:
        if not os.path.isfile(path):
            raise InputError(f"{path}: missing; expected every file of {info.name} {split}; copy the set again")
    return parts
