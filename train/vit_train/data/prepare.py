"""Packs images into a set that tensorflow-datasets reads; image files are stored unchanged (`vit prepare`).

A set is built shard by shard in OUT/name/1.0.0.incomplete and moved to OUT/name/1.0.0 when it is complete. Finished
shards are kept: if the process is killed, the same call continues and gives the same bytes.
"""

import hashlib
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import dataset_info, example_serializer, file_adapters, naming

from vit_core.arrays import LazyArrays
from vit_core.checkpoints.containers import write_npz
from vit_core.errors import InputError
from vit_core.preprocess import decode_image
from vit_core.storage import exclusive, staged_files
from vit_train.config import Data
from vit_train.data.checking import check_outside_data
from vit_train.data.sources import Groups, Split, open_split
from vit_train.data.sources.opening import FILES, split_names_of
from vit_train.data.sources.prepared import GROUPS, LABELS, PREPARED
from vit_train.data.sources.split import Listed
from vit_train.data.sources.split_names import PREFERRED, spelled
from vit_train.display import SILENT, Display
from vit_train.processes import end_with_parent

VERSION = "1.0.0"
MAX_RECORDS = 8192
"""Largest number of records in a shard: to read one record, tensorflow-datasets takes 8 ns for each record of its
shard."""
UNREADABLE, RESULT = "unreadable.txt", "result.json"


@dataclass(frozen=True)
class Prepared:
    """A complete set."""

    folder: Path
    counts: Mapping[str, int]
    """Number of examples by split."""
    classes: int
    unreadable: tuple[tuple[str, str], ...]
    """Skipped images: path below the packed folder, or name in a file; and the reason."""

    @property
    def summary(self) -> tuple[str, ...]:
        """Two or three lines for the user: counts, unreadable images, and how to train on the set."""
        counts = ", ".join(f"{count:,} {split}" for split, count in self.counts.items())
        name, directory = self.folder.parent.name, self.folder.parent.parent
        lines = [f"{self.folder}: {counts}; {self.classes} classes"]
        if self.unreadable:
            lines.append(f"{len(self.unreadable):,} unreadable, skipped: reasons are in {self.folder / UNREADABLE}")
        return (*lines, f"to train on it: --data.name {name} --data.directory {directory}")


@dataclass(frozen=True)
class Shard:
    """Work for one process: the file of a shard, the folder for it, and its images, in order."""

    split: str
    file: str
    folder: Path
    images: Listed
    groups: Groups | None = None


@dataclass(frozen=True)
class Packed:
    """A finished shard."""

    records: int
    bytes: int
    unreadable: Sequence[Sequence[str]]
    """File and reason of each."""
    labels: Sequence[int]
    """The label of each record."""
    groups: Sequence[int] = ()
    """The group of each record, as an index of the names of all; empty without groups."""


def prepare(
    source: Path,
    out: Path,
    *,
    name: str | None = None,
    held_out: float = 0.1,
    split_seed: int = 0,
    workers: int | None = None,
    shard_size_mib: int = 256,
    display: Display = SILENT,
    **columns: str | None,
) -> Prepared:
    """Packs the splits of a source (or train and a drawn test split) into OUT/name/1.0.0; continues if it was killed.

    source: class folders, a table, parquet files, a saved `datasets` folder or tar shards; also a pattern of files.
    workers: processes, 1 or more (default: one for each core). columns: fields of `Data` that name columns, such as
    label_column. Raises InputError if something cannot be packed or written, and if another set exists at the target.
    """
    where = str(source) if _is_file(source) else f"{source}{os.sep}"
    data = Data(name=where, held_out=held_out, split_seed=split_seed, **columns)
    check_outside_data(out, data)
    name = valid_name(source, name)
    set_folder = out / name / VERSION
    work = set_folder.with_name(f"{VERSION}.incomplete")
    with display.working(f"listing {source}"):
        splits = find_splits(source, data)
    for split in splits.values():
        split.make_ready(display)
    with display.working(f"planning {name}"):
        shards, plan = plan_shards(splits, name, work, split_seed, shard_size_mib * 2**20)
    with exclusive(set_folder.parent):
        if not set_folder.exists():
            start_plan(work, plan)
            packed = pack_all(shards, workers or os.cpu_count() or 1, f"prepare {name}", display)
            assemble(work / VERSION, shards, packed, splits["train"].labels, plan)
            (work / VERSION).rename(set_folder)
        prepared = open_prepared(set_folder, plan)
        shutil.rmtree(work, ignore_errors=True)
    return prepared


