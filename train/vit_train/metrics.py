"""The log of a run: RUN/metrics.jsonl, one JSON object on each line, and the same numbers for loggers.

Files in a store cannot be appended to. For a run in a store, the lines and TensorBoard's events are written on this
machine, and the whole files are uploaded before a step is saved (so that a run that resumes has all lines up to it),
after an evaluation, at the end, and once a minute.
"""

import json
import logging
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, Self, TextIO

from vit_core.storage import Location, StorageError, StorePath, is_local, unwritable
from vit_train.loggers import Logger, LoggerError, open_loggers
from vit_train.loggers.interface import LoggedRun
from vit_train.loggers.tensorboard import EVENTS

logger = logging.getLogger("vit")

METRICS = "metrics.jsonl"
UPLOAD_SECONDS = 60.0


class Metrics:
    """Appends to a run's metrics; if a run resumes after step `start`, lines of later steps are removed.

    loggers: names for open_loggers. config: the fields of the run's config that loggers show. written: true in one
    process of a run; the others write nothing. Raises LoggerError for a logger that cannot be used.
    """

    def __init__(
        self,
        run: Location,
        start: int,
        loggers: Sequence[str] = ("tensorboard",),
        config: Mapping[str, Any] | None = None,
        written: bool = True,
    ) -> None:
        self.file: TextIO | None = None
        self.loggers: list[Logger] = []
        self.store: StorePath | None = None
        self.uploaded = time.monotonic()
        if not written:
            return
        kept = [line for line in read_metrics(run / METRICS) if line["step"] <= start]
        if is_local(run):
            self.folder = run
        else:
            assert isinstance(run, StorePath)
            self.store, self.local = run, tempfile.TemporaryDirectory(prefix="vit-")
            self.folder = Path(self.local.name)
        path = self.folder / METRICS
        draft = path.with_suffix(".draft")
        draft.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(draft, path)
        self.file = open(path, "a", buffering=1)  # noqa: SIM115 (closed at exit)
        self.loggers = open_loggers(loggers, LoggedRun(run, self.folder, start, config or {}))
        for line in kept:  # a service may lack some of it, if the earlier process was killed
            self._log(line)

    def write(self, step: int, **values: Any) -> None:
        """Logs values at a step (from 1); numbers become curves of the loggers, other values are in the lines only.

        Raises InputError if the disk is full.
        """
        if self.file is None:
            return
        try:
            self.file.write(json.dumps({"step": step, **values}) + "\n")
            self._log({"step": step, **values})
        except OSError as error:
            raise unwritable(self.file.name, error) from None
        if time.monotonic() - self.uploaded > UPLOAD_SECONDS:
            with suppress(StorageError):  # it is uploaded again before a step is saved
                self.upload()

    def upload(self) -> None:
        """Uploads the log so far, if the run is in a store."""
        if self.store is None:
            return
        for each in self.loggers:
            each.flush()
        self.uploaded = time.monotonic()
        for file in [self.folder / METRICS, *self.folder.glob(f"{EVENTS}/*")]:
            (self.store / file.relative_to(self.folder)).upload(file)

    def __enter__(self) -> Self:
        return self

    def _log(self, line: Mapping[str, Any]) -> None:
        """Passes the numbers of a line to the loggers. A logger that fails gets no more."""
        values = {name: value for name, value in line.items() if name != "step" and isinstance(value, int | float)}
        for each in tuple(self.loggers):
            try:
                each.write(line["step"], values)
            except LoggerError as error:
                logger.warning("%s; nothing more is logged there until the run is resumed", error)
                self.loggers.remove(each)

    def __exit__(self, kind: type | None, *_: object) -> None:
        if self.file is not None:
            with suppress(OSError):  # from a line that could not be written to the full disk
                self.file.close()
        for each in self.loggers:
            try:
                each.close(complete=kind is None)
            except LoggerError as error:
                logger.warning("%s", error)
            except OSError:
                pass  # as above
        if self.store is None:
            return
        self.loggers = []
        with suppress(OSError, StorageError) if kind else nullcontext():  # the first error is the one to report
            self.upload()
        self.local.cleanup()


def read_metrics(path: Location) -> list[dict[str, Any]]:
    """The complete lines of a metrics file; empty if the file does not exist."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue  # the process was killed while it wrote the line
    return lines


def curve(lines: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[Any]]:
    """Steps and values of one quantity."""
    logged = [(line["step"], line[name]) for line in lines if name in line]
    return [step for step, _ in logged], [value for _, value in logged]
