"""Processes beside each other: those of a run, one at a time in a folder, and workers that end with their parent."""

import fcntl
import hashlib
import multiprocessing
import os
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np

from vit_core.errors import InputError
from vit_core.places import Stored, StoreError


class Processes(Protocol):
    """This process among those of a run (processes_jax, processes_torch)."""

    @property
    def index(self) -> int: ...

    @property
    def count(self) -> int: ...

    def total(self, counts: np.ndarray) -> np.ndarray: ...


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """With a folder, made where it is not there, for this process alone until it ends, however it does.

    InputError where another process is in it, or for no access. Stores have no locks: there it is alone on this machine
    (of several machines, Run.check_held lets the last one go on).
    """
    locked = _stand_in(folder) if isinstance(folder, Stored) else folder
    created = not locked.exists()
    try:
        if isinstance(folder, Stored):
            folder.check_writable()
        locked.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(locked, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"{folder}: cannot write there ({error.strerror}); choose another --out") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder}: another process is at work there; wait, or choose another --out") from None
        yield
    finally:
        os.close(descriptor)
        if created and locked.is_dir() and not any(locked.iterdir()):
            locked.rmdir()


def _stand_in(folder: Stored) -> Path:
    """A folder of this machine to lock instead of one in a store."""
    service = os.environ.get("STORAGE_EMULATOR_HOST", "")  # another store has other buckets of the same names
    name = hashlib.sha256(f"{service} {folder}".encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"vit-{os.getuid()}-{name}"


@contextmanager
def leaving(processes: Processes) -> Iterator[None]:
    """Ends this process at once where something goes wrong in one of several: the others, who would wait for it for
    ever, are then ended by what brought them together."""
    try:
        yield
    except Exception as error:
        if processes.count == 1:
            raise
        said = isinstance(error, InputError | StoreError)
        if said:
            print(f"vit: error: {error}", file=sys.stderr, flush=True)
        else:
            traceback.print_exc()
        time.sleep(2 if processes.index == 0 else 0)  # who holds the others together leaves last
        os._exit(2 if said else 1)


def end_with_parent() -> None:
    """In a worker process: without this it would outlive a parent that is killed."""
    parent = multiprocessing.parent_process()
    assert parent

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
