"""The saved steps of a run, RUN/steps/NNNNNN: their contents, for both engines, and which of them are kept.

The JAX engine saves with Orbax (engines.jax.saving), the PyTorch engine a checkpoint folder with its statistics beside
the weights; either engine resumes at a step of either.
"""

import dataclasses
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from vit_core.arrays import LazyArrays
from vit_core.checkpoints import Checkpoint, CheckpointConfig
from vit_core.checkpoints.formats.vit.folder import WEIGHTS, open_folder, write_folder
from vit_core.checkpoints.formats.vit.step import MANIFEST, OrbaxStep, is_orbax_step
from vit_core.errors import DamagedError, InputError
from vit_core.lora import Lora, adapter_rows, adapters, merged_arrays, with_adapter_rows
from vit_core.parameters import parameters
from vit_core.storage import Location, StorePath, is_local, local_copy, remove_tree, staged_files
from vit_train.config import TrainConfig
from vit_train.step_statistics import ADAPTER, BASE, SKIPPED, step_statistics

STATISTICS = "optimizer.safetensors"
"""File of a step that the PyTorch engine saved: the optimizer's statistics and the moving average."""
_NOT_AS_SAVED = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_DAMAGED = "damaged-"
"""Prefix of the folder of a step that could not be read."""


class Statistics(Mapping[str, np.ndarray]):
    """A saved step's statistics by "<kind>/<canonical name>"; InputError, naming the folder, for a missing one."""

    def __init__(self, folder: Location, arrays: Mapping[str, np.ndarray]) -> None:
        self.folder, self.arrays = folder, arrays

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.arrays:
            if name == SKIPPED:
                raise KeyError(name)
            raise InputError(f"{self.folder}: has no {name}; check that it was saved with this config")
        return self.arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)


def read_step(folder: Location, run: TrainConfig) -> tuple[Checkpoint, int, Statistics]:
    """The weights of a step of a run, the number of updates before it, and the statistics; all files are checked first.

    Weights and adapters are separate arrays among the weights; a masked autoencoder's decoder is among the statistics.

    Raises DamagedError for a step that changed after it was saved.
    """
    if is_orbax_step(folder):
        step = OrbaxStep(folder)
        step.verify()
        config = CheckpointConfig.parse(step.manifest.metadata, f"{folder / MANIFEST}: metadata")
        checkpoint = Checkpoint(config, step.parameters(config.model), str(folder))
        rows = with_adapter_rows(parameters(config.model, run.masked), config.model, run.lora)
        arrays: Mapping[str, np.ndarray] = step_statistics(step, rows)
    else:
        checkpoint, arrays = _open_weights(folder), _read_statistics(folder / STATISTICS)
    statistics = Statistics(folder, arrays)
    checkpoint = _with_adapters(checkpoint, statistics, run.lora)
    return checkpoint, checkpoint.config.provenance.step or 0, statistics


def _with_adapters(checkpoint: Checkpoint, statistics: Statistics, lora: Lora) -> Checkpoint:
    """A step's checkpoint with adapters separate from its weights, in place of merged weights."""
    model = checkpoint.config.model
    apart = {name: statistics[f"{BASE}/{name}"] for name in adapters(model, lora)}
    apart |= {name: statistics[f"{ADAPTER}/{name}"] for name in adapter_rows(model, lora)}
    entries = {**checkpoint.arrays.entries, **LazyArrays.of(apart).entries}
    return dataclasses.replace(checkpoint, arrays=LazyArrays(entries))


def _open_weights(folder: Location) -> Checkpoint:
    """The checkpoint in a step's folder. The folder is known to be a step, so anything that does not fit is damage."""
    try:
        return open_folder(folder)
    except InputError as error:
        cause = error.__context__
        if isinstance(cause, OSError) and not isinstance(cause, _NOT_AS_SAVED):
            raise cause from None  # permissions or the disk say nothing about what was saved
        raise DamagedError(f"{error}; restore an earlier step") from None


def _read_statistics(path: Location) -> Mapping[str, np.ndarray]:
    try:
        with local_copy(path) as file:
            return load_file(os.fspath(file))
    except (*_NOT_AS_SAVED, SafetensorError) as error:
        raise DamagedError(f"{path}: not a complete safetensors file ({error}); restore an earlier step") from None


def write_step(
    folder: Location,
    config: CheckpointConfig,
    arrays: Mapping[str, np.ndarray],
    statistics: Mapping[str, np.ndarray],
    lora: Lora,
) -> None:
    """Writes a step as a checkpoint folder. Raises InputError if there is not enough space; then no part of it remains.

    arrays: weights and adapters, separate. In the checkpoint the adapters are merged into the weights.
    """
    checkpoint = Checkpoint.of(config, merged_arrays(arrays, config.model, lora))
    apart = {f"{BASE}/{name}": arrays[name] for name in adapters(config.model, lora)}
    apart |= {f"{ADAPTER}/{name}": arrays[name] for name in adapter_rows(config.model, lora)}
    try:
        # A step is complete once its weights are there: they come last.
        with staged_files(folder, (STATISTICS,)) as stage:
            _write_statistics(stage / STATISTICS, {**statistics, **apart})
        write_folder(folder, checkpoint)
    except InputError:
        remove_tree(folder, ignore_errors=True)  # a full disk has no space for half a step
        raise


def _write_statistics(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes a safetensors file. Raises OSError if the file system refuses it (the library raises an error of another
    class)."""
    try:
        save_file(arrays, path)
    except SafetensorError as error:
        raise OSError(str(error)) from None


def remove_step(folder: Location) -> None:
    """Removes a step, complete or not, in an order in which the remaining files never look like a complete step."""
    for completing_file in (WEIGHTS, MANIFEST):
        (folder / completing_file).unlink(missing_ok=True)
    remove_tree(folder)


def set_aside(folder: Location) -> None:
    """Renames a step that could not be read to damaged-NNNNNN, which is not a step; its files may still be useful."""
    aside = folder.with_name(f"{_DAMAGED}{folder.name}")
    remove_tree(aside, ignore_errors=True)
    if is_local(folder):
        folder.rename(str(aside))
    elif isinstance(folder, StorePath) and isinstance(aside, StorePath):
        folder.rename(aside)


def remove_incomplete(run: Location, complete: Collection[Location]) -> None:
    """Removes the files that interrupted saves and removals left beside the complete steps."""
    for folder in run.glob("steps/*"):
        if folder.is_dir() and folder not in complete and not folder.name.startswith(_DAMAGED):
            remove_tree(folder, ignore_errors=True)


def steps_to_remove(
    steps: Collection[int], newest: int, every: int, best: int, scores: Mapping[int, float]
) -> list[int]:
    """The steps that are neither among the `newest`, nor multiples of `every` (0: none), nor among the `best` by score
    (of equal scores, the later step)."""
    ranked = sorted((step for step in steps if step in scores), key=lambda step: (scores[step], step))
    kept = {*sorted(steps)[-newest:], *ranked[len(ranked) - best :]}
    return sorted(step for step in steps if step not in kept and not (every and step % every == 0))
