"""What Keras 3 saves: a preset folder of keras_hub, a `.keras` archive, and weights in several files.

Each becomes one tree of arrays. The texts of its configs are the metadata, by the names of their files; they are data
that a format reads, and no class that they name is imported.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from vit_core.arrays import LazyArray
from vit_core.checkpoints.containers.archives import Archive
from vit_core.checkpoints.containers.container import Container, nested
from vit_core.checkpoints.containers.hdf5 import read_hdf5
from vit_core.checkpoints.containers.reading import FileRange, TemporaryFolder, readable
from vit_core.errors import InputError, abbreviate, one_line
from vit_core.storage import Location

WEIGHTS, INDEX, TASK_WEIGHTS = "model.weights.h5", "model.weights.json", "task.weights.h5"
CONFIGS = ("config.json", "task.json", "preprocessor.json", "image_converter.json")
"""Names of the files in a preset folder of keras_hub that describe its backbone, its task and its images."""
TASK = "task"
"""First part of the names of a preset's arrays that are in its file for the task, such as the head."""
_LONGEST_JSON, _LONGEST_ARCHIVE = 2**24, 2**36


def read_preset(folder: Location, files: Mapping[str, FileRange]) -> Container:
    """Opens a preset folder: the arrays of the backbone and, under "task", those of the task. files: the files of the
    folder. Raises InputError if one of them is damaged."""
    open_file = _opener(files)
    backbone = read_hdf5(files[WEIGHTS]) if WEIGHTS in files else read_sharded(files[INDEX], open_file)
    tree, metadata = dict(backbone.tree), dict(backbone.metadata)
    if TASK_WEIGHTS in files:
        task = read_hdf5(files[TASK_WEIGHTS])
        tree[TASK] = task.tree
        metadata |= {f"{TASK}/{name}": layer for name, layer in task.metadata.items()}
    metadata |= {name: _text(files[name]) for name in CONFIGS if name in files}
    return Container(folder, "keras preset", tree, metadata, separator="/")


def with_config_beside(weights: Container) -> Container:
    """The weights of a preset's backbone, if their file alone is opened, with the config in the same folder."""
    config = weights.path.parent / CONFIGS[0]
    if weights.path.name != WEIGHTS or not config.is_file():
        return weights
    with readable(config, "a text in JSON"):
        text = config.read_bytes().decode() if config.stat().st_size <= _LONGEST_JSON else ""
    if '"registered_name"' not in text:  # the config of another library
        return weights
    notes = (*weights.notes, f"config: from {config.name} beside the file")
    return replace(weights, metadata={**weights.metadata, config.name: text}, notes=notes)


def read_archive(source: FileRange) -> Container:
    """Opens a `.keras` archive: the arrays of the whole model, and its config.json. Raises InputError if it is
    damaged."""
    with readable(source.path, "a complete .keras archive"):
        archive = Archive(source)
        if WEIGHTS not in archive.names:
            raise InputError(f"{source.path}: has no {WEIGHTS}; save it with one file of weights (model.save)")
        config = archive.read(CONFIGS[0], _LONGEST_JSON).decode() if CONFIGS[0] in archive.names else ""
        weights = read_hdf5(archive.stored(WEIGHTS) or _unpacked(archive, source))
    configs = {CONFIGS[0]: config} if config else {}
    return replace(weights, kind="keras archive", metadata={**weights.metadata, **configs})


def _unpacked(archive: Archive, source: FileRange) -> FileRange:
    """The weights in a temporary file, if another program compressed the archive."""
    folder = TemporaryFolder()
    file = folder.path / WEIGHTS
    file.write_bytes(archive.read(WEIGHTS, _LONGEST_ARCHIVE))
    return FileRange.whole(source.path, file, folder)


def read_sharded(index: FileRange, open_file: Callable[[Location], Container]) -> Container:
    """Opens weights in several files, which an index (`NAME.weights.json`) lists: {"weight_map": {group: file, or list
    of files}}. open_file: opens one of them. Raises InputError if a file or a group is missing."""
    with readable(index.path, "an index of weights in several files"):
        shards_of = json.loads(_text(index))["weight_map"]
        shards_of = {group: [names] if isinstance(names, str) else names for group, names in shards_of.items()}
        names = sorted({_file_name(name, index) for names in shards_of.values() for name in names})
        opened = {name: open_file(index.path.parent / name) for name in names}
        entries, layers = dict[str, LazyArray](), dict[str, str]()
        for name, container in opened.items():
            if twice := sorted(entries.keys() & container.arrays.entries.keys()):
                raise ValueError(f"{name} repeats arrays of another file: {abbreviate(twice)}")
            entries |= container.arrays.entries
            layers |= container.metadata
        for group in shards_of:
            if not any(name.startswith(f"{group.strip('/')}/") for name in entries):
                raise ValueError(f"its files have no {one_line(group)[:60]}")
    tree: dict[str, Any] = nested(entries)
    return Container(index.path, "hdf5 shards", tree, layers, separator="/")


def _opener(files: Mapping[str, FileRange]) -> Callable[[Location], Container]:
    """Opens a file of weights by its path. Raises InputError for one that is not in `files`."""

    def opened(path: Location) -> Container:
        if path.name not in files:
            raise InputError(f"{path}: no such file; the index of the weights names it, so copy it here too")
        return read_hdf5(files[path.name])

    return opened


def _file_name(name: object, index: FileRange) -> str:
    """The name of a shard. Raises InputError if it is not a file in the folder of the index."""
    if not isinstance(name, str) or PurePosixPath(name.replace("\\", "/")).name != name or not name.endswith(".h5"):
        raise InputError(f"{index.path}: names the file '{one_line(str(name))[:60]}', expected one in its own folder")
    return name


def _text(source: FileRange) -> str:
    with readable(source.path, "a text in JSON"):
        if source.length > _LONGEST_JSON:
            raise ValueError(f"more than {_LONGEST_JSON:,} bytes")
        return source.read(0, source.length).decode()