def _is_file(source: Path) -> bool:
    """Whether a source is given as a file or a pattern of files. (A missing file is reported later.)"""
    return source.name.lower().endswith(FILES) and not source.is_dir()


def valid_name(source: Path, name: str | None) -> str:
    """The set's name, by default that of the folder or file, in the characters that tensorflow-datasets accepts:
    lower-case letters, digits and _. Raises InputError if the given name has other characters."""
    is_pattern = any(char in source.name for char in "*?[") and not source.exists()
    path = (source.parent if is_pattern else source).resolve()
    given = name or (path.name.rpartition(".")[0] if _is_file(path) else path.name)
    valid = re.sub("[^a-z0-9]+", "_", naming.camelcase_to_snakecase(given)).strip("_")
    valid = valid if re.match("[a-z]", valid) else f"set_{valid}".rstrip("_")
    if name and name != valid:
        raise InputError(f"--name '{name}': expected lower-case letters, digits and _, as '{valid}'")
    return valid


def find_splits(source: Path, data: Data) -> dict[str, Split]:
    """A source's splits by name. Raises InputError if they cannot be opened, and for a class name that a prepared set
    cannot contain."""
    train = open_split(data, "train")
    if not isinstance(train.examples, Listed):
        raise InputError(f"{source}: is a prepared set already; expected class folders, a table, parquet or tar files")
    for label in train.labels:
        if label != label.strip() or not label.isprintable():  # label.labels.txt has a line for each, stripped
            raise InputError(f"class {label!r}: expected a name of printable characters, without spaces at its ends")
    known = split_names_of(data)
    splits = {"train": train}
    for name in PREFERRED["test"]:
        if (found := spelled(name, known)) is not None:
            splits[name] = open_split(data.replace(eval_split=found), "test")
    if len(splits) == 1 and data.held_out:
        splits["test"] = open_split(data, "eval")
    return splits


def plan_shards(
    splits: Mapping[str, Split], name: str, work: Path, seed: int, shard_bytes: int
) -> tuple[list[Shard], str]:
    """All shards, and a hash of their contents: names, sizes and times of all files, and their groups, in order."""
    shards, digest = [], hashlib.sha256(json.dumps([name, *splits["train"].labels]).encode())
    groups_of = _with_common_names(splits)
    for split, source in splits.items():
        files, groups = source.examples, groups_of.get(split)
        assert isinstance(files, Listed)
        order_N = np.random.default_rng([seed, zlib.crc32(split.encode())]).permutation(len(files))
        files = files.take(order_N)
        status_N2 = files.sizes_and_times()
        count = math.ceil(max(status_N2[:, 0].sum() / shard_bytes, len(files) / MAX_RECORDS, 1))
        template = naming.ShardedFileTemplate(work, dataset_name=name, split=split, filetype_suffix="array_record")
        for i, part_N in enumerate(np.array_split(np.arange(len(files)), min(count, len(files)))):
            path = Path(template.sharded_filepath(shard_index=i, num_shards=min(count, len(files))))
            of_part = None if groups is None else groups.take(order_N[part_N])
            shards.append(Shard(split, path.name, work / f"{split}-{i}", files.take(part_N), of_part))
            digest.update(path.name.encode())
        grouping = () if groups is None else (groups.column, groups.names, groups.take(order_N).group_N.tolist())
        for part in (*files.identity, status_N2.tobytes(), *grouping):
            digest.update(part if isinstance(part, bytes) else repr(part).encode())
    return shards, digest.hexdigest()


