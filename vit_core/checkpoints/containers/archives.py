"""Reads parts of zip archives without unpacking them. The sizes that an archive states are not trusted."""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from vit_core.checkpoints.containers.reading import FileRange

_LOCAL_HEADER = 30
_MOST_COMPRESSED = 100
_ENCRYPTED = 1


class Archive:
    """The parts of a zip archive. Methods raise ValueError or zipfile.BadZipFile if it is damaged."""

    def __init__(self, source: FileRange) -> None:
        self._source = source
        with self._opened() as archive:
            self._members = {info.filename: info for info in archive.infolist()}

    @property
    def names(self) -> list[str]:
        """The names of all parts of the archive."""
        return list(self._members)

    def size(self, name: str) -> int:
        """Bytes of a part, as the archive states them; for an uncompressed part at most as many as are stored."""
        info = self._members[name]
        return min(info.file_size, info.compress_size) if self._is_stored(name) else info.file_size

    def read(self, name: str, longest: int) -> bytes:
        """A whole part. Raises ValueError if it has more than `longest` bytes, or is compressed more than a
        hundredfold."""
        info = self._members[name]
        if info.file_size > min(longest, _MOST_COMPRESSED * info.compress_size + 2**16):
            raise ValueError(f"{name[:60]} has {info.file_size:,} bytes, more than expected")
        with self._opened() as archive:
            return archive.read(info)

    def head(self, name: str, length: int) -> bytes:
        """The first bytes of a part."""
        if self._is_stored(name):
            return self._source.read(self._start(name), min(length, self.size(name)))
        with self._opened() as archive, archive.open(self._members[name]) as member:
            return member.read(length)

    def stored(self, name: str) -> FileRange | None:
        """The range of the file with a part's bytes; None if they are compressed."""
        return self._source.part(self._start(name), self.size(name)) if self._is_stored(name) else None

    def values(self, name: str, start: int, length: int) -> np.ndarray:
        """Bytes of a part as uint8 [length], read from the disk as they are used unless the part is compressed."""
        if self._is_stored(name):
            return self._source.map(self._start(name) + start, length)
        with self._opened() as archive, archive.open(self._members[name]) as member:
            member.seek(start)
            content = bytearray(member.read(length))
        if len(content) != length:
            raise ValueError(f"{name[:60]} is truncated")
        return np.frombuffer(content, np.uint8)

    def _start(self, name: str) -> int:
        """The offset in the file of an uncompressed part's bytes, which follow its header, name and extra field."""
        offset = self._members[name].header_offset
        header = self._source.read(offset, _LOCAL_HEADER)
        if header[:4] != b"PK\3\4":
            raise ValueError(f"{name[:60]} is not where the archive says")
        return (
            offset + _LOCAL_HEADER + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        )

    def _is_stored(self, name: str) -> bool:
        info = self._members[name]
        return info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & _ENCRYPTED

    @contextmanager
    def _opened(self) -> Iterator[zipfile.ZipFile]:
        with self._source.open() as file, zipfile.ZipFile(file) as archive:
            yield archive
