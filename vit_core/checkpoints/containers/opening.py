"""Opens any file or folder of named arrays: a file by its first bytes, a folder by the names in it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from vit_core.checkpoints.containers.container import Container
from vit_core.checkpoints.containers.dcp import read_dcp
from vit_core.checkpoints.containers.folders import Found, describe_folder, find_weights
from vit_core.checkpoints.containers.hdf5 import read_hdf5
from vit_core.checkpoints.containers.keras import read_archive, read_preset, read_sharded, with_config_beside
from vit_core.checkpoints.containers.kinds import HEAD, Kind, file_kind
from vit_core.checkpoints.containers.msgpack import read_msgpack
from vit_core.checkpoints.containers.npz import read_npz
from vit_core.checkpoints.containers.orbax import read_orbax
from vit_core.checkpoints.containers.partial_copy import PartialCopy
from vit_core.checkpoints.containers.pth import read_pth
from vit_core.checkpoints.containers.reading import FileRange, TemporaryFolder, readable
from vit_core.checkpoints.containers.safetensors import read_safetensors
from vit_core.checkpoints.containers.shards import read_shards
from vit_core.errors import InputError
from vit_core.storage import HubPath, Location, StorePath, is_local

_READERS: dict[str, Callable[[FileRange], Container]] = {
    "safetensors": read_safetensors,
    "npz": read_npz,
    "pth": read_pth,
    "msgpack": read_msgpack,
    "hdf5": read_hdf5,
    "keras": read_archive,
}
_INDICES: dict[str, Callable[[FileRange, Callable[[Location], Container]], Container]] = {
    "shards": read_shards,
    "keras shards": read_sharded,
}
"""Readers of files that list other files, each of which is opened by the given function."""


def open_container(path: Location) -> Container:
    """Opens a file, or the weights of a folder: arrays and plain values.

    No code of a file is run, and no array is read yet. Files in a store are copied to a temporary folder, which is
    removed after the last use; of a safetensors file in the Hub, only the parts that are read are downloaded. Raises
    InputError if the path is missing, damaged, or of a kind that cannot be read, which the message names.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; expected a checkpoint")
    found = find_weights(path) if path.is_dir() else Found(path, "file")
    if found.reader == "file":
        container = _open_file(found.path)
    else:
        folder, owner = _local_folder(found.path)
        if found.reader == "orbax":
            container = read_orbax(found.path, folder, owner)
        else:
            with readable(found.path, "a folder"):
                files = {file.name: file for file in folder.iterdir() if file.is_file()}
                ranges = {name: FileRange.whole(found.path / name, file, owner) for name, file in files.items()}
            container = (read_preset if found.reader == "keras" else read_dcp)(found.path, ranges)
    return replace(container, notes=(*found.notes, *container.notes)) if found.notes else container


def open_safetensors(path: Location) -> Container:
    """Opens a safetensors file of any name. Raises InputError for a file of another kind."""
    with readable(path, "a file of weights"):
        source = _local_file(path)
    return read_safetensors(source)


def describe_kind(path: Location) -> str:
    """The kind of a file or folder, with its article ("a PyTorch file"), also of one that cannot be opened. Reads only
    a few bytes. Raises InputError if the path does not exist."""
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; expected a checkpoint")
    if path.is_dir():
        return describe_folder(path)
    if isinstance(path, StorePath):
        return file_kind(path.read_head(HEAD), path.name).text
    with readable(path, "a file of weights"):
        source = FileRange.whole(path)
        return file_kind(source.head(HEAD), path.name, source).text


def _open_file(path: Location) -> Container:
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a file of weights")
    with readable(path, "a file of weights"):
        source = _local_file(path)
        kind = file_kind(source.head(HEAD), path.name, source)
    if kind.reader in _INDICES:
        return _INDICES[kind.reader](source, _open_file)
    if not kind.reader:
        raise _unreadable(path, kind)
    container = _READERS[kind.reader](source)
    return with_config_beside(container) if container.of_keras else container


def _unreadable(path: Location, kind: Kind) -> InputError:
    formats = "expected safetensors, .npz, .pth, Flax's msgpack or Keras's .weights.h5"
    return InputError(f"{path}: {kind.text}, {formats}; {kind.advice}")


def _local_file(path: Location) -> FileRange:
    if is_local(path):
        return FileRange.whole(path)
    assert isinstance(path, StorePath)
    folder = TemporaryFolder()
    file = folder.path / "file"
    if isinstance(path, HubPath):  # a commit's files do not change while they are read
        return FileRange.whole(path, file, folder, PartialCopy(path, file))
    path.download(file)
    return FileRange.whole(path, file, folder)


def _local_folder(path: Location) -> tuple[Path, object]:
    """A local folder with the same files, and the object that keeps it from being removed."""
    if is_local(path):
        return path, None
    assert isinstance(path, StorePath)
    folder = TemporaryFolder()
    for name, stored in path.files().items():
        file = folder.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        stored.download(file)
    return folder.path, folder
