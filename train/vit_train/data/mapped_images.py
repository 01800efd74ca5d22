"""Decoded training images in files that all processes on a machine map into memory and later runs reuse."""

import hashlib
import json
import logging
import mmap
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ENOSPC
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from vit_core.errors import InputError
from vit_core.pixels import Pixels
from vit_core.preprocess import Preprocessing
from vit_core.storage import check_writable, location, require_local
from vit_core.storage.locks import HAS_LOCKS, locked
from vit_train.data.decoded_images import Decoded
from vit_train.data.sources import Split
from vit_train.data.sources.split import Source, size_and_time

logger = logging.getLogger("vit")

_FORMAT = 1
"""Version of the files; files of another version are replaced."""
_FIELDS = 6
"""int64 numbers of a record: offset of its bytes (0: no record), height, width, channels, number of classes, and a
checksum of the bytes: the classes (int64), then the pixels."""


def cache_folder(named: str) -> Path:
    """The folder that `image_cache_folder` names; nothing is written. Raises InputError for a folder that cannot be
    used: in a store, at the path of a file or below one, or on a system without file locks."""
    folder = require_local(location(named), "--image-cache-folder")
    if not HAS_LOCKS:
        raise InputError("image_cache_folder: needs file locks, which this system lacks; leave it out")
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not there.is_dir():
        raise InputError(
            f"--image-cache-folder {folder}: {there} is a file; expected a folder, which need not exist yet"
        )
    return folder


class MappedImages:
    """Cache of a split's decoded examples, by index; processes and threads may share it.

    folder: contains a folder for each split and way of decoding, which is replaced if the files of the split have
    changed. limit: bytes of one such folder. As with `DecodedImages`, a set that does not fit is not cached at all.
    Raises InputError for a folder that cannot be written to, or examples without files.
    """

    def __init__(self, folder: Path, split: Split, preprocessing: Preprocessing, limit: int) -> None:
        self.count, self.limit = len(split), limit
        check_writable(folder, "--image-cache-folder")
        place, state = _identity(split, preprocessing)
        self.folder = folder / place
        self.kept: dict[int, Decoded] = {}
        self.full = False
        self.threads = threading.Lock()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.state = json.dumps(state)
        with self._alone():
            self._begin()
            self._open()

    def get(self, i: int) -> Decoded | None:
        """Example i, if it is kept and its bytes are not damaged."""
        if (found := self.kept.get(i)) is not None:
            return found
        begin, height, width, channels, classes, checksum = self.index_NF[i].tolist()
        size = 8 * classes + height * width * channels
        if not (0 < begin <= self.limit and size > 0 and begin - 1 + size <= os.fstat(self.pixels_file).st_size):
            return None
        begin -= 1
        content = self._mapped(begin + size)[begin : begin + size]
        if crc32(content) != checksum:
            return None
        numbers = np.frombuffer(content, np.int64, classes)
        pixels_HWC = np.frombuffer(content, np.uint8, offset=8 * classes).reshape(height, width, channels)
        self.kept[i] = Decoded(Pixels(pixels_HWC), numbers)
        return self.kept[i]

    def keep(self, i: int, decoded: Decoded) -> None:
        """Keeps example i, if there is space for it."""
        if not isinstance(decoded.image, Pixels) or self.full:
            return
        pixels_HWC, classes = decoded.image.pixels_HWC, np.asarray(decoded.classes, np.int64)
        content = classes.tobytes() + pixels_HWC.tobytes()
        try:
            with self._alone():
                begin = os.fstat(self.pixels_file).st_size
                if begin + len(content) > self.limit or (not begin and len(content) * self.count > self.limit):
                    self.full = not begin
                    return
                if self.get(i) is not None:
                    return  # another process was faster
                # Written by a file call: on a full disk, writing through the map would end the process.
                if os.pwrite(self.pixels_file, content, begin) < len(content):
                    raise OSError(ENOSPC, os.strerror(ENOSPC))
                record = np.array([begin + 1, *pixels_HWC.shape, len(classes), crc32(content)], np.int64)
                os.pwrite(self.index_file, record.tobytes(), i * record.nbytes)
        except OSError as error:
            self.full = True
            logger.warning(f"image_cache_folder: {self.folder}: {error.strerror}; no more images are kept")

    def __getstate__(self) -> dict[str, Any]:
        """The state from which a worker process opens the same files."""
        return {name: getattr(self, name) for name in ("folder", "state", "count", "limit", "full")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Opens the files. If another run has replaced them since, for the same images with other classes, nothing is
        cached."""
        self.__dict__ |= state | {"kept": {}, "threads": threading.Lock()}
        with self._alone():
            if (self.folder / "state.json").read_text() == self.state:
                self._open()
            else:
                self.full, self.index_NF = True, np.zeros((self.count, _FIELDS), np.int64)

    def _begin(self) -> None:
        """Makes empty files, unless files of this state exist."""
        file, index, size = self.folder / "state.json", self.folder / "index", 8 * _FIELDS * self.count
        if file.is_file() and file.read_text() == self.state and index.is_file() and index.stat().st_size == size:
            return
        file.unlink(missing_ok=True)
        for name, content in (("index", bytes(size)), ("pixels", b"")):
            new = self.folder / f"{name}.new"
            new.write_bytes(content)
            new.replace(self.folder / name)  # a process that has mapped the old file continues with it
        file.write_text(self.state)

    def _open(self) -> None:
        self.index_file = os.open(self.folder / "index", os.O_RDWR)
        self.pixels_file = os.open(self.folder / "pixels", os.O_RDWR)
        whole = mmap.mmap(self.index_file, 8 * _FIELDS * self.count, prot=mmap.PROT_READ)
        self.index_NF = np.frombuffer(whole, np.int64).reshape(self.count, _FIELDS)
        self.mapped = memoryview(b"")

    def _mapped(self, size: int) -> memoryview:
        """The pixels' file, of which at least `size` bytes are mapped."""
        if len(self.mapped) < size:
            self.mapped = memoryview(mmap.mmap(self.pixels_file, 0, prot=mmap.PROT_READ))
        return self.mapped

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Context in which no other thread or process adds an image to this cache."""
        with self.threads, locked(self.folder, wait=True):
            yield


def _identity(split: Split, preprocessing: Preprocessing) -> tuple[str, object]:
    """The name of a split's folder, and the state of its contents: how images are decoded, and the sizes and times of
    the files that contain them."""
    if not isinstance(split.examples, Source):
        raise InputError(f"image_cache_folder: {split.title} is in memory; leave it out")
    digest = hashlib.sha256()
    files: dict[str, None] = {}
    for place in split.examples.places():
        digest.update(repr(place).encode())
        path: Any = place[0] if isinstance(place, tuple) else place
        files[os.fsdecode(path)] = None
    decoding = preprocessing.channels, preprocessing.bit_depth, preprocessing.exif_rotation
    statuses = hashlib.sha256(repr([size_and_time(file) for file in files]).encode()).hexdigest()
    name = f"{digest.hexdigest()[:16]}-{'-'.join(map(str, map(int, decoding)))}"
    return name, [_FORMAT, len(split), split.fingerprint(), statuses]
