"""Objects in a store, by fsspec, with the part of pathlib's interface that this project uses.

Objects in a store cannot be renamed, extended or partly written. fsspec's own errors differ between stores, so every
call here raises one of three: FileNotFoundError, InputError (a wrong address, or a missing package) or StorageError
(the store refuses or does not answer).
"""

import errno
import logging
import os
import re
import threading
import warnings
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import cache
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any, Self, cast

from vit_core.errors import InputError, one_line, shortened

SLOW_RESPONSE_SECONDS = 5.0
"""Seconds without a response after which a warning says that the store is slow."""

CLIENTS = {
    "gs": ("gcsfs", "gcs"),
    "s3": ("s3fs", "s3"),
    "hf": ("huggingface_hub", "hub"),
    "memory": ("fsspec", "train"),
}
"""Protocol -> the package that implements it, and the extra of vit-parity that installs the package."""
HUB = "hf"
"""Protocol of the Hugging Face Hub (vit_core.storage.hub)."""

_LOGIN = {
    "gs": "log in (gcloud auth application-default login), or ask for access to the bucket",
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE), or ask for access to the bucket",
}


class StorageError(RuntimeError):
    """A store refuses a request or does not answer; the message is one line.

    This is neither an InputError nor an OSError, because the files in the store must not be treated as damaged.
    """


