"""Where files lie: a path of this machine, or an address in an object store (gs://bucket/run).

A store has whole objects only: none is renamed, appended to or half written. What is many files here counts from the
moment that the last of them is there; what has to be a file for a library is copied to and from a temporary one.
"""

import errno
import logging
import os
import re
import shutil
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from vit_core.errors import InputError

SLOW = 5.0
"""Seconds after which an answer that does not come is spoken of."""


def place(path: str | os.PathLike[str]) -> Path:
    """pathlib's path, or what stands for it in a store (`Stored`)."""
    address = re.fullmatch("([a-z][a-z0-9+.-]*://)(.*)", os.fspath(path), re.DOTALL)
    return cast(Path, Stored(address[1] + re.sub("/+", "/", address[2].strip("/")))) if address else Path(path)


def absolute(path: Path) -> Path:
    """The one path of a place, however it is spelt."""
    return path if isinstance(path, Stored) else path.resolve()


def local(path: Path, what: str) -> Path:
    """The path; InputError for one in a store."""
    if isinstance(path, Stored):
        raise InputError(f"{what} {path}: expected a folder of this machine")
    return path


@contextmanager
def here(path: Path) -> Iterator[Path]:
    """A file on this machine with what there is at a place: itself, or a copy for as long as the context lasts."""
    if not isinstance(path, Stored):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="vit-") as folder:
        path.get(copy := Path(folder) / path.name)
        yield copy


@contextmanager
def sending(folder: Path, *names: str) -> Iterator[Path]:
    """A local folder to write files `names` in; at the end they go to `folder`, in this order, each whole.

    Of a store only. InputError where there is no such bucket.
    """
    with tempfile.TemporaryDirectory(prefix="vit-") as stage:
        yield Path(stage)
        try:
            for name in names:
                cast(Stored, folder / name).put(Path(stage) / name)
        except FileNotFoundError:
            raise InputError(f"{folder}: no such bucket; make it first, or choose another") from None


def rmtree(folder: Path, ignore_errors: bool = False) -> None:
    """shutil's, of any place."""
    if not isinstance(folder, Stored):
        shutil.rmtree(folder, ignore_errors=ignore_errors)
        return
    try:
        folder.rmtree()
    except (FileNotFoundError, StoreError):
        if not ignore_errors:
            raise


class StoreError(RuntimeError):
    """A store that does not answer or does not let one in, in one line: no fault of what lies there, so no InputError
    and no OSError, which what cannot be read is given up for."""


