"""Models in the Hugging Face Hub as folders that can only be read: hf://USER/MODEL[@REVISION][/PATH]."""

import errno
import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn, Self

from vit_core.errors import InputError, one_line, shortened
from vit_core.storage.object_store import CLIENTS, HUB, StorageError, StorePath

_RESUMPTIONS = 4
"""Number of broken connections after which a download fails."""
_LOG_IN = "log in (hf auth login, or set HF_TOKEN)"


class _BrokenError(Exception):
    """A connection ended before all bytes arrived."""


@dataclass(frozen=True)
class Snapshot:
    """One commit of a repository: the newest commit of a revision at the first access, and the same one later.

    Everything that is read through one address is therefore from one commit, even if the repository changes meanwhile.
    """

    address: str
    repository: str
    """USER/MODEL."""
    revision: str | None
    """A branch, tag or commit; None: the default branch."""

    @cached_property
    def commit(self) -> str:
        """The hash of the commit. Raises InputError if there is no such repository or revision, or no access to it, and
        StorageError if the Hub does not answer."""
        from huggingface_hub import HfApi
        from huggingface_hub.constants import HF_HUB_ETAG_TIMEOUT

        with hub_errors(self.address):
            info = HfApi().model_info(self.repository, revision=self.revision, timeout=HF_HUB_ETAG_TIMEOUT)
        if not re.fullmatch("[0-9a-f]{40}", info.sha or ""):
            raise StorageError(
                f"{self.address}: the answer contains no commit; check that HF_ENDPOINT is the address of a Hub"
            )
        return str(info.sha)


@dataclass(frozen=True, order=True)
class HubPath(StorePath):
    """A file or folder of a model's repository. It can only be read; `vit push` uploads checkpoints."""

    snapshot: Snapshot = field(kw_only=True, compare=False, repr=False)

    @classmethod
    def parse(cls, address: str) -> Self:
        """Parses an address such as hf://user/model@main. Raises InputError for an invalid address, and if
        huggingface_hub is not installed."""
        require_hub(address)
        from huggingface_hub.errors import HfUriError
        from huggingface_hub.utils import parse_hf_uri

        key = re.sub("/+", "/", address.removeprefix(f"{HUB}://").strip("/"))
        try:
            uri = parse_hf_uri(f"{HUB}://{key}")
        except HfUriError as error:
            raise InputError(f"{address}: expected hf://USER/MODEL[@REVISION][/PATH] ({error.msg.strip()})") from None
        if uri.type != "model":
            raise InputError(f"{address}: is a {uri.type}; expected a model: hf://USER/MODEL[@REVISION][/PATH]")
        root = key.removesuffix(f"/{uri.path_in_repo}") if uri.path_in_repo else key
        return cls(HUB, key, snapshot=Snapshot(f"{HUB}://{root}", uri.id, uri.revision))

    @property
    def name(self) -> str:
        """The last part of the name; for the repository itself, MODEL."""
        return super().name if self._inside else self.snapshot.repository.partition("/")[2]

    @property
    def parent(self) -> Self:
        """The folder that contains it; for the repository itself, the repository."""
        return super().parent if self._inside else self

    def read_bytes(self) -> bytes:
        """The whole file."""
        return self.read_head(self.stat().st_size)

    def read_head(self, length: int) -> bytes:
        """The first bytes of the file, fewer if it is shorter."""
        content = bytearray()
        self.fetch(0, min(length, self.stat().st_size), content.extend)
        return bytes(content)

    def fetch(self, start: int, length: int, write: Callable[[bytes], object]) -> None:
        """Passes `length` bytes of the file, from byte `start`, to `write`, in order and in pieces.

        A broken connection is reopened. Raises StorageError if connections break too often, or the Hub sends other
        bytes than requested.
        """
        position, end, broken = start, start + length, 0
        with self._translated_errors():
            while position < end:
                try:
                    for piece in self._pieces(position, end):
                        write(piece)
                        position += len(piece)
                except _BrokenError:
                    broken += 1
                    if broken > _RESUMPTIONS:
                        raise

    def download(self, file: Path) -> None:
        """Copies the file to a local one. Raises StorageError if it does not arrive completely."""
        with bars_in_terminals_only():
            super().download(file)
        if (size := file.stat().st_size) != (expected := self.stat().st_size):
            raise StorageError(f"{self}: {size} bytes arrived, expected {expected}")

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Raises InputError, because hf:// can only be read."""
        self._refuse()

    def write_bytes(self, content: bytes) -> None:
        """Raises InputError, because hf:// can only be read."""
        self._refuse()

    def upload(self, file: Path) -> None:
        """Raises InputError, because hf:// can only be read."""
        self._refuse()

    def rename(self, target: Self) -> None:
        """Raises InputError, because hf:// can only be read."""
        self._refuse()

    def unlink(self, missing_ok: bool = False) -> None:
        """Raises InputError, because hf:// can only be read."""
        self._refuse()

    def remove_tree(self) -> None:
        """Raises InputError, because hf:// can only be read."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        command = f"vit push CHECKPOINT {self.snapshot.repository}"
        raise InputError(f"{self}: hf:// can only be read; to upload a checkpoint, run {command}")

    @property
    def _inside(self) -> str:
        """The name of the file or folder in the repository; "" for the repository itself."""
        return str(self)[len(self.snapshot.address) + 1 :]

    @property
    def _client_key(self) -> str:
        return "/".join(filter(None, (self._pinned, self._inside)))

    @property
    def _pinned(self) -> str:
        """The repository as huggingface_hub names it at the snapshot's commit."""
        return f"{self.snapshot.repository}@{self.snapshot.commit}"

    def _key_of(self, client_key: str) -> str:
        return self.snapshot.address.removeprefix(f"{HUB}://") + client_key.removeprefix(self._pinned)

    def _pieces(self, position: int, end: int) -> Iterator[bytes]:
        """The bytes from `position` to `end`, as they arrive. Raises _BrokenError if the connection ends before."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

        url = hf_hub_url(self.snapshot.repository, self._inside, revision=self.snapshot.commit)
        headers = {**build_hf_headers(), "Range": f"bytes={position}-{end - 1}", "Accept-Encoding": "identity"}
        request = http_stream_backoff("GET", url, headers=headers, timeout=HF_HUB_DOWNLOAD_TIMEOUT)
        with self._slowness_warning():
            response = request.__enter__()
        try:
            hf_raise_for_status(response)
            whole = response.status_code == 200 and position == 0
            if (
                not whole
                and response.headers.get("Content-Range") != f"bytes {position}-{end - 1}/{self.stat().st_size}"
            ):
                raise StorageError(f"{self}: the Hub sent other bytes than requested; try again later")
            pieces = response.iter_bytes()
            while position < end:
                try:
                    piece = next(pieces)
                except (
                    Exception
                ) as error:  # the HTTP library, and so its errors, differ between versions of huggingface_hub
                    raise _BrokenError(f"{end - position} bytes are missing") from error
                yield piece[: end - position]
                position += len(piece)
        finally:
            request.__exit__(None, None, None)

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        with hub_errors(str(self)):
            yield


def require_hub(what: str) -> None:
    """Raises InputError if huggingface_hub is not installed. what: what needs it, for the message."""
    package, extra = CLIENTS[HUB]
    if find_spec(package) is None:
        raise InputError(f"{what}: needs {package}: pip install 'vit-parity[{extra}]'")
    logging.getLogger(package).setLevel(logging.CRITICAL)  # it raises all errors that it logs


@contextmanager
def bars_in_terminals_only() -> Iterator[None]:
    """Context in which huggingface_hub shows the progress of transfers in a terminal, and prints nothing to a file."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if sys.stderr.isatty() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextmanager
