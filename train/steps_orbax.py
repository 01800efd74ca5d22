"""Training steps of the JAX engine on disk: Orbax writes each process's shards while training goes on.

vit_core.formats.orbax reads them without JAX; step.json, which makes a folder a step, is described there.
"""

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec.config
import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from vit_core.errors import InputError
from vit_core.formats import orbax as steps
from vit_core.formats.orbax import Manifest
from vit_core.places import Stored, place, rmtree

# Orbax reaches gs:// by etils.epath: that is to use gcsfs even where TensorFlow is installed, and to remember no
# listing, because other processes write meanwhile.
os.environ.setdefault("EPATH_USE_TF", "false")
fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)

LARGE = 2**24
"""Stacks of so many bytes are cut by layer, so that reading one layer does not read them all; and replicated arrays
are shared out among the replicas for writing, each such share a program to compile (200 for a small model: 19 s)."""


class Saver:
    """Writes steps, one at a time, in the background. With several processes all make the same calls."""

    def __init__(self) -> None:
        _quieten()
        self.handler = _Handler()
        self.checkpointer = ocp.AsyncCheckpointer(self.handler)
        self.folder: Path | None = None

    def save(
        self,
        folder: str | os.PathLike[str],
        leaves: Mapping[str, jax.Array],
        metadata: dict[str, Any],
        structured: bool = False,
    ) -> None:
        """Starts to save a step; returns when the arrays may be donated, having waited for the step before.

        folder: of the step, which appears there whole or not at all. metadata: anything JSON can hold. structured:
        whether the optimizer's statistics are kept by matrix. Raises InputError for what the file system refuses, now
        or (then of the step before) before; `wait` raises the rest.
        """
        self.wait()
        self.folder = place(folder).absolute()
        self.handler.manifest = Manifest(
            metadata=json.loads(json.dumps(metadata)), structured=structured, leaves=steps.summary(leaves), files={}
        )
        cut = {name: ocp.SaveArgs(shard_axes=(0,) if _cut(name, x) else ()) for name, x in leaves.items()}
        with self._cleaning():
            if _first():
                _sweep(self.folder)
            self.checkpointer.save(epath.Path(self.folder), args=_SaveArgs(dict(leaves), save_args=cut))

    def wait(self) -> None:
        """Until the step under way is on the disk. InputError where it could not be written: nothing is left of it."""
        with self._cleaning():
            self.checkpointer.wait_until_finished()
        self.folder = None

    def close(self) -> None:
        """Waits, and ends the threads."""
        try:
            self.wait()
        finally:
            self.checkpointer.close()

    @contextmanager
    def _cleaning(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax lets through whatever file systems, TensorStore and JAX raise
            folder, self.folder = self.folder, None
            if folder is not None and _first():
                with suppress(Exception):  # what refused to be written may refuse to go
                    _sweep(folder)
            raise InputError(
                f"{folder}: cannot write there ({steps.cause(error)}); choose a writable folder with room"
            ) from None


def _quieten() -> None:
    """A save that fails is told of once, by `wait`: not by Orbax's log as well, nor by each write of TensorStore's that
    finds Orbax's event loop closed."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    before = sys.unraisablehook

    def tell(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = tell


class _Handler(ocp.PyTreeCheckpointHandler):
    """Orbax's own, which puts step.json beside its files before it shows the folder."""

    def __init__(self) -> None:
        arrays = ocp.type_handlers.ArrayHandler(
            min_slice_bytes_for_replica_parallel=LARGE,
            enable_write_sharding_file=False,  # where to restore to is always said
        )
        registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
        # Compression makes floating-point noise 8 % smaller and takes twice the time.
        super().__init__(use_compression=False, type_handler_registry=registry)
        self.manifest: Manifest | None = None

    def finalize(self, directory: epath.Path) -> None:
        super().finalize(directory)
        assert self.manifest is not None
        folder = place(directory)
        kind = steps.StoredFile if isinstance(folder, Stored) else steps.File
        written = {name: kind.of(path) for name, path in steps.files(folder).items()}
        self.manifest.replace(files=written).write(folder)


@ocp.args.register_with_handler(_Handler, for_save=True)
@dataclass
class _SaveArgs(ocp.args.PyTreeSave):
    """Orbax finds a handler by the type of its arguments."""


@ocp.args.register_with_handler(_Handler, for_restore=True)
@dataclass
class _RestoreArgs(ocp.args.PyTreeRestore):
    """The same for restoring."""


def restore(folder: str | os.PathLike[str], like: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """A step's leaves, each on the devices of its `like`, whatever mesh and processes it was saved with.

    InputError, in every process, for a step that is damaged or holds other leaves than `like`.
    """
    path = place(folder).absolute()
    _agree(lambda: _check(path, like))
    args = {
        name: ocp.ArrayRestoreArgs(restore_type=jax.Array, sharding=x.sharding, global_shape=x.shape, dtype=x.dtype)
        for name, x in like.items()
    }
    try:
        with ocp.Checkpointer(_Handler()) as checkpointer:
            return dict(checkpointer.restore(epath.Path(path), args=_RestoreArgs(dict(like), restore_args=args)))
    except Exception as error:
        raise InputError(f"{path}: cannot be read ({steps.cause(error)}); restore an earlier step") from None


def _check(folder: Path, like: Mapping[str, jax.ShapeDtypeStruct]) -> None:
    """InputError for other leaves, or for damage in this process's share of the files."""
    manifest = Manifest.read(folder)
    wanted, found = steps.summary(like), manifest.leaves
    faults = [
        f"{what} {', '.join(names)}"
        for what, names in {
            "no": [name for name in wanted if name not in found],
            "unexpected": [name for name in found if name not in wanted],
        }.items()
        if names
    ] + [
        f"{name} expected {x.dtype} {list(x.shape)} found {found[name].dtype} {list(found[name].shape)}"
        for name, x in wanted.items()
        if name in found and found[name] != x
    ]
    if faults:
        raise InputError(f"{folder}: {'; '.join(faults)}; was it saved by another config?")
    manifest.check(folder, sorted(manifest.files)[jax.process_index() :: jax.process_count()])
    if isinstance(folder, Stored) and _first() and not (folder / steps.COMMITTED).exists():
        # Killed just before Orbax wrote it, or copied to the store: step.json says that the step is whole.
        (folder / steps.COMMITTED).write_text("")


def _agree(check: Callable[[], None]) -> None:
    """Raises in all processes if the check raises in one: those that went on would wait for it for ever."""
    error = None
    try:
        check()
    except InputError as raised:
        error = raised
    failed = np.flatnonzero(multihost_utils.process_allgather(np.array([error is not None])))
    if len(failed):
        raise error or InputError(f"process {failed[0]} cannot read the step; see its message")


def _cut(name: str, x: jax.Array) -> bool:
    return "/blocks." in name and x.nbytes >= LARGE


def _first() -> bool:
    return jax.process_index() == 0


def _sweep(folder: Path) -> None:
    """Removes what killed or failed saves left: of this step, and beside it."""
    if folder.exists() and not steps.is_step(folder):
        rmtree(folder)
    for stale in folder.parent.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}") if folder.parent.exists() else ():
        rmtree(stale)