@dataclass(frozen=True, order=True)
class Stored:
    """An object in a store, or the folder that names beginning with its own make: what is used here of pathlib.Path.

    FileNotFoundError for what is not there, StoreError for all else that the store's client raises, InputError for
    another store than gs:// and where the client is not installed.
    """

    address: str
    """gs://BUCKET/NAME."""
    listed: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)
    """What the listing it comes from says of it."""

    def __str__(self) -> str:
        return self.address

    __fspath__ = __str__

    def __truediv__(self, name: str | os.PathLike[str]) -> "Stored":
        return Stored(f"{self.address}/{os.fspath(name)}")

    @property
    def key(self) -> str:
        """BUCKET/NAME."""
        return self.address.partition("://")[2]

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    @property
    def parent(self) -> "Stored":
        return Stored(self.address.rpartition("/")[0])

    def with_name(self, name: str) -> "Stored":
        return self.parent / name

    def absolute(self) -> "Stored":
        return self

    resolve = absolute

    def exists(self) -> bool:
        return self._info() is not None

    def is_file(self) -> bool:
        return (self._info() or {}).get("type") == "file"

    def is_dir(self) -> bool:
        return (self._info() or {}).get("type") == "directory"

    def stat(self) -> SimpleNamespace:
        if (info := self._info()) is None:
            raise FileNotFoundError(errno.ENOENT, "no such object", str(self))
        return SimpleNamespace(st_size=info["size"])

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Folders are names."""

    def iterdir(self) -> Iterator["Stored"]:
        found: list[dict[str, Any]] = self._told("ls", detail=True)
        # A folder may have an object of its own.
        names = {entry["name"].rstrip("/") for entry in found} - {self.key}
        return iter([Stored(f"gs://{name}") for name in sorted(names)])

    def glob(self, pattern: str) -> Iterator["Stored"]:
        """Only the last part may hold wildcards."""
        *way, last = pattern.split("/")
        folder = self / "/".join(way) if way else self
        try:
            return (found for found in folder.iterdir() if fnmatch(found.name, last))
        except FileNotFoundError:
            return iter(())

    def files(self) -> dict[str, "Stored"]:
        """All objects beneath, by their names from here."""
        found: dict[str, dict[str, Any]] = self._told("find", detail=True)
        return {
            name[len(self.key) + 1 :]: Stored(f"gs://{name}", info)
            for name, info in found.items()
            if not name.endswith("/")
        }

    @property
    def md5(self) -> str | None:
        """As the store has it; none of objects that were put together from several."""
        return (self._info() or {}).get("md5Hash")

    def read_bytes(self) -> bytes:
        return cast(bytes, self._told("cat_file"))

    def read_text(self) -> str:
        return self.read_bytes().decode()

    def write_text(self, text: str) -> None:
        self._told("pipe_file", text.encode())

    def check_writable(self) -> None:
        """Raises what goes wrong where nothing can be written in it."""
        (self / ".writable").write_text("")
        (self / ".writable").unlink()

    def get(self, file: Path) -> None:
        """Copies it to a file here."""
        with _telling(self):
            _client().get_file(self.key, str(file))

    def put(self, file: Path) -> None:
        """Replaces it by a file from here."""
        with _telling(self):
            _client().put_file(str(file), self.key)

    def rename(self, target: "Stored") -> None:
        """Copies all beneath, then removes it: interrupted, it leaves both."""
        for name in self.files():
            with _telling(self):
                _client().cp_file((self / name).key, (target / name).key)
        self.rmtree()

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self._told("rm_file")
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rmtree(self) -> None:
        """Removes all beneath it."""
        self._told("rm", recursive=True)

    def _info(self) -> Mapping[str, Any] | None:
        if self.listed is not None:
            return self.listed
        try:
            return cast(dict[str, Any], self._told("info"))
        except FileNotFoundError:
            return None

    def _told(self, verb: str, *args: Any, **kwargs: Any) -> Any:
        """What the client answers; with a word where it takes long."""
        waiting = threading.Timer(SLOW, warnings.warn, (f"{self}: no answer yet; still trying",))
        waiting.daemon = True
        waiting.start()
        try:
            with _telling(self):
                call: Callable[..., Any] = getattr(_client(), verb)
                return call(self.key, *args, **kwargs)
        finally:
            waiting.cancel()


@cache
def _client() -> Any:
    try:
        import gcsfs
    except ImportError:
        raise InputError("gs:// places take pip install 'vit-parity[gcs]'") from None
    logging.getLogger("gcsfs").addHandler(logging.NullHandler())  # what it logs, it raises too
    # A listing is as old as its cache; other processes write meanwhile.
    return gcsfs.GCSFileSystem(use_listings_cache=False)


@contextmanager
def _telling(where: Stored) -> Iterator[None]:
    """What the client raises, as `Stored` says."""
    if not re.match("gs://[^/]", where.address):
        raise InputError(f"{where}: expected gs://BUCKET/... or a folder; other stores have to be mounted")
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, "no such object, or no such bucket", str(where)) from None
    except Exception as error:
        text = " ".join(str(error).split())[:300] or type(error).__name__
        code = getattr(error, "code", None)
        if code == 401 or "Forbidden" in text:
            text += "; log in (gcloud auth application-default login), or ask for access to the bucket"
        raise StoreError(f"{where}: {text}") from error