def _with_common_names(splits: Mapping[str, Split]) -> dict[str, Groups]:
    """The groups of each split, as indices of the names in all of them; empty without groups."""
    groups = {split: source.groups for split, source in splits.items() if source.groups is not None}
    names = np.array(sorted({name for each in groups.values() for name in each.names}))
    return {
        split: Groups(each.column, tuple(names.tolist()), np.searchsorted(names, np.array(each.names))[each.group_N])
        for split, each in groups.items()
    }


def start_plan(work: Path, plan: str) -> None:
    """Creates the folder for a plan; removes the shards of another plan."""
    file = work / "plan"
    if work.exists() and not (file.exists() and file.read_text() == plan):
        shutil.rmtree(work)
    with staged_files(work, ("plan",)) as stage:
        (stage / "plan").write_text(plan)


def pack_all(shards: Sequence[Shard], workers: int, title: str, display: Display = SILENT) -> list[Packed]:
    """Packs all shards, in parallel; progress counts images."""
    packed: dict[int, Packed] = {}
    with display.task(title, sum(len(shard.images) for shard in shards)) as task:
        for i, result in _pack_in_parallel(shards, min(workers, len(shards))):
            packed[i] = result
            unreadable = sum(len(result.unreadable) for result in packed.values())
            note = f"{len(packed)} of {len(shards)} shards" + (f", {unreadable} unreadable" if unreadable else "")
            task.update(sum(len(shards[done].images) for done in packed), note)
    return [packed[i] for i in range(len(shards))]


