"""A run's folder: what was asked for (run.json), saved steps to go on from, and the finished checkpoints."""

import json
import os
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from vit_core.checkpoint import (
    FINISHED,
    Checkpoint,
    CheckpointConfig,
    Provenance,
    open_checkpoint,
    save_checkpoint,
    saved_steps,
    staging,
)
from vit_core.display import say
from vit_core.errors import InputError
from vit_core.places import Stored
from vit_core.schema import Schema

from . import steps
from .config import NOT_THE_RUN, TrainConfig
from .data import Batch
from .measured import Measured
from .metrics import METRICS, read

RUN = "run.json"
AVERAGE = f"{FINISHED}_ema"
HOLDER = "holder"
"""In a store, the process that works in the run's folder."""
THIS_PROCESS = f"process {os.getpid()} on {socket.gethostname()} ({uuid.uuid4().hex[:8]})"


class Engine(Protocol):
    """What a run asks of a framework. Every process calls every verb, in the same order."""

    name: str
    config: TrainConfig
    process: int
    processes: int
    devices: int
    hardware: str
    """This process's devices, in words."""
    trained: tuple[str, ...]

    @property
    def shares(self) -> int: ...

    @property
    def primary(self) -> bool: ...

    @property
    def held(self) -> Mapping[str, tuple[int, int]]: ...

    @property
    def skipped(self) -> int: ...

    def rows(self, size: int) -> np.ndarray: ...

    def train_step(self, batch: Batch, step: int, stop: bool = False) -> Measured: ...

    def logits(self, images_BHWC: np.ndarray, averaged: bool = False) -> np.ndarray: ...

    def export(self, averaged: bool = False) -> dict[str, np.ndarray]: ...

    def statistics(self) -> dict[str, np.ndarray]: ...

    def restore(self, step: int, statistics: Mapping[str, np.ndarray]) -> None: ...

    def save(self, folder: Path, config: CheckpointConfig) -> None: ...

    def saved(self) -> None: ...

    def total(self, counts: np.ndarray) -> np.ndarray: ...


class MakeEngine(Protocol):
    """An engine's class."""

    def __call__(self, config: TrainConfig, weights: Checkpoint | None = None, saved: Path | None = None) -> Engine: ...


class Request(Schema):
    """All of run.json."""

    format_version: Literal[1] = 1
    config: TrainConfig
    init: str | None = None
    """The checkpoint it began from."""
    labels: tuple[str, ...] | None = None
    provenance: Provenance = Provenance()
    """Of the checkpoint it began from."""
    examples: tuple[str, ...] = ()
    """Fingerprints of the splits: what they hold, wherever it lies."""


