"""Training steps of the JAX engine on disk: Orbax writes each process's shards while training continues.

vit_core.checkpoints.formats.vit.step reads them without JAX, and documents step.json, which makes a folder a complete
step. Orbax writes to folders and to gs://. For s3:// it writes to this machine, and the files are uploaded in the
background.
"""

import errno
import json
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import fsspec.config
import jax
import orbax.checkpoint as ocp
from etils import epath

from vit_core.checkpoints.formats.vit.step import (
    COMMITTED,
    LocalFile,
    Manifest,
    StoredFile,
    is_orbax_step,
    leaf_summary,
    one_line_cause,
    step_files,
)
from vit_core.errors import InputError
from vit_core.storage import Location, StorageError, StorePath, absolute, is_local, location, remove_tree, unwritable
from vit_train.engines.jax.processes import joined_processes
from vit_train.processes import read_together

# Orbax reaches gs:// by etils.epath: that has to use gcsfs even where TensorFlow is installed, and to keep no listing,
# because other processes write meanwhile.
os.environ.setdefault("EPATH_USE_TF", "false")
fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)

LARGE = 2**24
"""Number of bytes from which stacks are stored in one piece per layer, so that reading one layer does not read all.
Replicated arrays of this size are divided among the replicas for writing; each of them is then a program to compile
(200 programs for a small model: 19 s)."""

_UNWRITABLE = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR,
    errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP,
}  # fmt: skip
"""Errors of the system for a folder that cannot be written to, or has no room."""


