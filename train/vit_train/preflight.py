"""Checks before a run that its data can be read, that its folder can be written and that all its processes agree;
reports their devices and speeds.
"""

import json
import logging
import platform
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from typing import Any

import numpy as np

from vit_core.checkpoints.run_folder import saved_steps
from vit_core.errors import InputError, abbreviate
from vit_core.storage import Location, absolute, is_local
from vit_train.config import Mesh, TrainConfig, flatten
from vit_train.data import checking
from vit_train.data.batches import Batches
from vit_train.data.checking import Checked
from vit_train.data.mapped_images import cache_folder
from vit_train.data.sources import Split
from vit_train.data.streams import stream
from vit_train.display import SILENT, Display
from vit_train.engine import Engine
from vit_train.loggers import check_loggers
from vit_train.processes import Processes
from vit_train.run import Run

logger = logging.getLogger("vit")

PACKAGES = ("vit-parity", "numpy", "jax", "jaxlib", "torch", "grain", "Pillow")
"""Packages that influence the numbers a run computes."""
PROBE_SECONDS, PROBE_BATCHES = 3.0, 8
"""Limits of the measurement of the speed of making batches: its seconds, and its number of batches."""


@dataclass(frozen=True)
class ProcessReport:
    """One process of a run."""

    host: str
    devices: str
    """Its devices, as text for messages."""
    rows: str
    """The rows of a batch that it makes: "0-7, 16-23"."""
    images_per_second: float
    """Speed at which it makes batches."""


@dataclass(frozen=True)
class PreflightReport:
    """The processes, devices and memory of a run."""

    engine: str
    processes: tuple[ProcessReport, ...]
    mesh: Mesh
    """The config's mesh over the devices that there are."""
    state_bytes: Mapping[str, tuple[int, int]]
    """Bytes of each array of the state, in total and on one device."""
    images_per_second: float
    """Speed at which all processes together make batches: training cannot be faster."""


def check_options(run: Run) -> None:
    """Raises InputError for a logger that cannot be used, and for an image_cache_folder that can be none; nothing is
    opened or written."""
    config = run.request.config
    check_loggers(config.loggers, run.folder)
    if config.image_cache_folder is not None:
        cache_folder(config.image_cache_folder)


def check_space(out: Location, engine: Engine) -> None:
    """Raises InputError if the disk of a run's folder has no space for one saved step; a warning if there is not enough
    for all that the run keeps."""
    if not is_local(out):
        return
    state = sum(total for total, _ in engine.state_bytes.values())
    config, free = engine.config, shutil.disk_usage(next(p for p in (out, *out.resolve().parents) if p.exists())).free
    needed = state * (config.keep + config.keep_best + 1)
    unit, name = (2**30, "GiB") if state >= 2**30 else (2**20, "MiB")
    text = f"{out}: {free / unit:,.1f} {name} free, and a saved step takes {state / unit:,.1f}"
    if free < state:
        raise InputError(f"{text}; free some space, or choose another --out")
    if free < needed:
        logger.warning("%s, of which the run keeps up to %d", text, config.keep + config.keep_best + 1)


def check_data(
    processes: Processes, training: Split, evaluation: Split, config: TrainConfig, display: Display = SILENT
) -> None:
    """Checks the images of both splits before a run begins, and logs the checks and their results.

    Processes share the work. Raises InputError if there are more unreadable images than the run allows.
    """
    first = processes.index == 0
    checked = [_checked(processes, split, config, display if first else SILENT) for split in (training, evaluation)]
    for one, limit in zip(checked, (config.undecodable_limit, None if config.allow_undecodable else 0), strict=True):
        if limit is not None and len(one.unreadable) > limit:
            option = "--allow-undecodable to skip them" if one.split is evaluation else "a larger undecodable_limit"
            raise InputError(f"{checking.unreadable_line(one)}; fix or remove them, or set {option}")
    if not first:
        return
    logger.info("checked %s", "; ".join(one.summary for one in checked))
    for one in checked:
        if one.unreadable:
            logger.warning("%s; they will be skipped", checking.unreadable_line(one))
        if one.turned and not config.preprocessing.exif_rotation:
            logger.warning(
                "%s: %d of %d images have an EXIF rotation that is not applied; --preprocessing.exif-rotation does so",
                one.split.title, one.turned, len(one.split),
            )  # fmt: skip
        if missing := checking.missing_classes(one.split):
            logger.warning("%s: classes without an image: %s", one.split.title, abbreviate(missing))
    as_they_are = config.masked is None and not config.class_weights and config.sampling == "shuffled"
    if as_they_are and (line := checking.imbalance_line(training, evaluation)):
        logger.info("%s", line)
    if config.masked is None and (line := checking.copies_line(checked[0])):
        logger.warning("%s", line)
    if pairs := checking.duplicates(*checked):
        a, b = pairs[0]
        logger.warning(
            "%d of the %d images of %s are in %s too, byte for byte (%s is %s): its accuracy will be too high",
            len(pairs), len(evaluation), evaluation.title, training.title, evaluation.name(b), training.name(a),
        )  # fmt: skip


