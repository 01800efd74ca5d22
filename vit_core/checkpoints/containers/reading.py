"""`FileRange`, from which every container reads, and `readable`, which reports damaged files."""

import mmap
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from vit_core.checkpoints.containers.partial_copy import PartialCopy
from vit_core.errors import InputError, shortened
from vit_core.storage import Location, StorageError

_FEW = 2**20
"""Bytes."""


@contextmanager
def readable(path: object, expected: str) -> Iterator[None]:
    """Turns every exception while a file is decoded into an InputError of one line.

    path: named in the message. expected: what the file should be ("a complete .npz file").
    """
    try:
        yield
    except (InputError, StorageError):
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    except MemoryError:
        raise InputError(f"{path}: does not fit in memory") from None
    except Exception as error:
        cause = shortened(str(error), 200) or type(error).__name__
        raise InputError(f"{path}: not {expected} ({cause}); copy or save it again") from None


@dataclass(frozen=True)
class FileRange:
    """A range of bytes of a local file: the whole file, or one of its parts."""

    path: Location
    """The name of the file in messages; for a download, its address in the store."""
    file: Path
    """The file on this machine."""
    start: int
    length: int
    owner: object = None
    """An object that must live as long as the file is read, such as the TemporaryFolder of a download."""
    partial: PartialCopy | None = None
    """Downloads missing bytes, if `file` may not have all of them yet."""

    @classmethod
    def whole(
        cls, path: Location, file: Path | None = None, owner: object = None, partial: PartialCopy | None = None
    ) -> "FileRange":
        """The range of a whole file. file: the local copy, if `path` is in a store."""
        file = Path(path) if file is None else file
        return cls(path, file, 0, file.stat().st_size, owner, partial)

    def part(self, offset: int, length: int) -> "FileRange":
        """A range within this one. Raises ValueError if it is partly outside."""
        self._check(offset, length)
        return FileRange(self.path, self.file, self.start + offset, length, self.owner, self.partial)

    def require(self, offset: int, length: int, ahead: int = 0) -> None:
        """Downloads bytes that are not in `file` yet. ahead: minimum bytes to download if something is missing. Raises
        ValueError if the bytes are partly outside the range."""
        self._check(offset, length)
        if self.partial:
            self.partial.require(self.start + offset, length, ahead)

    def read(self, offset: int, length: int) -> bytes:
        """The bytes from `offset`. Raises ValueError if they are partly outside the range, or the file has become
        shorter."""
        self.require(offset, length)
        with self.file.open("rb") as file:
            file.seek(self.start + offset)
            content = file.read(length)
        if len(content) != length:
            raise ValueError("the file is truncated")
        return content

    def head(self, length: int) -> bytes:
        """The first `length` bytes, or all if the range is shorter."""
        return self.read(0, min(length, self.length))

    def map(self, offset: int = 0, length: int | None = None) -> np.ndarray:
        """Bytes as uint8 [length], which may be written to without changing the file.

        Large ranges are memory-mapped. Ranges below 1 MiB are read at once, because each mapping keeps a file open.
        Raises ValueError if the bytes are partly outside the range.
        """
        length = self.length - offset if length is None else length
        if length < _FEW:
            return np.frombuffer(bytearray(self.read(offset, length)), np.uint8)
        self.require(offset, length)
        first = self.start + offset
        skipped = first % mmap.ALLOCATIONGRANULARITY
        with self.file.open("rb") as file:
            if os.fstat(file.fileno()).st_size < first + length:
                raise ValueError("the file is truncated")
            pages = mmap.mmap(file.fileno(), length + skipped, access=mmap.ACCESS_COPY, offset=first - skipped)
        return np.frombuffer(pages, np.uint8, length, skipped)

    @contextmanager
    def view(self) -> Iterator[mmap.mmap | bytes]:
        """All bytes of the range, to scan without a copy: an object with slices, indices and `find` like `bytes`."""
        if self.length == 0 or self.start % mmap.ALLOCATIONGRANULARITY:
            yield self.read(0, self.length)
            return
        self.require(0, self.length)
        with (
            self.file.open("rb") as file,
            mmap.mmap(file.fileno(), self.length, access=mmap.ACCESS_READ, offset=self.start) as pages,
        ):
            yield pages

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The range as a file object, for zipfile."""
        self.require(0, self.length)
        with self.file.open("rb") as file:
            yield cast(BinaryIO, _Part(file, self))

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.length:
            raise ValueError(f"bytes {offset} to {offset + length} of {self.length}: the file is truncated")


class _Part:
    """A range of an open file as a file object. `read` allocates no more than the range has: a plain file object would
    allocate any size that an untrusted archive states."""

    def __init__(self, file: BinaryIO, source: FileRange) -> None:
        self._file, self._source, self._position = file, source, 0

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._source.length}[whence]
        if base + offset < 0:
            raise OSError("a position before the beginning")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        rest = max(0, self._source.length - self._position)
        self._file.seek(self._source.start + min(self._position, self._source.length))
        content = self._file.read(rest if size < 0 else min(size, rest))
        self._position += len(content)
        return content


class TemporaryFolder:
    """A temporary folder that is removed when this object is garbage-collected."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="vit-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)
