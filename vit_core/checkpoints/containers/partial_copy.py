"""A local copy of a remote file that downloads only the ranges that are read."""

import os
import threading
from pathlib import Path

from vit_core.storage import HubPath

_BLOCK = 2**20
"""Bytes of a block, the smallest unit of a download."""
AHEAD = 2**24
"""Minimum bytes of a download for an array, so that a checkpoint with many small arrays needs few requests."""


class PartialCopy:
    """A local file of the same size as a file in the Hub. `require` downloads the missing blocks of a range.

    Only for files that cannot change during the reading, such as those of a commit. Safe to use from several threads.
    """

    def __init__(self, path: HubPath, file: Path) -> None:
        self._path, self._file = path, file
        self._size = path.stat().st_size
        self._blocks = set[int]()
        self._lock = threading.Lock()
        with file.open("wb") as new:
            new.truncate(self._size)

    def require(self, start: int, length: int, ahead: int = 0) -> None:
        """Downloads the missing bytes of a range. ahead: minimum bytes to download if something is missing."""
        with self._lock:
            if (start, length) == (0, self._size):
                self._complete()
            missing = self._missing(start, length)
            if missing and ahead:
                missing = self._missing(missing[0] * _BLOCK, max(ahead, start + length - missing[0] * _BLOCK))
            while missing:
                run = next((i for i, block in enumerate(missing) if block != missing[0] + i), len(missing))
                self._fetch(missing[:run])
                missing = missing[run:]

    def _missing(self, start: int, length: int) -> list[int]:
        """Numbers of the blocks of a range that are not downloaded yet, ascending."""
        end = min(start + length, self._size)
        return [block for block in range(start // _BLOCK, -(-end // _BLOCK)) if block not in self._blocks]

    def _complete(self) -> None:
        """Downloads the whole file, if something is missing, by huggingface_hub's faster way for whole files."""
        if missing := self._missing(0, self._size):
            whole = self._file.with_name("whole")
            self._path.download(whole)
            os.replace(whole, self._file)  # not overwritten: the old file may be mapped into memory
            self._blocks.update(missing)

    def _fetch(self, blocks: list[int]) -> None:
        """Downloads consecutive blocks with one request."""
        start, end = blocks[0] * _BLOCK, min((blocks[-1] + 1) * _BLOCK, self._size)
        with self._file.open("r+b") as file:
            file.seek(start)
            self._path.fetch(start, end - start, file.write)
        self._blocks.update(blocks)
