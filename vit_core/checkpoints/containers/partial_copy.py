"""A local file that has those bytes of a remote one that were needed so far."""

import os
import threading
from pathlib import Path

from vit_core.storage import HubPath

_BLOCK = 2**20
"""Bytes that are fetched together, or not at all."""
AHEAD = 2**24
"""Bytes that one request for an array asks for, so that a checkpoint of many small arrays needs few requests."""


class PartialCopy:
    """A copy of a file in the Hub, of its size, with holes: `require` fetches what is missing of a range.

    Only for files that cannot change meanwhile, as those of a commit. Several threads may use it.
    """

    def __init__(self, path: HubPath, file: Path) -> None:
        self._path, self._file = path, file
        self._size = path.stat().st_size
        self._blocks = set[int]()
        self._lock = threading.Lock()
        with file.open("wb") as new:
            new.truncate(self._size)

    def require(self, start: int, length: int, ahead: int = 0) -> None:
        """Makes a range complete. A request that is necessary asks for `ahead` bytes at least."""
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
        """The blocks of a range that are not there, ascending."""
        end = min(start + length, self._size)
        return [block for block in range(start // _BLOCK, -(-end // _BLOCK)) if block not in self._blocks]

    def _complete(self) -> None:
        """Fetches the whole file, if something is missing, in the way that is fastest for huggingface_hub."""
        if missing := self._missing(0, self._size):
            whole = self._file.with_name("whole")
            self._path.download(whole)
            os.replace(whole, self._file)  # the old one may be mapped into memory
            self._blocks.update(missing)

    def _fetch(self, blocks: list[int]) -> None:
        """Fetches blocks that follow each other."""
        start, end = blocks[0] * _BLOCK, min((blocks[-1] + 1) * _BLOCK, self._size)
        with self._file.open("r+b") as file:
            file.seek(start)
            self._path.fetch(start, end - start, file.write)
        self._blocks.update(blocks)
