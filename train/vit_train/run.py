"""A run's folder: its request (run.json), the saved steps from which it resumes, and the finished checkpoints."""

import json
import logging
import os
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from vit_core.checkpoints import Checkpoint, CheckpointConfig, Provenance, open_checkpoint, save_checkpoint
from vit_core.checkpoints.adapter_folder import write_adapters
from vit_core.checkpoints.checkpoint import weights_digest
from vit_core.checkpoints.run_folder import FINISHED, saved_steps
from vit_core.errors import DamagedError, InputError, abbreviate
from vit_core.lora import merged_arrays
from vit_core.schema import Schema
from vit_core.storage import Location, absolute, is_local, location, staged_files
from vit_train.config import TrainConfig, field_value, flatten
from vit_train.config.changeable import CHANGEABLE_IN_SEGMENTS, CHANGEABLE_ON_RESUME
from vit_train.engine import Engine, Framework, MakeEngine, Saver
from vit_train.metrics import METRICS, read_metrics
from vit_train.segments import Segment, config_at, with_change
from vit_train.step_folders import remove_incomplete, remove_step, set_aside, steps_to_remove

logger = logging.getLogger("vit")

RUN = "run.json"
AVERAGE = f"{FINISHED}_ema"
"""Folder of a finished run's moving average."""
ADAPTER = "adapter"
"""Folder of a finished run's low-rank adapters alone."""
SCORES = ("top1", "mean_average_precision")
"""Scores by which evaluations are compared; the second is for images with several classes."""
HOLDER = "holder"
"""File of a run in a store that names the process that works on the run."""
THIS_PROCESS = f"process {os.getpid()} on {socket.gethostname()} ({uuid.uuid4().hex[:8]})"


class Request(Schema):
    """The contents of run.json."""

    format_version: Literal[1] = 1
    config: TrainConfig
    init: str | None = None
    """The checkpoint that the run began from."""
    labels: tuple[str, ...] | None = None
    provenance: Provenance = Provenance()
    """Provenance of the checkpoint that the run began from."""
    examples: tuple[str, ...] = ()
    """Fingerprints of the contents of the training and evaluation splits, independent of their paths."""
    teacher: str | None = None
    """A digest of the weights of the run's teacher, whose address is in the config."""
    framework: Framework | None = None
    """Framework of the last start (None: a run of an earlier release, whose log names it)."""
    segments: tuple[Segment, ...] = ()
    """The changes that were made when the run was resumed; before the first of them, the run used `config`."""

    def config_at(self, step: int) -> TrainConfig:
        """The config of update number `step` (from 0)."""
        return config_at(self.config, self.segments, step)

    @property
    def steps(self) -> int:
        """Updates of the whole run."""
        last = self.segments[-1].step if self.segments else 0
        return self.config_at(last).steps

    def end_of_segment(self, step: int) -> int:
        """Number of updates after which the segment of update number `step` ends."""
        return min((segment.step for segment in self.segments if segment.step > step), default=self.steps)


CHANGEABLE = {"init", "framework", *(f"config.{name}" for name in CHANGEABLE_ON_RESUME)}
"""Fields of a request that may be changed when a run is resumed; all others are fixed."""


