"""`vit bench all`: the other benchmarks and `vit parity`, one after another, each in its own process and with a time
limit.

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
from vit_cli.requirements import missing
from vit_core import Checkpoint, CheckpointConfig
from vit_core.arrays import convert
from vit_core.checkpoints import save_checkpoint
from vit_core.errors import InputError
from vit_core.parameters import initial_value, parameters
from vit_core.storage import staged_files
from vit_core.variants import variant

MACHINE = "machine.json"
"""File with the machine and the versions."""
CHECKPOINT = "parity-checkpoint"
"""Checkpoint of the parts with `vit parity`."""
_SMALL_PROGRAM = ("--topology", "v5e:2x2", "--variant", "mu/16", "--batch-size", "4")

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


def parts(folder: Path, on_accelerator: bool, quick: bool, peers: Sequence[str] = ()) -> list[Part]:
    """The parts whose packages are installed, the most important first.

    quick: small measurements that only check that everything works. peers: words of `--peer`, such as
    big_vision=../big_vision.
    """
    rounds = "1" if quick else "3"
    peer = tuple(word for each in peers for word in ("--peer", each))
    size = "mu/16" if quick else "B/16" if on_accelerator else "S/16"
    speeds = [
        *_training(on_accelerator, quick, rounds),
        *_models(folder, on_accelerator, quick, rounds, peer),
        *(
            Part(f"input-{filter}", ("bench", "input", "--rounds", rounds, "--interpolation", filter))
            for filter in ("bilinear", "bicubic")
        ),
        Part("scaling", ("bench", "scaling", "--rounds", rounds)),
        Part("startup", ("bench", "startup", "--repeats", rounds)),
        *(
            Part(
                f"predict-{framework}",
                ("bench", "predict", "--framework", framework, "--variant", size, "--repeats", rounds),
            )
            for framework in ("jax", "torch")
        ),
        Part("convert", _convert(folder, "mu/16" if quick else "L/16", rounds)),
    ]
    if not missing(("tensorflow_datasets", "array_record", "pyarrow")):
        speeds.append(Part("sources", ("bench", "sources", "--images", "64" if quick else "2000", "--rounds", rounds)))
    if not missing(("libtpu",)):
        speeds.append(Part("program", ("bench", "program", *(_SMALL_PROGRAM if quick else ()), *peer)))
    # Those of models are continued, and have one file.
    written = [
        part if "--json" in part.words else Part(part.name, (*part.words, "--json", str(folder / f"{part.name}.json")))
        for part in speeds
    ]
    checks = [
        Part(f"parity-{dtype}", ("parity", str(folder / CHECKPOINT), "--dtype", dtype))
        for dtype in ("float64", "float32", "bfloat16")
    ]
    return [*written, *checks]


def _training(on_accelerator: bool, quick: bool, rounds: str) -> list[Part]:
    """The loop beside the bare step, in each framework."""
    size, batch_size, steps, dtype = ("S/16", "8", "5", "float32")
    if quick:
        size, batch_size, steps, dtype = ("mu/16", "4", "8", "float32")
    elif on_accelerator:
        size, batch_size, steps, dtype = ("B/16", "256", "200", "bfloat16")
    cores = os.cpu_count() or 1
    making: tuple[str, ...] = ("--threads", "1", "--workers", str(max(1, min(cores - 2, 32))))
    if quick or not on_accelerator:
        making = ("--threads", str(min(16, cores)))
    return [
        Part(
            f"train-{framework}",
            (
                *("bench", "train", "--framework", framework, "--variant", size, "--batch-size", batch_size),
                *("--dtype", dtype, "--steps", steps, "--rounds", rounds, *making),
            ),
        )
        for framework in ("jax", "torch")
    ]


def _models(folder: Path, on_accelerator: bool, quick: bool, rounds: str, peer: tuple[str, ...]) -> list[Part]:
    """Forward passes and train steps, with a chart for each part and one file for all."""
    both = (False, True)
    settings: list[tuple[str, str, int, tuple[bool, ...]]]
    """Variant, type, batch size, and whether PyTorch's models are compiled."""
    if quick:
        settings = [("mu/16", "float32", 4, (False,))]
    elif on_accelerator:
        settings = [(each, "bfloat16", 128, both[::-1]) for each in ("B/16", "L/16", "S/16", "B/16@384")]
        settings += [("B/16", "float32", 128, both[::-1])]
        settings += [("B/16@512", "bfloat16", 64, (True,)), ("B/16@1024", "bfloat16", 8, (True,))]
    else:
        settings = [(each, dtype, 8, (False,)) for each in ("S/16", "B/16") for dtype in ("float32", "bfloat16")]
    found = []
    for each, dtype, batch_size, ways in settings:
        for compiled in ways:
            name = f"model-{each.replace('/', '').replace('@', '-')}-{dtype}{'-compiled' * compiled}"
            words = ("bench", "model", "--variant", each, "--dtype", dtype, "--batch-size", str(batch_size))
            files = ("--json", str(folder / "model.json"), "--png", str(folder / f"{name}.png"))
            found.append(Part(name, (*words, "--rounds", rounds, *(["--compiled"] * compiled), *peer, *files)))
    return found


def _convert(folder: Path, size: str, repeats: str) -> tuple[str, ...]:
    return ("bench", "convert", "--variant", size, "--folder", str(folder), "--repeats", repeats)


def keep_checkpoint(folder: Path, quick: bool) -> None:
    """Writes a checkpoint with initial weights, which the twins compute for `vit parity`."""
    if (folder / CHECKPOINT).exists():
        return
    config = variant("mu/16" if quick else "Ti/16", 224, 1000)
    arrays = {name: convert(initial_value(row, 0), "float32") for name, row in parameters(config).items()}
    save_checkpoint(folder / CHECKPOINT, Checkpoint.of(CheckpointConfig(model=config), arrays))


def measure_missing(parts: Sequence[Part], folder: Path, minutes: float, show: Callable[[str], None]) -> list[str]:
    """Runs the parts whose results are not in the folder, as long as there is time; returns the names of the parts that
    are still missing."""
    begin, left_out = time.monotonic(), []
    for number, part in enumerate(parts, 1):
        if part.result(folder).exists():
            show(f"{number}/{len(parts)} {part.name}: measured before, in {part.result(folder)}")
            continue
        left = minutes - (time.monotonic() - begin) / 60
        if left < min(PART_MINUTES, minutes / len(parts)):
            left_out.append(part.name)
            continue
        show(f"{number}/{len(parts)} {part.name}: vit {' '.join(part.words)}")
        why = measure(part, folder, min(left, PART_MINUTES), show)
        if why is not None:
            show(f"{part.name}: {why}")
            left_out.append(part.name)
    return left_out


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
