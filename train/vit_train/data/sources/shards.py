"""Shards of images: tar files in WebDataset's format.

Members that share a key (their name up to the first dot after the last slash) are one example: an image, and its label
in KEY.cls (a number, or text) or in a field of KEY.json. Images are read at random positions, by their offsets.
"""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vit_core.errors import InputError, abbreviate
from vit_core.image_files import extensions
from vit_train.config import Data
from vit_train.data.sources import tar_members
from vit_train.data.sources.listing import Listing, optional_column
from vit_train.data.sources.prepared import cache_folder
from vit_train.data.sources.split import Listed, size_and_time
from vit_train.data.sources.split_names import split_of_file
from vit_train.data.sources.tables import LABELS, SPLITS

SUFFIXES = (".tar",)
MAX_TEXT = 2**20
"""Maximum size in bytes of a member with a label or with JSON."""


@dataclass(frozen=True, eq=False)
class Members(Listed):
    """Images in tar files."""

    files: tuple[str, ...]
    file_N: np.ndarray
    offset_N: np.ndarray
    size_N: np.ndarray
    key_N: np.ndarray
    """Bytes: names of the image members."""
    labels_N: np.ndarray

    def __len__(self) -> int:
        return len(self.offset_N)

    def __getitem__(self, i: Any) -> Any:
        return {"image": self.head(i, int(self.size_N[i])), "label": int(self.labels_N[i])}

    def name(self, i: int) -> str:
        """The file and the member."""
        return f"{self.files[self.file_N[i]]}: {os.fsdecode(self.key_N[i])}"

    @property
    def keys_N(self) -> np.ndarray:
        """Names of the image members."""
        return self.key_N

    @property
    def identity(self) -> tuple[object, ...]:
        """Names and labels."""
        return self.key_N.tobytes(), self.labels_N.tobytes()

    def places(self) -> Iterable[object]:
        """The file and the offset of each image."""
        files = [os.path.realpath(file) for file in self.files]
        return (
            (files[file], offset) for file, offset in zip(self.file_N.tolist(), self.offset_N.tolist(), strict=True)
        )

    def sizes_and_times(self) -> np.ndarray:
        """The size of each image, the time of its tar file."""
        time_F = np.array([size_and_time(file)[1] for file in self.files])
        return np.stack([self.size_N, time_F[self.file_N]], axis=1)

    def head(self, i: int, length: int) -> bytes:
        """The first bytes of image i."""
        offset, size = int(self.offset_N[i]), min(length, int(self.size_N[i]))
        try:
            with open(self.files[self.file_N[i]], "rb", buffering=0) as file:
                found = os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise InputError(f"cannot read {self.name(i)}: {error.strerror}") from None
        if len(found) < size:
            raise InputError(f"cannot read {self.name(i)}: the file is truncated; copy it again")
        return found


def shards(path: Path, files: list[Path], data: Data) -> Listing:
    """The images in tar files."""
    names = [str(file) for file in files]
    tables = tar_members.tables(names, cache_folder(data) / "indexes")
    indexes = [_index(file, table, data) for file, table in zip(names, tables, strict=True)]
    samples = [sample for index in indexes for sample in index]
    if not samples:
        raise InputError(f"{path}: no images; expected members such as KEY.jpg with KEY.cls or KEY.json")
    file_N = np.repeat(np.arange(len(files), dtype=np.int32), [len(index) for index in indexes])
    columns = list(zip(*samples, strict=True))
    images = Members(
        tuple(names), file_N, np.array(columns[0], np.int64), np.array(columns[1], np.int64), np.array(columns[2]),
        np.zeros(len(samples), np.int32),
    )  # fmt: skip
    labels, splits, groups = columns[3:]
    numbers = all(isinstance(label, int) for label in labels)
    by_file = split_of_file(names, path) if not any(splits) else None
    return Listing(
        os.path.basename(os.path.abspath(path)).removesuffix(SUFFIXES[0]),
        images,
        list(labels) if numbers else list(map(str, labels)),
        None,
        [by_file[number] for number in file_N.tolist()] if by_file else list(map(str, splits)) if any(splits) else None,
        list(map(str, groups)) if data.group is not None else None,
    )