@dataclass(frozen=True)
class Run:
    """A run in its folder."""

    folder: Path
    request: Request

    def compare(self) -> None:
        """InputError where the folder holds a run of another config."""
        if not (self.folder / RUN).exists():
            if saved_steps(self.folder):
                raise InputError(f"{self.folder}: holds saved steps but no {RUN}; choose another --out")
        elif found := differences(self.request, read_request(self.folder)):
            raise InputError(
                f"{self.folder}: holds a run of another config: {'; '.join(found)}; repeat it to go on, or choose "
                "another --out"
            )

    def write(self) -> None:
        """Writes run.json; what may change on the way is that of the last start."""
        with staging(self.folder, (RUN,)) as stage:
            (stage / RUN).write_text(self.request.model_dump_json(indent=2) + "\n")
        if isinstance(self.folder, Stored):
            (self.folder / HOLDER).write_text(THIS_PROCESS)

    def check_held(self) -> None:
        """InputError where, in a store, another process has begun to work in the folder since this one has."""
        if not isinstance(self.folder, Stored) or not (holder := self.folder / HOLDER).exists():
            return
        if (found := holder.read_text()) != THIS_PROCESS:
            raise InputError(f"{self.folder}: {found} has gone on with this run since; this one ends here")

    @property
    def finished(self) -> bool:
        """Whether its checkpoint is there, after the last step."""
        try:
            return open_checkpoint(self.folder / FINISHED).config.provenance.step == self.request.config.steps
        except InputError:
            return False

    def start(self, make_engine: MakeEngine, init: Checkpoint | None) -> tuple[Engine, int]:
        """An engine at the newest whole saved step and its number; else at `init`, or at new weights, and 0."""
        folders, damaged = saved_steps(self.folder), []
        for folder in folders:
            try:
                engine = make_engine(self.request.config, saved=folder)
            except InputError as error:
                if folder == folders[-1]:
                    raise
                say(f"{error}; going back to the step before")
                damaged.append(folder)
                continue
            for newer in damaged if engine.process == 0 else ():
                steps.put_aside(newer)
            return engine, int(folder.name)
        return make_engine(self.request.config, init), 0

    def step_folder(self, step: int) -> Path:
        """RUN/steps/NNNNNN."""
        return self.folder / "steps" / f"{step:06d}"

    def save(self, engine: Engine, step: int) -> Path:
        """Begins to save a step, once the one before is whole, and removes what need not stay.

        One that is there stays: it is the same.
        """
        folder = self.step_folder(step)
        if engine.process == 0:
            self.check_held()
        self.saved(engine)
        if folder not in saved_steps(self.folder):
            engine.save(folder, self._checkpoint_config(step))
        return folder

    def saved(self, engine: Engine) -> None:
        """Waits for the step being saved; then old ones go."""
        engine.saved()
        if engine.process == 0:
            config, folders = self.request.config, {int(folder.name): folder for folder in saved_steps(self.folder)}
            scores = {line["step"]: line["top1"] for line in read(self.folder / METRICS) if "top1" in line}
            for step in steps.spare(folders, config.keep, config.keep_every, config.keep_best, scores):
                steps.remove(folders[step])
            steps.sweep(self.folder, folders.values())
        engine.total(np.zeros(1))  # the others wait: what there is must look the same to all

    def finish(self, engine: Engine, step: int) -> tuple[Path, ...]:
        """Writes RUN/checkpoint, and RUN/checkpoint_ema where a moving average was kept; by process 0."""
        kept = {FINISHED: False} | ({AVERAGE: True} if self.request.config.ema is not None else {})
        # The checkpoint last: it says that the run is finished.
        for name, averaged in reversed(kept.items()):
            exported = engine.export(averaged)
            if engine.process == 0:
                self.check_held()
                save_checkpoint(self.folder / name, self._checkpoint_config(step), exported)
        return tuple(self.folder / name for name in kept)

    def _checkpoint_config(self, step: int) -> CheckpointConfig:
        request, before = self.request, self.request.provenance
        resampled = tuple(
            done.replace(trained_since=done.trained_since or step > 0) for done in before.position_resampling
        )
        return CheckpointConfig(
            model=request.config.model,
            preprocessing=request.config.preprocessing,
            labels=request.labels,
            provenance=before.replace(run=self.folder.resolve().name, step=step, position_resampling=resampled),
        )


def read_request(run: Path) -> Request:
    """What a run was asked for. InputError where that cannot be read."""
    try:
        return Request.parse(json.loads((run / RUN).read_text()), str(run / RUN))
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{run / RUN}: cannot be read ({error})") from None


def differences(ours: Request, theirs: Request) -> list[str]:
    """The fields that make it another run, each with both values."""
    here, there = flat(ours.model_dump(mode="json")), flat(theirs.model_dump(mode="json"))
    return [
        f"{name.removeprefix('config.')} is {there.get(name)} there and {here.get(name)} here"
        for name in dict.fromkeys([*here, *there])
        if here.get(name) != there.get(name) and name.removeprefix("config.") not in NOT_THE_RUN
    ]


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, by dotted name."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        leaves |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return leaves