class OrbaxSaver:
    """Writes steps, one at a time, in the background. With several processes, all make the same calls."""

    def __init__(self) -> None:
        _report_failures_once()
        self.handler = _Handler()
        self.checkpointer = ocp.AsyncCheckpointer(self.handler)
        self.folder: Location | None = None
        self.local: tempfile.TemporaryDirectory[str] | None = None
        """Where a step is written before it is uploaded."""

    def save(
        self,
        folder: str | os.PathLike[str],
        leaves: Mapping[str, jax.Array],
        metadata: dict[str, Any],
        by_matrix: bool = False,
    ) -> None:
        """Begins to save a step, after waiting for the step before; returns when the arrays may be donated.

        folder: of the step, which appears there complete or not at all. metadata: anything JSON can represent.
        by_matrix: whether the optimizer's statistics are kept by matrix. Raises InputError for a folder that cannot be
        written to and StorageError where a store refuses, now or by `wait_until_saved`.
        """
        self.wait_until_saved()
        self.folder = absolute(location(folder))
        self.handler.manifest = Manifest(
            metadata=json.loads(json.dumps(metadata)), structured=by_matrix, leaves=leaf_summary(leaves), files={}
        )
        self.handler.upload_to = None if _is_written_by_orbax(self.folder) else self.folder
        layers = {name: ocp.SaveArgs(shard_axes=(0,) if _is_split(name, x) else ()) for name, x in leaves.items()}
        with self._removing_failed_step():
            if _is_first():
                _remove_incomplete(self.folder)
                _create_and_remove(self.folder)
            target = self._local_folder(self.folder) if self.handler.upload_to else self.folder
            self.checkpointer.save(epath.Path(os.fspath(target)), args=_SaveArgs(dict(leaves), save_args=layers))

    def wait_until_saved(self) -> None:
        """Waits until the step that is being saved is complete. Raises InputError or StorageError if it could not be
        written: nothing is left of it."""
        with self._removing_failed_step():
            self.checkpointer.wait_until_finished()
        self._forget()

    def close(self) -> None:
        """Waits, and ends the threads."""
        try:
            self.wait_until_saved()
        finally:
            self.checkpointer.close()

    @contextmanager
    def _removing_failed_step(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            folder = self.folder
            self._forget()
            if folder is None:
                raise
            if _is_first():
                with suppress(Exception):  # a folder that refuses to be written may refuse to be removed
                    _remove_incomplete(folder)
            if is_local(folder) and _is_unwritable(error):
                raise unwritable(folder, one_line_cause(error)) from None
            if not is_local(folder) and _is_of_store(error):
                raise StorageError(f"{folder}: cannot write there ({one_line_cause(error)})") from error
            raise

    def _local_folder(self, folder: Location) -> Path:
        """Where Orbax writes a step that will be uploaded."""
        if jax.process_count() > 1:
            raise InputError(
                f"{folder}: several processes cannot save there together; choose a folder that all of them see, or gs://"
            )
        self.local = tempfile.TemporaryDirectory(prefix="vit-")
        return Path(self.local.name) / folder.name

    def _forget(self) -> None:
        self.folder = None
        if self.local is not None:
            self.local.cleanup()
            self.local = None


@cache
def _report_failures_once() -> None:
    """Silences three reports, in this process, of a save that fails, which `wait_until_saved` raises: Orbax logs it;
    asyncio logs each of Orbax's tasks that fails after the first; each write of TensorStore that is still in progress
    finds Orbax's event loop closed, at any time later and in threads of its own.

    They can only be caught globally; all other messages and errors pass."""
    logging.getLogger("absl").addFilter(lambda record: "/orbax/" not in record.pathname.replace(os.sep, "/"))
    logging.getLogger("asyncio").addFilter(lambda record: "/orbax/" not in record.getMessage().replace(os.sep, "/"))
    before = sys.unraisablehook

    def report(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = report


class _Handler(ocp.PyTreeCheckpointHandler):  # type: ignore[misc]  # Orbax has no types
    """Orbax's handler, which also writes step.json before the folder becomes visible."""

    def __init__(self) -> None:
        arrays = ocp.type_handlers.ArrayHandler(
            min_slice_bytes_for_replica_parallel=LARGE,
            enable_write_sharding_file=False,  # the devices to restore to are always given
        )
        registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
        # Compression makes floating-point noise 8 % smaller and takes twice the time.
        super().__init__(use_compression=False, type_handler_registry=registry)
        self.manifest: Manifest | None = None
        self.upload_to: Location | None = None
        """Where a step is uploaded to that Orbax writes on this machine."""

    def finalize(self, directory: epath.Path) -> None:
        super().finalize(directory)
        assert self.manifest is not None
        folder = location(os.fspath(directory))
        kind = StoredFile if self.upload_to or not is_local(folder) else LocalFile
        files = step_files(folder)
        manifest = self.manifest.replace(files={name: kind.of(path) for name, path in files.items()})
        if isinstance(self.upload_to, StorePath):
            for name, file in files.items():
                assert is_local(file)
                (self.upload_to / name).upload(file)
            manifest.write(self.upload_to)
        manifest.write(folder)


@ocp.args.register_with_handler(_Handler, for_save=True)
@dataclass
class _SaveArgs(ocp.args.PyTreeSave):  # type: ignore[misc]
    """Arguments by whose type Orbax finds the handler, for saving."""


@ocp.args.register_with_handler(_Handler, for_restore=True)
@dataclass
class _RestoreArgs(ocp.args.PyTreeRestore):  # type: ignore[misc]
    """Arguments by whose type Orbax finds the handler, for restoring."""


def restore(folder: str | os.PathLike[str], like: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """A step's leaves, each on the devices of its `like`, whatever mesh and processes it was saved with.

    Every process has to call it. Raises DamagedError, in every process, for a step that is not as it was saved, and
    InputError for one that has other leaves than `like`. What fails after these checks is raised as it is.
    """
    path = absolute(location(folder))
    read_together(joined_processes(), lambda: _check(path, like))
    args = {
        name: ocp.ArrayRestoreArgs(restore_type=jax.Array, sharding=x.sharding, global_shape=x.shape, dtype=x.dtype)
        for name, x in like.items()
    }
    with _readable_by_orbax(path) as readable, ocp.Checkpointer(_Handler()) as checkpointer:
        target = epath.Path(os.fspath(readable))
        return dict(checkpointer.restore(target, args=_RestoreArgs(dict(like), restore_args=args)))


def _check(folder: Location, like: Mapping[str, jax.ShapeDtypeStruct]) -> None:
    """Raises InputError for other leaves than `like`; DamagedError for damage in this process's share of the files."""
    manifest = Manifest.read(folder)
    expected, found = leaf_summary(like), manifest.leaves
    differences = [
        f"{what} {', '.join(names)}"
        for what, names in {
            "no": [name for name in expected if name not in found],
            "unexpected": [name for name in found if name not in expected],
        }.items()
        if names
    ] + [
        f"{name} expected {x.dtype} {list(x.shape)} found {found[name].dtype} {list(found[name].shape)}"
        for name, x in expected.items()
        if name in found and found[name] != x
    ]
    if differences:
        raise InputError(f"{folder}: {'; '.join(differences)}; check that it was saved with this config")
    manifest.check(folder, sorted(manifest.files)[jax.process_index() :: jax.process_count()])
    by_orbax = not is_local(folder) and _is_written_by_orbax(folder)
    if by_orbax and _is_first() and not (folder / COMMITTED).exists():
        # Its process was killed just before Orbax wrote the mark, or the step was copied to the store: step.json says
        # that it is complete.
        (folder / COMMITTED).write_text("")


@contextmanager
def _readable_by_orbax(folder: Location) -> Iterator[Location]:
    """The folder, or a copy of it on this machine."""
    if _is_written_by_orbax(folder):
        yield folder
        return
    assert isinstance(folder, StorePath)
    with tempfile.TemporaryDirectory(prefix="vit-") as copy:
        for name, file in folder.files().items():
            (Path(copy) / name).parent.mkdir(parents=True, exist_ok=True)
            file.download(Path(copy) / name)
        yield Path(copy)


def _is_written_by_orbax(folder: Location) -> bool:
    """Whether Orbax itself reads and writes there."""
    return not isinstance(folder, StorePath) or folder.protocol == "gs"


def _is_split(name: str, x: jax.Array) -> bool:
    return "/blocks." in name and x.nbytes >= LARGE


def _is_first() -> bool:
    return jax.process_index() == 0


def _remove_incomplete(folder: Location) -> None:
    """Removes what killed or failed saves left of this step and beside it."""
    if folder.exists() and not is_orbax_step(folder):
        remove_tree(folder)
    for stale in folder.parent.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}") if folder.parent.exists() else ():
        remove_tree(stale)


def _create_and_remove(folder: Location) -> None:
    """Raises OSError if a local folder cannot be created. Orbax finds that out in threads of which others then wait for
    the folder for minutes, and the process does not end before they do."""
    if is_local(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
        folder.rmdir()


def _is_unwritable(error: Exception) -> bool:
    """Whether an error of the system, or of TensorStore, means that a folder cannot be written to."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    number = error.errno if isinstance(error, OSError) else int(code[1]) if code else None
    return number in _UNWRITABLE


def _is_of_store(error: Exception) -> bool:
    """Whether an error comes from a store's client (fsspec's, or TensorStore: "PERMISSION_DENIED: ...")."""
    client = type(error).__module__.partition(".")[0] in ("gcsfs", "s3fs", "botocore", "aiobotocore", "aiohttp")
    return client or isinstance(error, OSError) or re.match(r"[A-Z]+(_[A-Z]+)*: ", str(error)) is not None