@dataclass(frozen=True, order=True)
class StorePath:
    """An object in a store, or the folder formed by the names that begin with its own: PROTOCOL://BUCKET/NAME."""

    protocol: str
    key: str
    """BUCKET/NAME, without slashes at its ends."""
    listed: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)
    """Information about the object, if this path comes from a listing; it saves one request."""

    @classmethod
    def parse(cls, address: str) -> Self:
        """Parses an address such as gs://bucket/run. Raises InputError for another protocol, or without a bucket."""
        protocol, _, key = address.partition("://")
        key = re.sub("/+", "/", key.strip("/"))
        if protocol not in CLIENTS:
            known = ", ".join(f"{name}://{'USER/MODEL' if name == HUB else 'BUCKET/...'}" for name in CLIENTS)
            raise InputError(f"{address}: expected a folder or one of {known}; other stores have to be mounted")
        if not key:
            raise InputError(f"{address}: has no bucket; expected {protocol}://BUCKET/...")
        return cls(protocol, key)

    def __str__(self) -> str:
        return f"{self.protocol}://{self.key}"

    __fspath__ = __str__

    def __truediv__(self, name: str | os.PathLike[str]) -> Self:
        return self._at(f"{self.key}/{os.fspath(name).strip('/')}")

    @property
    def name(self) -> str:
        """The last part of the name."""
        return PurePosixPath(self.key).name

    @property
    def stem(self) -> str:
        """The last part without its suffix."""
        return PurePosixPath(self.key).stem

    @property
    def suffix(self) -> str:
        """The extension of the last part, with its dot."""
        return PurePosixPath(self.key).suffix

    @property
    def parent(self) -> Self:
        """The folder that contains it; for a bucket, the bucket itself."""
        return self._at(self.key.rpartition("/")[0] or self.key)

    def with_name(self, name: str) -> Self:
        """The object with another name in the same folder."""
        return self.parent / name

    def exists(self) -> bool:
        """Whether there is such an object or folder."""
        return self._info() is not None

    def is_file(self) -> bool:
        """Whether there is such an object."""
        return (self._info() or {}).get("type") == "file"

    def is_dir(self) -> bool:
        """Whether there are objects whose names begin with this one and a slash."""
        return (self._info() or {}).get("type") == "directory"

    def stat(self) -> SimpleNamespace:
        """A namespace with `st_size`, the size in bytes. Raises FileNotFoundError if there is no such object."""
        if (info := self._info()) is None:
            raise FileNotFoundError(errno.ENOENT, "no such object", str(self))
        return SimpleNamespace(st_size=info["size"])

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing: a folder exists as soon as an object's name contains it."""

    def iterdir(self) -> Iterator[Self]:
        """The objects and folders directly in the folder, sorted by name."""
        entries: list[dict[str, Any]] = self._call("ls", detail=True)
        # Some tools create an object for the folder itself.
        keys = {self._key_of(entry["name"].strip("/")) for entry in entries} - {self.key}
        return iter([self._at(key) for key in sorted(keys)])

    def glob(self, pattern: str) -> Iterator[Self]:
        """The objects and folders that match a pattern. Only its last part may have wildcards."""
        *folders, last = pattern.split("/")
        folder = self / "/".join(folders) if folders else self
        try:
            return (path for path in folder.iterdir() if fnmatch(path.name, last))
        except FileNotFoundError:
            return iter(())

    def files(self) -> dict[str, Self]:
        """Every object below the folder, by its name relative to it.

        Raises InputError for a name that would be outside a local folder to which the objects are copied.
        """
        entries: dict[str, dict[str, Any]] = self._call("find", detail=True)
        files = {}
        for entry in entries.values():
            if not entry["name"].endswith("/"):
                file = self._at(self._key_of(entry["name"].lstrip("/")), entry)
                files[file.key[len(self.key) + 1 :]] = file
        for name in files:
            if name.startswith("/") or "\\" in name or ".." in name.split("/"):
                raise InputError(f"{self}: has an object with the name '{one_line(name)}'; rename it")
        return dict(sorted(files.items()))

    @property
    def md5(self) -> str | None:
        """Base64 of the MD5 digest that the store computed when it received the object.

        None if the store has no digest, for example if the object was uploaded in several parts.
        """
        info = self._info() or {}
        if self.protocol == "s3":
            etag = str(info.get("ETag", "")).strip('"')
            return b64encode(bytes.fromhex(etag)).decode() if re.fullmatch("[0-9a-f]{32}", etag) else None
        return info.get("md5Hash")

    def read_bytes(self) -> bytes:
        """The whole object."""
        return cast(bytes, self._call("cat_file"))

    def read_head(self, length: int) -> bytes:
        """The first bytes of the object, fewer if it is shorter."""
        return cast(bytes, self._call("cat_file", start=0, end=length))

    def read_text(self) -> str:
        """The whole object, as UTF-8."""
        return self.read_bytes().decode()

    def write_bytes(self, content: bytes) -> None:
        """Creates or replaces the object. Readers see either the old or the new contents."""
        self._call("pipe_file", content)

    def write_text(self, text: str) -> None:
        """Creates or replaces the object, as UTF-8."""
        self.write_bytes(text.encode())

    def download(self, file: Path) -> None:
        """Copies the object to a local file."""
        with self._translated_errors():
            _client(self.protocol).get_file(self._client_key, str(file))

    def upload(self, file: Path) -> None:
        """Creates the object from a local file, or replaces its contents."""
        with self._translated_errors():
            _client(self.protocol).put_file(str(file), self.key)

    def rename(self, target: Self) -> None:
        """Copies everything below the folder, then removes the originals. If it is interrupted, both remain."""
        for name in self.files():
            with self._translated_errors():
                _client(self.protocol).cp_file((self / name).key, (target / name).key)
        self.remove_tree()

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes the object. Raises FileNotFoundError if there is none, unless `missing_ok`."""
        try:
            self._call("rm_file")
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove_tree(self) -> None:
        """Removes everything below the folder."""
        self._call("rm", recursive=True)

    def _info(self) -> Mapping[str, Any] | None:
        if self.listed is not None:
            return self.listed
        try:
            return cast(dict[str, Any], self._call("info"))
        except FileNotFoundError:
            return None

    def _at(self, key: str, listed: Mapping[str, Any] | None = None) -> Self:
        """Another object or folder of the same store."""
        return replace(self, key=key, listed=listed)

    @property
    def _client_key(self) -> str:
        """The name by which the store's client knows the object."""
        return self.key

    def _key_of(self, client_key: str) -> str:
        """The inverse of `_client_key`."""
        return client_key

    def _call(self, verb: str, *args: Any, **kwargs: Any) -> Any:
        """Calls a method of the store's client. Warns if the response takes more than SLOW_RESPONSE_SECONDS."""
        with self._translated_errors(), self._slowness_warning():
            call: Callable[..., Any] = getattr(_client(self.protocol), verb)
            return call(self._client_key, *args, **kwargs)

    @contextmanager
    def _slowness_warning(self) -> Iterator[None]:
        """Warns if the context takes more than SLOW_RESPONSE_SECONDS."""
        warning = threading.Timer(
            SLOW_RESPONSE_SECONDS, warnings.warn, (f"{self}: no response from the store yet; still trying",)
        )
        warning.daemon = True
        warning.start()
        try:
            yield
        finally:
            warning.cancel()

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Raises the client's errors as FileNotFoundError, InputError or StorageError."""
        try:
            yield
        except InputError:
            raise
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, "no such object, or no such bucket", str(self)) from None
        except Exception as error:
            text = shortened(str(error)) or type(error).__name__
            denied = getattr(error, "code", None) == 401 or isinstance(error, PermissionError) or "Forbidden" in text
            if (denied or "credentials" in text.lower()) and self.protocol in _LOGIN:
                text += f"; {_LOGIN[self.protocol]}"
            raise StorageError(f"{self}: {text}") from error


@cache
def _client(protocol: str) -> Any:
    """fsspec's file system. Raises InputError if its package is not installed."""
    import fsspec

    package, extra = CLIENTS[protocol]
    logging.getLogger(package).propagate = False  # it raises all errors that it logs
    logging.getLogger(package).addHandler(logging.NullHandler())
    try:
        # No cache: other processes may write meanwhile.
        options = {} if protocol == "memory" else {"use_listings_cache": False}
        return fsspec.filesystem(protocol, **options)
    except ImportError:
        raise InputError(f"{protocol}:// needs {package}: pip install 'vit-parity[{extra}]'") from None
