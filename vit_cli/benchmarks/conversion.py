"""`vit bench convert`: time and memory of converting a large checkpoint, compared with a copy of the file in the same
run.

Both end with the bytes flushed to the disk. The conversion runs in its own process, whose anonymous memory (memory that
the kernel cannot drop and read again from a file; /proc/PID/status, Linux) is sampled. Its time is that of opening and
writing, without the start of Python, or of PyTorch if a .pth file needs it.
"""

import importlib
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vit_core import variants
from vit_core.arrays import LazyArray, LazyArrays
from vit_core.checkpoints import Checkpoint, CheckpointConfig, open_checkpoint, save_checkpoint
from vit_core.config import ViTConfig
from vit_core.errors import InputError
from vit_core.parameters import parameters

_SAMPLE = 0.002
"""Seconds between two samples of a process's memory."""
_FILES = {
    "vit": "ours",
    "timm": "timm.safetensors",
    "timm .pth": "timm.pth",
    "google": "google.npz",
    "transformers": "folder",
}
_PAIRS = (
    ("vit", "timm"),
    ("timm", "vit"),
    ("vit", "timm .pth"),
    ("timm .pth", "vit"),
    ("timm", "google"),
    ("google", "vit"),
    ("vit", "transformers"),
)


@dataclass(frozen=True)
class Cost:
    """Time and memory of one conversion: of the repeats the shortest time (other programs can only increase it), and
    the largest memory."""

    source: str
    target: str
    bytes: int
    copy_seconds: float
    seconds: float
    peak_bytes: int
    """Largest anonymous memory, minus that of the process before the conversion."""

    @property
    def times_copy(self) -> float:
        return self.seconds / self.copy_seconds

    @property
    def times_file(self) -> float:
        return self.peak_bytes / self.bytes


def model_of(spelled: str) -> ViTConfig:
    """A published architecture with conventions that every format can store."""
    return variants.variant(spelled, 224, 1000, activation="gelu")


def measure(config: ViTConfig, folder: Path, repeats: int) -> Iterator[Cost]:
    """The cost of each conversion from one format into another, as soon as it is measured."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="bench-") as scratch:
        checkpoint = Checkpoint(CheckpointConfig(model=config), _random(config))
        for source, target in _PAIRS:
            if not (path := Path(scratch) / _FILES[source]).exists():
                save_checkpoint(path, checkpoint, format=source.split()[0], allow_lossy=True)
            yield _cost(source, target, Path(scratch), repeats)


def _random(config: ViTConfig) -> LazyArrays:
    rng = np.random.default_rng(0)

    def drawn(shape: tuple[int, ...]) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    rows = parameters(config).items()
    return LazyArrays({name: LazyArray(row.shape, "float32", partial(drawn, row.shape)) for name, row in rows})


def _cost(source: str, target: str, scratch: Path, repeats: int) -> Cost:
    path, out = scratch / _FILES[source], scratch / f"out-{_FILES[target]}"
    file = path / "model.safetensors" if path.is_dir() else path
    copies, conversions, peaks = [], [], []
    for _ in range(repeats):
        copies.append(_copy(file, scratch / "copy"))
        seconds, peak = _watched(path, out, target.split()[0])
        conversions.append(seconds)
        peaks.append(peak)
    size = file.stat().st_size
    return Cost(source, target, size, min(copies), min(conversions), max(peaks))


def _copy(source: Path, target: Path) -> float:
    start = time.perf_counter()
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    target.unlink()
    return seconds


def _watched(source: Path, target: Path, to: str) -> tuple[float, int]:
    """Seconds, and the highest anonymous memory in bytes, of one conversion in a new process."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_converted, args=(source, target, to, theirs))
    process.start()
    theirs.close()
    try:
        before = peak = ours.recv()
        while not ours.poll(_SAMPLE):
            peak = max(peak, _anonymous(process.pid))
        seconds: float = ours.recv()
    except EOFError:
        raise InputError(f"{source}: converting to {to} ended without a result; see its messages above") from None
    process.join()
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink()
    return seconds, peak - before


def _converted(source: Path, target: Path, to: str, pipe: Any) -> None:
    if ".pth" in (source.suffix, target.suffix):
        importlib.import_module("torch")
    pipe.send(_anonymous(os.getpid()))
    start = time.perf_counter()
    save_checkpoint(target, open_checkpoint(source), format=to, allow_lossy=True)
    pipe.send(time.perf_counter() - start)


def _anonymous(pid: int | None) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))
