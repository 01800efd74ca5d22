"""Unpacks images that cannot be read at random positions into ArrayRecord files in a cache, once.

The images of one source file become one ArrayRecord file, in the same order. It is written atomically, so that an
interrupted run continues with the next file.
"""

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordWriter

from vit_core.errors import InputError
from vit_core.storage import staged_files, unwritable
from vit_core.storage.locks import locked
from vit_train.data.sources.prepared import record_reader
from vit_train.display import SILENT, Display

logger = logging.getLogger("vit")

ENDS = 65536
"""Bytes at both ends of a file that are hashed to recognize it; a parquet file's list of contents is at its end."""


def unpack(
    file: str, detail: str, count: int, read: Callable[[], Iterator[bytes]], folder: Path, display: Display = SILENT
) -> str:
    """The ArrayRecord file with the `count` images that `read` returns. It is written if it is missing, with a log
    message.

    detail: what the contents depend on besides the file, such as a column. Raises InputError if the disk has too little
    free space.
    """
    target = folder / f"{Path(file).stem}-{digest(file, detail)}.array_record"
    if target.exists():
        return str(target)
    with _waiting_lock(folder):
        if not target.exists():
            _check_free_space(file, folder)
            logger.info("%s: unpacking %s images once into %s, for fast reading", file, f"{count:,}", folder)
            with (
                display.task(f"unpack {Path(file).name}", count) as task,
                staged_files(folder, (target.name,)) as stage,
            ):
                writer = ArrayRecordWriter(str(stage / target.name), "group_size:1")
                for i, image in enumerate(read()):
                    writer.write(image)
                    if i % 100 == 0:
                        task.update(i, "")
                writer.close()
    return str(target)


def record(file: str, position: int) -> bytes:
    """A record of an ArrayRecord file. Raises InputError if it cannot be read."""
    try:
        (found,) = record_reader(file).read(position, position + 1)
    except Exception as error:  # the reader in C++ has its own exceptions
        reason = " ".join(str(error).split())
        raise InputError(f"cannot read record {position} of {file}: {reason}; remove it to unpack it again") from None
    return bytes(found)


@cache
def digest(file: str, detail: str = "") -> str:
    """A hash that identifies a file: of its size, its time, its first and last bytes, and the detail."""
    status = os.stat(file)
    with open(file, "rb") as content:
        head = content.read(ENDS)
        content.seek(max(0, status.st_size - ENDS))
        tail = content.read(ENDS)
    text = f"{status.st_size} {status.st_mtime_ns} {detail} ".encode()
    return hashlib.sha256(text + head + tail).hexdigest()[:16]


@contextmanager
def _waiting_lock(folder: Path) -> Iterator[None]:
    """Locks the cache for this process; waits while another process unpacks into it. Raises InputError if it cannot be
    written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error, "--data.directory") from None
    while True:
        lock = locked(folder)
        try:
            lock.__enter__()
            break
        except BlockingIOError:
            time.sleep(0.2)
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def _check_free_space(file: str, folder: Path) -> None:
    needed, free = os.path.getsize(file), shutil.disk_usage(folder).free
    if free < 1.05 * needed:
        raise InputError(
            f"{folder}: {free / 2**30:.1f} GiB free, but the images of {file} need {needed / 2**30:.1f}; free some "
            "space, or set --data.directory to another disk"
        )
