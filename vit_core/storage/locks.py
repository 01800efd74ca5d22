"""File locks, which the system releases when the process that holds them ends, even if it is killed."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vit_core.errors import InputError
from vit_core.storage.locations import Location, check_writable, is_local

try:
    import fcntl
except ImportError:  # Windows, where checkpoints can be read and converted but not trained
    fcntl = None  # type: ignore[assignment]
HAS_LOCKS = fcntl is not None
"""Whether this system has such locks."""


@contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Locks a local folder for this process. Raises BlockingIOError if another process has locked it; with `wait`,
    waits instead.

    Does nothing on a system without such locks (Windows).
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


@contextmanager
def exclusive(folder: Location) -> Iterator[None]:
    """Creates a folder if it is missing and locks it for this process; removes it at the end if it is empty.

    Raises InputError if another process has locked it or it cannot be written to. A store has no locks: a local folder
    is locked instead, which excludes other processes on this machine, but not those on other machines.
    """
    if fcntl is None:
        raise InputError("training needs file locks, which this system lacks; train on Linux or macOS")
    lock = folder if is_local(folder) else _local_substitute(folder)
    created = not lock.exists()
    check_writable(folder)
    lock.mkdir(parents=True, exist_ok=True)
    try:
        try:
            with locked(lock):
                yield
        except BlockingIOError:
            raise InputError(f"{folder}: another process is using it; wait, or choose another --out") from None
    finally:
        if created and lock.is_dir() and not any(lock.iterdir()):
            lock.rmdir()


def _local_substitute(folder: Location) -> Path:
    """The local folder that is locked in place of a folder in a store."""
    # The same bucket name at another endpoint is another bucket.
    endpoint = os.environ.get("STORAGE_EMULATOR_HOST", "") + os.environ.get("AWS_ENDPOINT_URL", "")
    name = hashlib.sha256(f"{endpoint} {folder}".encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"vit-{os.getuid()}-{name}"
