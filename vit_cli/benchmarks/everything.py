"""`vit bench all`: all other benchmarks, one after another, each in its own process and with a time limit.

The output of each part is kept in a file of the folder. A part with such a file is not measured again, so the series
can be stopped and continued, for example on a machine that is available only for half an hour at a time.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vit_cli.benchmarks.machine import Machine
from vit_core.errors import InputError
from vit_core.storage import staged_files

MACHINE = "machine.json"
"""File with the machine and the versions."""

PART_MINUTES = 8
"""Time limit of one part, in minutes."""
WIDE = {**os.environ, "COLUMNS": "160"}
"""Environment of a part, in which tables are not cut to the width of a narrow terminal."""
_TO_END = 20
"""Seconds after which a part that does not end by itself is killed."""


@dataclass(frozen=True)
class Part:
    """One command, whose output is kept in one file."""

    name: str
    words: tuple[str, ...]
    """Command line, without `vit`."""

    def result(self, folder: Path) -> Path:
        """The file with its output, which exists if the part is complete."""
        return folder / f"{self.name}.txt"


def keep_machine(machine: Machine, folder: Path) -> None:
    """Writes a description of the machine next to the results. Raises InputError if these are from another machine or
    other versions."""
    file, text = folder / MACHINE, json.dumps(machine.model_dump(mode="json"), indent=1) + "\n"
    if file.exists() and file.read_text() != text:
        raise InputError(f"--folder {folder}: measured on another machine or with other versions; choose another")
    with staged_files(folder, (MACHINE,)) as stage:
        (stage / MACHINE).write_text(text)


def parts(folder: Path, on_accelerator: bool, quick: bool) -> list[Part]:
    """The parts, the most important first. quick: small measurements that only check that everything works."""
    models: dict[str, tuple[str, ...]]
    if quick:
        models, batch, loop, rounds = {"float32": ("mu/16",)}, 4, ("mu/16", "4", "8", "float32"), "1"
    elif on_accelerator:
        models, batch, rounds = {"bfloat16": ("B/16", "L/16", "S/16", "B/16@384"), "float32": ("B/16",)}, 128, "3"
        loop = "B/16", "256", "200", "bfloat16"
    else:
        models, batch, loop, rounds = (
            {"float32": ("S/16",), "bfloat16": ("S/16",)},
            8,
            ("S/16", "8", "5", "float32"),
            "3",
        )
    variant, loop_batch, steps, dtype = loop
    cores = os.cpu_count() or 1
    making: tuple[str, ...] = ("--threads", "1", "--workers", str(max(1, min(cores - 2, 32))))
    if quick or not on_accelerator:
        making = ("--threads", str(min(16, cores)))
    training = [
        Part(
            f"train-{framework}",
            (
                *("bench", "train", "--framework", framework, "--variant", variant, "--batch-size", loop_batch),
                *("--dtype", dtype, "--steps", steps, "--rounds", rounds, *making),
            ),
        )
        for framework in ("jax", "torch")
    ]
    measured = [
        Part(
            f"model-{each.replace('/', '').replace('@', '-')}-{dtype}{'-compiled' * compiled}",
            (
                *("bench", "model", "--variant", each, "--dtype", dtype, "--batch-size", str(batch)),
                *("--rounds", rounds, "--json", str(folder / "model.json"), *(["--compiled"] if compiled else [])),
            ),
        )
        for dtype, variants in models.items()
        for each in variants
        for compiled in ((True, False) if on_accelerator and not quick else (False,))
    ]
    others = [
        Part("input-bilinear", ("bench", "input", "--rounds", rounds)),
        Part("input-bicubic", ("bench", "input", "--rounds", rounds, "--interpolation", "bicubic")),
        Part("scaling", ("bench", "scaling", "--rounds", rounds)),
        Part("startup", ("bench", "startup", "--repeats", rounds)),
    ]
    return [*training, *measured, *others]


def measure_missing(parts: Sequence[Part], folder: Path, minutes: float, show: Callable[[str], None]) -> list[str]:
    """Runs the parts whose results are not in the folder, as long as there is time; returns the names of the parts that
    are still missing."""
    begin, missing = time.monotonic(), []
    for number, part in enumerate(parts, 1):
        if part.result(folder).exists():
            show(f"{number}/{len(parts)} {part.name}: measured before, in {part.result(folder)}")
            continue
        left = minutes - (time.monotonic() - begin) / 60
        if left < min(PART_MINUTES, minutes / len(parts)):
            missing.append(part.name)
            continue
        show(f"{number}/{len(parts)} {part.name}: vit {' '.join(part.words)}")
        why = measure(part, folder, min(left, PART_MINUTES), show)
        if why is not None:
            show(f"{part.name}: {why}")
            missing.append(part.name)
    return missing


def measure(part: Part, folder: Path, minutes: float, show: Callable[[str], None]) -> str | None:
    """Runs a part and shows its output; returns the reason if it is not complete, otherwise None.

    Standard error, with the progress, is that of this process. The part and the processes that it starts are one
    process group, which is ended at the time limit.
    """
    begin = time.perf_counter()
    command = [sys.executable, "-m", "vit_cli", *part.words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True, env=WIDE)
    try:
        printed, _ = process.communicate(timeout=60 * minutes)
    except subprocess.TimeoutExpired:
        return f"not complete after {minutes:g} minutes"
    finally:
        _end(process)
    for line in printed.rstrip().splitlines():
        show(line)
    if process.returncode not in (0, 1):  # 1: a limit was exceeded, which is a result
        return f"ended with status {process.returncode}"
    with staged_files(folder, (part.result(folder).name,)) as stage:
        text = f"vit {' '.join(part.words)}\n{printed}({time.perf_counter() - begin:.0f} s)\n"
        (stage / part.result(folder).name).write_text(text)
    return None


def _end(process: "subprocess.Popen[str]") -> None:
    """Ends the process and the processes that it has started, if it has not ended by itself."""
    if process.poll() is None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            os.killpg(process.pid, number)
            try:
                process.communicate(timeout=_TO_END)
                return
            except subprocess.TimeoutExpired:
                continue