def hub_errors(address: str) -> Iterator[None]:
    """Translates errors of huggingface_hub to FileNotFoundError, InputError (no such repository or revision, or no
    access) or StorageError (the Hub refuses or does not answer). Messages have one line, without tokens and
    signatures."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except (InputError, StorageError):
        raise
    except GatedRepoError:
        raise InputError(
            f"{address}: the owner has to grant access: ask for it on the model's page, and {_LOG_IN}"
        ) from None
    except RepositoryNotFoundError:
        raise InputError(f"{address}: no such repository, or it is private; check the name, and {_LOG_IN}") from None
    except RevisionNotFoundError:
        raise InputError(
            f"{address}: no such revision; give a branch, a tag or a commit (write a slash as %2F)"
        ) from None
    except (FileNotFoundError, EntryNotFoundError):
        raise FileNotFoundError(errno.ENOENT, "no such file in the repository", address) from None
    except OfflineModeIsEnabled:
        raise StorageError(f"{address}: HF_HUB_OFFLINE is set; remove it, or give a local copy") from None
    except Exception as error:
        error = error.__cause__ if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception) else error
        status = getattr(getattr(error, "response", None), "status_code", None)
        text = one_line(shortened(re.sub(r"\?[^\s'\"]+", "", str(error)))) or type(error).__name__
        if status in (401, 403):
            raise StorageError(f"{address}: access refused ({text}); {_LOG_IN}, with a token that allows it") from None
        if status == 412:
            raise StorageError(f"{address}: another client changed the repository meanwhile; try again") from None
        if status is None:
            text = f"cannot reach {constants.ENDPOINT} ({text}); check the connection, or give a local copy"
        raise StorageError(f"{address}: {text}") from None