def _checked(processes: Processes, split: Split, config: TrainConfig, display: Display) -> Checked:
    """The results of all processes for a split."""
    ours = checking.check_split(split, config.preprocessing, display, (processes.index, processes.count))
    decoded, headers, turned = map(int, processes.total(np.array([ours.decoded, ours.headers, ours.turned])))
    found = gather_texts(processes, json.dumps(ours.unreadable))
    unreadable = {int(i): reason for text in found for i, reason in json.loads(text).items()}
    return Checked(split, decoded, headers, processes.total(ours.digests_N), unreadable, turned)


def check_agreement(processes: Processes, run: Run) -> None:
    """Raises InputError, the same in every process, if they differ in version, config, data or the saved steps that
    they find."""
    seen = {"out": str(absolute(run.folder)), "saved steps": [step.name for step in saved_steps(run.folder)]}
    ours = flatten({"versions": versions(), "run": run.request.model_dump(mode="json"), **seen})
    every = [json.loads(text) for text in gather_texts(processes, json.dumps(ours))]
    if found := disagreements(every):
        raise InputError(f"processes disagree: {'; '.join(found)}; start the same command everywhere")


def disagreements(every: Sequence[Mapping[str, Any]]) -> list[str]:
    """The fields that are not the same in all processes, with the first two values and the processes that have them."""
    found = []
    for name in dict.fromkeys(name for one in every for name in one):
        values = [one.get(name) for one in every]
        other = next((i for i, value in enumerate(values) if value != values[0]), None)
        if other is not None:
            what = name.removeprefix("run.").removeprefix("config.")
            found.append(f"{what} is {values[0]} in process 0 and {values[other]} in process {other}")
    return found


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that influence numbers; "none" for one that is not installed."""
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found


def gather_texts(processes: Processes, text: str) -> list[str]:
    """Every process's text, in the order of the processes."""
    ours = np.frombuffer(text.encode(), np.uint8)
    lengths = np.zeros(processes.count, np.int64)
    lengths[processes.index] = len(ours)
    lengths = processes.total(lengths)
    table = np.zeros((processes.count, int(lengths.max())), np.uint8)
    table[processes.index, : len(ours)] = ours
    return [row[:length].tobytes().decode() for row, length in zip(processes.total(table), lengths, strict=True)]


def preflight(processes: Processes, engine: Engine, batches: Batches) -> PreflightReport:
    """Measures how fast each process makes batches, and gathers what all of them have; every process has to call it."""
    speed = loader_speed(batches)
    ours = [socket.gethostname(), engine.hardware, spans_of_rows(engine.rows(engine.config.batch_size)), speed]
    every = [json.loads(text) for text in gather_texts(processes, json.dumps(ours))]
    # Processes that share a tensor axis make the same rows, each for itself.
    total = float(processes.total(np.array(speed if engine.primary else 0.0)))
    mesh = engine.config.mesh.over(engine.devices, engine.config.model)
    reports = tuple(ProcessReport(*fields) for fields in every)
    return PreflightReport(engine.name, reports, mesh, dict(engine.state_bytes), total)


def loader_speed(batches: Batches) -> float:
    """Images that this process makes in a second, measured over the run's first batches."""
    config, made = batches.config, 0
    first = config.continues.step if config.continues else 0
    which = slice(first, first + PROBE_BATCHES)
    probe = islice(stream(batches, which, config.threads, config.workers), PROBE_BATCHES)
    next(probe)  # workers take seconds to start
    begin = time.perf_counter()
    for batch in probe:
        made += len(batch.images_BHWC)
        if time.perf_counter() - begin > PROBE_SECONDS:
            break
    return made / (time.perf_counter() - begin)


def spans_of_rows(rows: np.ndarray) -> str:
    """Rows of a batch, abbreviated: "0-7, 16-23"."""
    cuts = np.flatnonzero(np.diff(rows) != 1) + 1
    return ", ".join(f"{part[0]}-{part[-1]}" for part in np.split(rows, cuts))