def _pack_in_parallel(shards: Sequence[Shard], workers: int) -> Iterator[tuple[int, Packed]]:
    if workers == 1:
        yield from enumerate(map(pack, shards))
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        futures = {pool.submit(pack, shard): i for i, shard in enumerate(shards)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            raise InputError(
                "a worker was killed (out of memory?); start again with fewer --workers: finished shards are kept"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Makes a worker end with its parent; otherwise it could write into the shards of the next call."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent reports an interrupt
    end_with_parent()


def pack(shard: Shard) -> Packed:
    """Writes a shard and its result, both or neither; if they exist already, only the result is read."""
    result = shard.folder / RESULT
    if result.exists() and "labels" in (stored := json.loads(result.read_text())):  # earlier versions wrote no labels
        return Packed(**stored)
    with staged_files(shard.folder, (shard.file, RESULT)) as stage, warnings.catch_warnings(action="ignore"):
        packed = _write_records(shard, stage / shard.file)
        (stage / RESULT).write_text(json.dumps(asdict(packed)))
    return packed


def _write_records(shard: Shard, path: Path) -> Packed:
    """Writes a record for each image that can be decoded, in order. Raises OSError if writing fails."""
    images = shard.images
    serializer = example_serializer.ExampleSerializer(features(()).get_serialized_info())
    sizes: list[int] = []
    labels: list[int] = []
    packed: list[int] = []
    unreadable = []

    def records() -> Iterator[tuple[int, bytes]]:
        for i in range(len(images)):
            try:
                example = images[i]
                decode_image(example["image"])
            except InputError as error:
                unreadable.append([os.fsdecode(images.keys_N[i]) or images.name(i), str(error)])
                continue
            # serialize_example is not used, because the order of its fields varies.
            record = serializer.get_tf_example(example).SerializeToString(deterministic=True)
            sizes.append(len(record))
            labels.append(example["label"])
            packed.append(i)
            yield i, record

    try:
        file_adapters.ArrayRecordFileAdapter.write_examples(path, records())
    except RuntimeError as error:  # array_record raises it for every error of the file system
        raise OSError(str(error).split(";")[0]) from None
    groups = [] if shard.groups is None else shard.groups.group_N[packed].tolist()
    return Packed(len(sizes), sum(sizes), unreadable, labels, groups)


def features(labels: Sequence[str]) -> Any:
    """Features of a set: the image as the bytes of its file, and the label."""
    label = tfds.features.ClassLabel(names=list(labels))
    return tfds.features.FeaturesDict({"image": tfds.features.Image(), "label": label})


def assemble(folder: Path, shards: Sequence[Shard], packed: Sequence[Packed], labels: Sequence[str], plan: str) -> None:
    """Moves the shards into the set's folder, then writes the files by which tensorflow-datasets recognizes a set."""
    info = _info(folder, shards, packed, labels, plan)
    unreadable = [re.sub(r"\s", " ", file) + "\t" + reason for result in packed for file, reason in result.unreadable]
    by_file = {shard.file: np.array(result.labels, np.int32) for shard, result in zip(shards, packed, strict=True)}
    groups = [] if shards[0].groups is None else [GROUPS]
    with staged_files(folder, (UNREADABLE, LABELS, *groups, "label.labels.txt", "metadata.json", *PREPARED)) as stage:
        for shard in shards:
            if (shard.folder / shard.file).exists():  # otherwise an earlier, killed process has moved it
                os.replace(shard.folder / shard.file, folder / shard.file)
        text = "".join(f"{line}\n" for line in sorted(unreadable))
        (stage / UNREADABLE).write_text(text, encoding="utf-8", errors="surrogateescape")
        write_npz(stage / LABELS, LazyArrays.of(by_file))
        if (of := shards[0].groups) is not None:
            records = {shard.file: result.groups for shard, result in zip(shards, packed, strict=True)}
            stored = {"column": of.column, "names": of.names, "records": records}
            (stage / GROUPS).write_text(json.dumps(stored), encoding="utf-8")
        info.write_to_directory(stage)


def _info(folder: Path, shards: Sequence[Shard], packed: Sequence[Packed], labels: Sequence[str], plan: str) -> Any:
    name = folder.parent.parent.name
    identity = dataset_info.DatasetIdentity(name, tfds.core.Version(VERSION), os.fspath(folder), module_name="")
    info = tfds.core.DatasetInfo(
        builder=identity,
        description="Packed by `vit prepare`; every image is the bytes of its file.",
        features=features(labels),
        supervised_keys=("image", "label"),
        metadata=tfds.core.MetadataDict(plan=plan),
    )
    info.set_file_format(file_adapters.FileFormat.ARRAY_RECORD)
    template = naming.ShardedFileTemplate(folder, dataset_name=name, filetype_suffix="array_record")
    splits = []
    for split in dict.fromkeys(shard.split for shard in shards):
        results = [result for shard, result in zip(shards, packed, strict=True) if shard.split == split]
        lengths = [result.records for result in results]
        if not sum(lengths):
            file, reason = results[0].unreadable[0]
            raise InputError(f"split {split}: none of its images can be read (the first is {file}: {reason})")
        size = sum(result.bytes for result in results)
        splits.append(tfds.core.SplitInfo(split, lengths, size, filename_template=template))
    info.set_splits(tfds.core.splits.SplitDict(splits))
    return info


def open_prepared(folder: Path, plan: str) -> Prepared:
    """The contents of a complete set. Raises InputError unless it was made by this plan."""
    try:
        stored = json.loads((folder / "metadata.json").read_text())["plan"]
    except (OSError, ValueError, KeyError, TypeError):
        stored = None
    if stored != plan:
        raise InputError(f"{folder}: another set exists there; delete it, or choose another --out or --name")
    info = tfds.builder_from_directory(str(folder)).info
    lines = (folder / UNREADABLE).read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    unreadable = tuple((file, reason) for file, _, reason in (line.partition("\t") for line in lines if line))
    counts = {split: info.splits[split].num_examples for split in info.splits}
    return Prepared(folder, counts, info.features["label"].num_classes, unreadable)
