"""A run's saved steps, RUN/steps/NNNNNN: which there are, which stay, and what is in one, whoever saved it.

The JAX engine saves with Orbax (steps_orbax), the PyTorch engine a checkpoint folder with its statistics beside the
weights; either goes on from either.
"""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from vit_core.checkpoint import WEIGHTS, Checkpoint, CheckpointConfig, open_checkpoint, save_checkpoint, staging
from vit_core.errors import InputError
from vit_core.formats import orbax
from vit_core.places import here, rmtree

STATISTICS = "optimizer.safetensors"


class Statistics(Mapping[str, np.ndarray]):
    """A saved step's statistics; InputError, naming the folder, for one that is not there."""

    def __init__(self, folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
        self.folder, self.arrays = folder, arrays

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.arrays:
            if name == "skipped":
                raise KeyError(name)
            raise InputError(f"{self.folder}: no {name} there; was it saved by another config?")
        return self.arrays[name]

    def __iter__(self) -> Any:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)


def read(folder: Path) -> tuple[Checkpoint, int, Statistics]:
    """The weights, the number of updates behind them, and the statistics. InputError for a damaged step."""
    checkpoint = open_checkpoint(folder)
    if orbax.is_step(folder):
        arrays: Mapping[str, np.ndarray] = orbax.statistics_of(folder, checkpoint.config.model)
    else:
        try:
            with here(folder / STATISTICS) as file:
                arrays = load_file(os.fspath(file))
        except (OSError, SafetensorError) as error:
            raise InputError(f"{folder / STATISTICS}: not a whole safetensors file ({error})") from None
    return checkpoint, checkpoint.config.provenance.step or 0, Statistics(folder, arrays)


def write(
    folder: Path, config: CheckpointConfig, weights: Mapping[str, np.ndarray], statistics: Mapping[str, np.ndarray]
) -> None:
    """Writes a step as a checkpoint folder. InputError, and nothing left, where there is no room."""
    try:
        # A step is whole once its weights are there: they come last.
        with staging(folder, (STATISTICS,)) as stage:
            save_file(dict(statistics), stage / STATISTICS)
        save_checkpoint(folder, config, weights)
    except InputError:
        rmtree(folder, ignore_errors=True)  # a full disk has no room for half a step
        raise


def remove(folder: Path) -> None:
    """Removes a step, whole or in half; at no moment is half of one taken for whole."""
    for what_makes_it_one in (WEIGHTS, orbax.MANIFEST):
        (folder / what_makes_it_one).unlink(missing_ok=True)
    rmtree(folder)


def put_aside(folder: Path) -> None:
    """Keeps a step that cannot be read, but not as a step: it may be the disk that is at fault."""
    aside = folder.with_name(f"damaged-{folder.name}")
    rmtree(aside, ignore_errors=True)
    folder.rename(aside)


def sweep(run: Path, whole: Collection[Path]) -> None:
    """Removes what saves and removals that were cut short have left beside the whole steps."""
    for folder in run.glob("steps/*"):
        if folder.is_dir() and folder not in whole and not folder.name.startswith("damaged-"):
            rmtree(folder, ignore_errors=True)


def spare(steps: Collection[int], newest: int, every: int, best: int, scores: Mapping[int, float]) -> list[int]:
    """The steps that may go: neither among the newest, nor multiples of `every`, nor best by score (then the later)."""
    ranked = sorted((step for step in steps if step in scores), key=lambda step: (scores[step], step))
    kept = {*sorted(steps)[-newest:], *ranked[len(ranked) - best :]}
    return sorted(step for step in steps if step not in kept and not (every and step % every == 0))