Sample = tuple[int, int, bytes, str | int, str | None, str | None]
"""Offset and size of an image, the name of its member, its label, its split, its group."""
Kinds = dict[str, tar_members.Member]
"""Kind ("png", "cls") -> member, for the members with one key."""


def _index(file: str, table: tar_members.Table, data: Data) -> list[Sample]:
    """The samples of a tar file, in its order. Raises InputError for a sample without a label."""
    members: dict[str, Kinds] = {}
    for name, offset, size in zip(*(array.tolist() for array in table), strict=True):
        key, kind = _key_and_kind(os.fsdecode(name))
        members.setdefault(key, {})[kind] = tar_members.Member(os.fsdecode(name), offset, size)
    with open(file, "rb") as tar:
        return [sample for key, kinds in members.items() if (sample := _sample(tar, file, key, kinds, data))]


def _key_and_kind(name: str) -> tuple[str, str]:
    """The key and the kind of a member: "cat/1.seg.PNG" -> "cat/1", "seg.png". The rule is WebDataset's."""
    found = re.fullmatch(r"((?:.*/|)[^./]+)[.]([^/]*)", name, re.DOTALL)
    return (found[1], found[2].lower()) if found else (name, "")


def _sample(tar: BinaryIO, file: str, key: str, kinds: Kinds, data: Data) -> Sample | None:
    """The sample of a key's members; None for a key without an image. Raises InputError for several images, and for a
    missing or invalid label."""
    # A kind with a dot, such as "seg.png" beside "jpg", counts as an image only if it is asked for.
    asked = data.image_column
    images = [kind for kind in kinds if (kind == asked if asked else os.fsencode(f".{kind}") in extensions())]
    if not images:
        return None
    where = f"{file}: {key}"
    if len(images) > 1:
        raise InputError(f"{where}: images {', '.join(images)}; choose one with --data.image-column {images[0]}")
    fields = _json_fields(tar, where, kinds)
    name = data.label_column or ("cls" if "cls" in kinds else None)
    if name in kinds:
        text = _text(tar, where, kinds[name])
        label: Any = int(text) if re.fullmatch(r"-?\d+", text) else text
    else:
        usual = optional_column(where, [*fields], data.label_column, LABELS, "label_column")
        if usual is None:
            raise InputError(f"{where}: no label; found {abbreviate(kinds)}; expected .cls, or a field in .json")
        label = fields[usual]
    if not isinstance(label, int | str) or isinstance(label, bool):
        raise InputError(f"{where}: label {label!r}; expected a whole number or text")
    split = optional_column(where, [*fields], data.split_column, SPLITS, "split_column")
    group = optional_column(where, [*fields], data.group, (), "group")
    image = kinds[images[0]]
    return (
        image.offset, image.size, os.fsencode(image.name), label,
        str(fields[split]) if split else None, str(fields[group]) if group else None,
    )  # fmt: skip


def _json_fields(tar: BinaryIO, where: str, kinds: Kinds) -> dict[str, Any]:
    if "json" not in kinds:
        return {}
    try:
        fields = json.loads(_text(tar, where, kinds["json"]))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}.json: cannot be read ({error})") from None
    return fields if isinstance(fields, dict) else {}


def _text(tar: BinaryIO, where: str, member: tar_members.Member) -> str:
    if member.size > MAX_TEXT:
        raise InputError(f"{where}: {member.name} has {member.size} bytes; expected a short text")
    tar.seek(member.offset)
    try:
        return tar.read(member.size).decode().strip()
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: {member.name} is not UTF-8 text ({error.reason})") from None
