"""Finds the positions of members of tar files. Reading all headers takes minutes for a million images, so the table of
a file with many members is stored in a cache.
"""

import logging
import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np

from vit_core.errors import InputError
from vit_core.storage import staged_files
from vit_train.data.sources.unpacked import digest

logger = logging.getLogger("vit")

MANY = 2000
"""The table of a file with at least this number of members is cached."""
LONG_BYTES = 2**30
"""If files are together larger than this, a message announces that their headers are read."""


class Table(NamedTuple):
    """The regular files in a tar file, in its order, without hidden ones."""

    names_M: np.ndarray
    """Bytes."""
    offsets_M: np.ndarray
    """int64 position of the first byte."""
    sizes_M: np.ndarray
    """int64"""


class Member(NamedTuple):
    """A regular file in a tar file."""

    name: str
    offset: int
    size: int


def tables(files: Sequence[str], cache: Path) -> Iterator[Table]:
    """The table of each file, from the cache if it is there. Raises InputError for a damaged file."""
    kept = {file: cache / f"{Path(file).stem}-{digest(file)}.npz" for file in files}
    missing = [file for file in files if not kept[file].exists()]
    if sum(map(os.path.getsize, missing)) > LONG_BYTES:
        logger.info("reading the headers of %d shards once; their tables are stored in %s", len(missing), cache)
    for file in files:
        yield _loaded(kept[file]) or _scanned_and_kept(file, kept[file])


def _loaded(kept: Path) -> Table | None:
    """A table from the cache; None if it is missing or damaged."""
    try:
        with np.load(kept, allow_pickle=False) as arrays:
            return Table(*(arrays[name] for name in Table._fields))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None


def _scanned_and_kept(file: str, kept: Path) -> Table:
    table = _scanned(file)
    if len(table.names_M) >= MANY:
        with suppress(InputError), staged_files(kept.parent, (kept.name,)) as stage:  # the cache is optional
            np.savez(stage / kept.name, **table._asdict())
    return table


def _scanned(file: str) -> Table:
    """The table of a file, from its headers; nothing is extracted. Raises InputError for a damaged file."""
    found, end = [], os.path.getsize(file)
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                if member.offset_data + member.size > end:
                    raise tarfile.ReadError(f"{member.name} ends after the end of the file")
                if member.isreg() and member.sparse is None and not os.path.basename(member.name).startswith("."):
                    found.append((os.fsencode(member.name), member.offset_data, member.size))
                # TarFile keeps all members that it has read, which would take gigabytes.
                tar.members.clear()  # type: ignore[attr-defined]  # missing in typeshed
            if tar.offset + tarfile.BLOCKSIZE > end:  # truncated between two members, which tarfile does not report
                raise tarfile.ReadError("its end is missing")
    except tarfile.TarError as error:
        raise InputError(f"{file}: cannot be read ({error}); expected a complete, uncompressed tar file") from None
    names, offsets, sizes = zip(*found, strict=True) if found else ((), (), ())
    return Table(np.array(names, np.bytes_), np.array(offsets, np.int64), np.array(sizes, np.int64))
