"""Locations: local paths, and addresses in an object store or the Hub with the same methods."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeGuard

from vit_core.errors import InputError
from vit_core.storage.hub import HubPath
from vit_core.storage.object_store import HUB, StorageError, StorePath

Location: TypeAlias = Path | StorePath
"""Path or address of a file or folder; `location` makes one from text."""


def location(path: str | os.PathLike[str]) -> Location:
    """A local path, or the address of an object or folder in a store (gs://BUCKET/..., s3://..., memory://...) or of a
    model in the Hugging Face Hub (hf://USER/MODEL[@REVISION]), which can only be read.

    Raises InputError for another scheme, and for an address without a bucket.
    """
    if isinstance(path, Path | StorePath):
        return path
    text = os.fspath(path)
    if "://" not in text:
        return Path(text)
    return HubPath.parse(text) if text.startswith(f"{HUB}://") else StorePath.parse(text)


def is_local(path: Location) -> TypeGuard[Path]:
    """Whether a location is on this machine."""
    return isinstance(path, Path)


def require_local(path: Location, option: str) -> Path:
    """The location as a local path. option: named in messages. Raises InputError for a location in a store."""
    if not is_local(path):
        raise InputError(f"{option} {path}: expected a folder on this machine")
    return path


def writable_location(path: str | os.PathLike[str]) -> Location:
    """A location to write to. Raises InputError for one that can only be read. The location is not accessed."""
    place = location(path)
    if not is_local(place):
        place.mkdir()  # raises for hf://, otherwise does nothing
    return place


def absolute(path: Location) -> Location:
    """The location as an absolute path with symbolic links resolved."""
    return path.resolve() if is_local(path) else path


@contextmanager
def local_copy(path: Location) -> Iterator[Path]:
    """A local file with the contents of a location: the file itself, or a copy that is removed at the end of the
    context."""
    if is_local(path):
        yield path
        return
    assert isinstance(path, StorePath)
    with tempfile.TemporaryDirectory(prefix="vit-") as folder:
        path.download(copy := Path(folder) / path.name)
        yield copy


def remove_tree(folder: Location, ignore_errors: bool = False) -> None:
    """Removes a folder and everything in it. Raises FileNotFoundError if it does not exist, and StorageError if a store
    refuses, unless errors are ignored."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=ignore_errors)
        return
    try:
        folder.remove_tree()
    except (FileNotFoundError, StorageError):
        if not ignore_errors:
            raise


_LARGEST_REPORT = 2**26
"""Bytes of the largest JSON file that is read to see whether a command wrote it."""


@dataclass(frozen=True)
class Replaceable:
    """Which existing files a command replaces: those that it writes itself, and empty ones."""

    what: str
    """What it writes, as in "is not a figure of matplotlib"."""
    is_own: Callable[[Path], bool]
    """Whether a file is one of these; any exception means that it is not."""


def json_report(what: str, *keys: str) -> Replaceable:
    """A command's JSON file: an object that has all of these keys."""

    def is_own(path: Path) -> bool:
        small = path.stat().st_size <= _LARGEST_REPORT
        found = json.loads(path.read_text()) if small else None
        return isinstance(found, dict) and found.keys() >= set(keys)

    return Replaceable(what, is_own)


def check_new_file(path: Location, option: str, replaceable: Replaceable) -> None:
    """Raises InputError, with the name of the option, if no file can be written at a location: it is a folder, its
    folder is missing or refuses new files, or it is another file than the command writes, which would be lost. Call it
    before a long computation; it changes nothing. (Files in a store are replaced.)"""
    if not is_local(path):
        path.mkdir()  # does nothing, or raises
        return
    if path.is_dir() or not path.parent.is_dir():
        fault = "is a folder" if path.is_dir() else "its folder is missing"
        raise InputError(f"{option} {path}: {fault}; give a file in a folder that exists")
    _check_takes_files(path.parent, f"{option} {path}")
    if path.exists() and path.stat().st_size and not _is_own(path, replaceable):
        raise InputError(
            f"{option} {path}: exists and is not {replaceable.what}, so it is not replaced; choose another name"
        )


def _is_own(path: Path, replaceable: Replaceable) -> bool:
    try:
        return replaceable.is_own(path)
    except Exception:  # readers answer other files with exceptions of every kind
        return False


def unwritable(place: object, cause: BaseException | str, option: str | None = None) -> InputError:
    """The error for a place where files cannot be written.

    place: a path, or an option and its path. cause: the error of the system or the store. option: the option that sets
    the place, unless `place` names it.
    """
    text = (isinstance(cause, OSError) and cause.strerror) or cause
    fix = "choose" if option is None else f"set {option} to"
    return InputError(f"{place}: cannot write there ({text}); {fix} a writable folder with enough space")


def check_new_folder(path: Location, option: str) -> None:
    """Raises InputError, with the name of the option, if no files can be written in a folder, which is not created: the
    folder or, if it is missing, the nearest one above it refuses new files. Call it before a long computation."""
    if is_local(path):
        existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
        _check_takes_files(existing, f"{option} {path}")
    else:
        path.mkdir()  # does nothing, or raises


def _check_takes_files(folder: Path, asked: str) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(b"0")  # a full disk may take an empty file
    except OSError as error:
        raise unwritable(asked, error) from None


def check_writable(folder: Location, option: str = "--out") -> None:
    """Creates the folder if it is missing. option: named in messages. Raises InputError if it cannot be written to, and
    StorageError if a store refuses."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise unwritable(folder, error, option) from None
