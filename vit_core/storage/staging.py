"""Replaces files atomically, on a local disk and in a store: readers see the old or the new file, never a part."""

import hashlib
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from vit_core.errors import InputError
from vit_core.storage.locations import Location, is_local, unwritable
from vit_core.storage.locks import HAS_LOCKS, locked
from vit_core.storage.object_store import StorePath

_STAGE, _NEW_STAGE = ".saving-", ".new-saving-"
_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
_ABANDONED_SECONDS = 600.0
"""A stage (temporary folder) that is not locked and older than this was left by a process that was killed before it
could lock it."""


@contextmanager
def staged_files(folder: Location, names: Sequence[str]) -> Iterator[Path]:
    """A local folder in which the caller writes the files `names`. At the end they replace those in `folder`, in this
    order.

    All files are flushed to the disk before the first one is replaced. Stages that killed processes left are removed.
    Several processes may write into one folder. In a store each file is replaced as a whole. Raises InputError if the
    file system refuses or there is no such bucket; the folder is then unchanged.
    """
    if is_local(folder):
        with _local_stage(folder, names) as stage:
            yield stage
    else:
        assert isinstance(folder, StorePath)
        folder.mkdir()  # raises InputError for a location that can only be read
        with _upload_stage(folder, names) as stage:
            yield stage


@contextmanager
def _upload_stage(folder: StorePath, names: Sequence[str]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vit-") as stage:
        yield Path(stage)
        try:
            for name in names:
                (folder / name).upload(Path(stage) / name)
        except FileNotFoundError:
            raise InputError(f"{folder}: no such bucket; create it first, or choose another") from None


@contextmanager
def _local_stage(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    created = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            if (folder / name).is_dir():
                raise IsADirectoryError(f"{folder / name} is a directory")
        _remove_stages_of_killed_processes(folder)
        with _new_stage(folder) as stage:
            yield stage
            _publish(stage, folder, names)
    except OSError as error:
        raise unwritable(folder, error) from None
    finally:
        if created:
            with suppress(OSError):  # fails if the files were written, because it is not empty
                folder.rmdir()


@contextmanager
def _new_stage(folder: Path) -> Iterator[Path]:
    """A new stage. It gets the name of a stage, by which other processes recognize it, only after it is locked."""
    new = Path(tempfile.mkdtemp(prefix=f"{_NEW_STAGE}{_HOST}-{os.getpid()}-", dir=folder))
    stage = new.with_name(_STAGE + new.name.removeprefix(_NEW_STAGE))
    try:
        with locked(new):
            new.rename(stage)
            try:
                yield stage
            finally:
                shutil.rmtree(stage, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _remove_stages_of_killed_processes(folder: Path) -> None:
    """Removes stages that no process has locked. Without file locks (Windows), only old ones."""
    for stage in folder.glob(f"{_STAGE}*"):
        with suppress(OSError):  # BlockingIOError, an OSError, means that its process is alive
            if HAS_LOCKS or _is_abandoned(stage):
                with locked(stage):
                    shutil.rmtree(stage)
    for stage in folder.glob(f"{_NEW_STAGE}*"):
        with suppress(OSError):
            if _is_abandoned(stage) or _has_dead_owner(stage):
                shutil.rmtree(stage)


def _is_abandoned(stage: Path) -> bool:
    return time.time() - stage.stat().st_mtime > _ABANDONED_SECONDS


def _has_dead_owner(stage: Path) -> bool:
    """Whether the process that created a stage, and had not locked it yet, was on this machine and no longer exists."""
    host, _, owner = stage.name.removeprefix(_NEW_STAGE).partition("-")
    number = owner.partition("-")[0]
    if host != _HOST or not number.isdigit() or os.name == "nt":  # on Windows, os.kill(pid, 0) would end the process
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _publish(stage: Path, folder: Path, names: Sequence[str]) -> None:
    mode = _default_mode(stage)
    for name in names:
        (stage / name).chmod(mode)  # files of libraries that write to temporary files first are private
        _flush(stage / name)
    for name in names:
        os.replace(stage / name, folder / name)
    _flush(folder)


def _default_mode(folder: Path) -> int:
    """The permissions of a new file of this process. (os.umask is not used, because reading it changes it for all
    threads.)"""
    probe = folder / ".mode"
    os.close(os.open(probe, os.O_CREAT | os.O_WRONLY, 0o666))
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    return mode


def _flush(path: Path) -> None:
    """Flushes a file or folder from the system's cache to the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open folders
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
