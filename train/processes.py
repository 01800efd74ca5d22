"""Processes beside each other: one at a time in a folder, and workers that end with their parent."""

import fcntl
import multiprocessing
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vit_core.errors import InputError


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """With a folder, made where it is not there, for this process alone until it ends, however it does.

    InputError where another process is in it, or for no access.
    """
    created = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
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
        if created and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def end_with_parent() -> None:
    """In a worker process: without this it would outlive a parent that is killed."""
    parent = multiprocessing.parent_process()
    assert parent

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