@dataclass(frozen=True)
class Run:
    """A run in its folder."""

    folder: Location
    request: Request

    def taught_by(self, teacher: Checkpoint | None) -> "Run":
        """This run with a teacher's digest in its request."""
        digest = None if teacher is None else weights_digest(teacher.arrays)
        return Run(self.folder, self.request.replace(teacher=digest))

    def resumed(self) -> "Run":
        """This run with the segments that its folder records. Raises InputError if the folder contains another run."""
        if not (self.folder / RUN).exists():
            if saved_steps(self.folder):
                raise InputError(f"{self.folder}: holds saved steps but no {RUN}; choose another --out")
            return self
        there = read_request(self.folder)
        run = Run(self.folder, self.request.replace(segments=there.segments))
        if found := differences(run.request, there):
            raise InputError(
                f"{self.folder}: has a run of another config: {abbreviate(found, '; ')}; vit resume {self.folder} "
                "continues it; for another run, choose another --out"
            )
        return run

    def with_change(self, fields: Mapping[str, Any]) -> tuple["Run", list[str]]:
        """This run with other values of some fields from its newest saved step on (segments.with_change), and a text
        that describes the change."""
        if not fields:
            return self, []
        step, request = next((int(folder.name) for folder in saved_steps(self.folder)), 0), self.request
        changed = request.replace(segments=with_change(request.config, request.segments, step, fields))
        before, after = request.config_at(step), changed.config_at(step)
        words = [
            f"{name} {field_value(before, name)} -> {field_value(after, name)}"
            for name in sorted(CHANGEABLE_IN_SEGMENTS)
            if field_value(before, name) != field_value(after, name)
        ]
        if words:
            where = f"from step {step} on, after {after.examples_before(step)} examples"
            words = [f"{where}: {', '.join(words)} (learning rate {after.learning_rate(step):.3g})"]
        return Run(self.folder, changed), words

    def write(self) -> None:
        """Writes run.json; fields that may change on resume have the values of the last start."""
        with staged_files(self.folder, (RUN,)) as stage:
            (stage / RUN).write_text(self.request.model_dump_json(indent=2) + "\n")
        if not is_local(self.folder):
            (self.folder / HOLDER).write_text(THIS_PROCESS)

    def check_held(self) -> None:
        """Raises InputError if the run is in a store and another process has resumed it since this one started."""
        if is_local(self.folder) or not (holder := self.folder / HOLDER).exists():
            return
        if (other := holder.read_text()) != THIS_PROCESS:
            raise InputError(f"{self.folder}: {other} has resumed this run in the meantime; this process stops")

    @property
    def finished(self) -> bool:
        """Whether the checkpoint of the last step exists."""
        try:
            return open_checkpoint(self.folder / FINISHED).config.provenance.step == self.request.steps
        except InputError:
            return False

    def start(
        self, make_engine: MakeEngine, init: Checkpoint | None, teacher: Checkpoint | None = None
    ) -> tuple[Engine, int]:
        """An engine at the newest saved step that all processes can read, and that step's number; without saved steps,
        at `init` or at new weights, and 0.

        Damaged steps are renamed. Raises DamagedError if all steps are damaged.
        """
        folders, damaged = saved_steps(self.folder), []
        for folder in folders:
            try:
                engine = make_engine(self.request.config_at(int(folder.name)), saved=folder, teacher=teacher)
            except DamagedError as error:  # raised in all processes, which therefore all go back together
                if folder == folders[-1]:
                    raise
                logger.info("%s; going back to the step before", error)
                damaged.append(folder)
                continue
            for newer in damaged if engine.process == 0 else ():
                set_aside(newer)
            return engine, int(folder.name)
        return make_engine(self.request.config_at(0), init, teacher=teacher), 0

    def step_folder(self, step: int) -> Location:
        """RUN/steps/NNNNNN."""
        return self.folder / "steps" / f"{step:06d}"

    def save(self, saver: Saver, step: int) -> Location:
        """Starts to save a step, once the step before is complete; returns its folder.

        An existing step is kept, because it is the same.
        """
        folder = self.step_folder(step)
        if saver.process == 0:
            self.check_held()
        self.wait_until_saved(saver)
        if folder not in saved_steps(self.folder):
            saver.save(folder, self._checkpoint_config(step))
        return folder

    def wait_until_saved(self, saver: Saver) -> None:
        """Waits until the step that is being saved is complete, then removes the steps that need not be kept."""
        saver.wait_until_saved()
        if saver.process == 0:
            config, folders = self.request.config, {int(folder.name): folder for folder in saved_steps(self.folder)}
            lines = read_metrics(self.folder / METRICS)
            scores = {line["step"]: line[name] for name in SCORES for line in lines if name in line}
            if config.masked is not None:
                scores = {line["step"]: -line["evaluation_loss"] for line in lines if "evaluation_loss" in line}
            for step in steps_to_remove(folders, config.keep, config.keep_every, config.keep_best, scores):
                remove_step(folders[step])
            remove_incomplete(self.folder, folders.values())
        saver.total(np.zeros(1))  # the others wait: all must see the same steps

    def finish(self, saver: Saver, step: int) -> tuple[Location, ...]:
        """Writes RUN/checkpoint and, with a moving average, RUN/checkpoint_ema. Low-rank adapters are merged in these,
        and also written alone, as RUN/adapter and RUN/adapter_ema. Only process 0 writes."""
        averaged = {FINISHED: False} | ({AVERAGE: True} if self.request.config.ema is not None else {})
        # The checkpoint last: it marks the run as finished.
        for name in reversed(averaged):
            exported = saver.export(averaged[name])
            if saver.process == 0:
                self.check_held()
                config, lora = self._checkpoint_config(step), self.request.config.lora
                if lora.rank:
                    folder = self.folder / name.replace(FINISHED, ADAPTER)
                    init = self.request.init
                    base = None if init is None else str(absolute(location(init)))
                    write_adapters(folder, exported, lora, config, base)
                    logger.info("%s: the adapters by themselves, in peft's format", folder)
                merged = merged_arrays(exported, config.model, lora)
                save_checkpoint(self.folder / name, Checkpoint.of(config, merged))
        return tuple(self.folder / name for name in averaged)

    def _checkpoint_config(self, step: int) -> CheckpointConfig:
        request, before = self.request, self.request.provenance
        resampled = tuple(
            done.replace(trained_since=done.trained_since or step > 0) for done in before.position_resampling
        )
        return CheckpointConfig(
            model=request.config.model,
            preprocessing=request.config.preprocessing,
            labels=request.labels,
            probabilities=request.config.loss,
            provenance=before.replace(run=absolute(self.folder).name, step=step, position_resampling=resampled),
        )


def read_request(run: Location) -> Request:
    """The request of a run, from its run.json. Raises InputError if it cannot be read."""
    try:
        fields = json.loads((run / RUN).read_text())
    except FileNotFoundError:
        raise InputError(
            f"{run}: no training run (no {RUN} in it); name the folder that a run was written to"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{run / RUN}: cannot be read ({error})") from None
    return Request.parse(fields, str(run / RUN))


def differences(here: Request, there: Request) -> list[str]:
    """The fields that make two requests different runs, each with both values."""
    ours, theirs = flatten(here.model_dump(mode="json")), flatten(there.model_dump(mode="json"))
    names = [
        name
        for name in dict.fromkeys([*ours, *theirs])
        if ours.get(name) != theirs.get(name) and name not in CHANGEABLE
    ]
    return [
        "the images or their labels are others"
        if name == "examples"
        else f"{name.removeprefix('config.')} is {theirs.get(name)} there and {ours.get(name)} here"
        for name in names
    ]
