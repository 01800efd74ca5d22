"""Before a run: that all its processes are about to do the same, and what they have to do it with."""

import json
import platform
import socket
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from typing import Any

import numpy as np

from vit_core import display
from vit_core.checkpoint import saved_steps
from vit_core.display import say
from vit_core.errors import InputError

from .data import Batches, stream
from .processes import Processes
from .run import Engine, Run, flat

PACKAGES = ("vit-parity", "numpy", "jax", "jaxlib", "torch", "grain", "Pillow")
PROBE_SECONDS, PROBE_BATCHES = 3.0, 8


def agree(processes: Processes, run: Run) -> None:
    """InputError, the same in every process, where they differ in version, config, data or what they see of the run."""
    there = {"out": str(run.folder.resolve()), "saved steps": [step.name for step in saved_steps(run.folder)]}
    ours = flat({"versions": versions(), "run": run.request.model_dump(mode="json"), **there})
    every = [json.loads(text) for text in gathered(processes, json.dumps(ours))]
    if found := disagreements(every):
        raise InputError(f"processes disagree: {'; '.join(found)}; start the same command everywhere")


def disagreements(every: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is not the same in all, with the first two values and who has them."""
    found = []
    for name in dict.fromkeys(name for one in every for name in one):
        values = [one.get(name) for one in every]
        other = next((i for i, value in enumerate(values) if value != values[0]), None)
        if other is not None:
            what = name.removeprefix("run.").removeprefix("config.")
            found.append(f"{what} is {values[0]} in process 0 and {values[other]} in process {other}")
    return found


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide about numbers; of those that are installed."""
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found


def gathered(processes: Processes, text: str) -> list[str]:
    """Every process's text."""
    ours = np.frombuffer(text.encode(), np.uint8)
    lengths = np.zeros(processes.count, np.int64)
    lengths[processes.index] = len(ours)
    lengths = processes.total(lengths)
    table = np.zeros((processes.count, int(lengths.max())), np.uint8)
    table[processes.index, : len(ours)] = ours
    return [row[:length].tobytes().decode() for row, length in zip(processes.total(table), lengths, strict=True)]


def report(processes: Processes, engine: Engine, batches: Batches) -> None:
    """Prints every process with its devices and the speed of its loader, the mesh, and what a device holds."""
    rows = engine.rows(engine.config.batch_size)
    speed = loader_speed(batches)
    row = [socket.gethostname(), engine.hardware, spanned(rows), f"{speed:,.0f}"]
    every = [json.loads(text) for text in gathered(processes, json.dumps(row))]
    # Processes that share a tensor axis make the same rows, each for itself.
    total = float(processes.total(np.array(speed if engine.primary else 0.0)))
    if engine.process:
        return
    display.table(
        f"preflight: {engine.name}, {processes.count} process{'es' * (processes.count > 1)}",
        ("process", "host", "devices", "rows of a batch", "images/s loaded"),
        [(i, *one) for i, one in enumerate(every)],
    )
    say(f"mesh       {engine.config.mesh.over(engine.devices, engine.config.model)}")
    whole, held = (sum(sizes) for sizes in zip(*engine.held.values(), strict=True))
    say(f"state      {held / 2**20:,.1f} MiB on each device, of {whole / 2**20:,.1f} MiB")
    for name, (size, part) in sorted(engine.held.items(), key=lambda item: -item[1][0])[:3]:
        say(f"           {part / 2**20:,.2f} of {size / 2**20:,.2f} MiB: {name}")
    say(f"loader     {total:,.0f} images/s in all: training cannot be faster")


def loader_speed(batches: Batches) -> float:
    """Images that this process makes in a second, of the run's first batches."""
    config, made = batches.config, 0
    some = islice(stream(batches, slice(0, PROBE_BATCHES), config.threads, config.workers), PROBE_BATCHES)
    next(some)  # workers take seconds to start
    begin = time.perf_counter()
    for batch in some:
        made += len(batch.images_BHWC)
        if time.perf_counter() - begin > PROBE_SECONDS:
            break
    return made / (time.perf_counter() - begin)


def spanned(rows: np.ndarray) -> str:
    """Rows of a batch in short."""
    cuts = np.flatnonzero(np.diff(rows) != 1) + 1
    return ", ".join(f"{part[0]}-{part[-1]}" for part in np.split(rows, cuts))
