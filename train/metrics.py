"""What a run logs: RUN/metrics.jsonl, a line of JSON for each time, and the same numbers as TensorBoard events.

A store has no file to append to: there both are written beside the run, and put there whole before a step is saved (so
that a run which goes on from that step has all lines up to it), after an evaluation, at the end, and each minute.
"""

import json
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, Self

from tensorboardX import SummaryWriter

from vit_core.errors import InputError
from vit_core.places import Stored, StoreError

METRICS, EVENTS = "metrics.jsonl", "tensorboard"
MINUTE = 60.0


class Metrics:
    """Appends to a run's metrics; on a run that goes on at step `start`, what was logged beyond it is dropped first.

    written: false in all processes of a run but one.
    """

    def __init__(self, run: Path, start: int, tensorboard: bool = True, written: bool = True) -> None:
        self.file, self.events = None, None
        self.store, self.flushed = None, time.monotonic()
        if not written:
            return
        kept = [line for line in read(run / METRICS) if line["step"] <= start]
        if isinstance(run, Stored):
            self.store, self.folder = run, tempfile.TemporaryDirectory(prefix="vit-")
            run = Path(self.folder.name)
        path = run / METRICS
        draft = path.with_suffix(".draft")
        draft.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(draft, path)
        self.file = open(path, "a", buffering=1)  # noqa: SIM115 (closed at exit)
        # The suffix tells files of one second apart; TensorBoard drops what earlier files have from the purge step on.
        events = str(run / EVENTS)
        self.events = SummaryWriter(events, purge_step=start + 1, filename_suffix=f".{start}") if tensorboard else None

    def write(self, step: int, **values: Any) -> None:
        """Logs values at a step (from 1); numbers become curves in TensorBoard, the rest stands in the lines alone.

        InputError where the disk is full.
        """
        if self.file is None:
            return
        try:
            self.file.write(json.dumps({"step": step, **values}) + "\n")
            for name, value in values.items():
                if self.events and isinstance(value, int | float):
                    self.events.add_scalar(name, value, step)
        except OSError as error:
            raise InputError(f"{self.file.name}: cannot write there ({error.strerror}); make room") from None
        if time.monotonic() - self.flushed > MINUTE:
            with suppress(StoreError):  # there is time until a step is saved
                self.flush()

    def flush(self) -> None:
        """Puts what was logged so far into the store, if the run is in one."""
        if self.store is None:
            return
        if self.events:
            self.events.flush()
        self.flushed, here = time.monotonic(), Path(self.folder.name)
        for file in [here / METRICS, *here.glob(f"{EVENTS}/*")]:
            (self.store / file.relative_to(here)).put(file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        for sink in (self.file, self.events):
            if sink is not None:
                with suppress(OSError):  # of a line that the full disk has refused already
                    sink.close()
        if self.store is None:
            return
        self.events = None
        with suppress(OSError, StoreError) if kind else nullcontext():  # what has gone wrong already is to be told
            self.flush()
        self.folder.cleanup()


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file that are whole; none where there is no file."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue  # cut by a kill
    return lines


def curve(lines: Sequence[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one quantity."""
    found = [(line["step"], line[name]) for line in lines if name in line]
    return [step for step, _ in found], [value for _, value in found]
