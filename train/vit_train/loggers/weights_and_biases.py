"""Weights & Biases: an offline run in the run's folder, or a run on a server if WANDB_MODE asks for it."""

import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

from vit_train.loggers.interface import LoggedRun, one_line_errors

SERVICE, FOLDER, _ID, _LAST = "wandb", "wandb", "wandb.id", "last-step"


def is_online() -> bool:
    """Whether the environment asks for a server; by default nothing is sent anywhere."""
    return os.environ.get("WANDB_MODE", "offline") not in ("offline", "dryrun", "disabled")


class WeightsAndBiases:
    """Logs to one run of Weights & Biases, also after a resume.

    Online, the server reports its last step. Offline, each process writes its own file, and wandb keeps part of it in
    memory, so that the file of a killed process is incomplete. Therefore the file of a process that resumes contains
    everything from the beginning and replaces the earlier files. If those were sent to a server (`wandb sync`), it
    begins after the last step that they may contain.
    """

    def __init__(self, run: LoggedRun) -> None:
        with one_line_errors(SERVICE):
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
            import wandb

            online, number = is_online(), _identity(run)
            self._last = run.folder / FOLDER / _LAST
            self._has = 0 if online else _sent(run.folder / FOLDER, number, self._last)
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "vit-parity"),
                dir=str(run.folder),
                id=number,
                name=run.name,
                config=dict(run.config),
                resume="allow",
                mode=None if "WANDB_MODE" in os.environ else "offline",
                reinit="create_new",
                settings=wandb.Settings(console="off", silent=True, disable_git=True, save_code=False),
            )
            if online:
                self._has = self._run.starting_step - 1

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds values to the curves at a step, unless they were sent before."""
        if step <= self._has:
            return
        with one_line_errors(SERVICE):
            _replace_text(self._last, str(step))
            self._run.log(dict(values), step=step)

    def flush(self) -> None:
        """Does nothing: wandb decides when to write."""

    def close(self, complete: bool) -> None:
        """Waits until everything is written, and sent to the server if there is one."""
        with one_line_errors(SERVICE):
            self._run.finish(exit_code=0 if complete else 1)


def _identity(run: LoggedRun) -> str:
    """The ID of the run in Weights & Biases, which is stored in its folder."""
    file = run.run / _ID
    if not file.is_file():
        file.write_text(uuid.uuid4().hex[:12])
    return file.read_text().strip()


def _sent(folder: Path, number: str, last: Path) -> int:
    """The last step that the files of earlier processes may contain, if some of them were sent to a server. Otherwise
    0, and all these files are removed."""
    files = [path for path in folder.glob(f"offline-run-*-{number}") if path.is_dir()]
    sent = [path for path in files if any(path.glob("*.synced"))]
    if sent:
        return int(last.read_text()) if last.is_file() else 0
    for path in files:
        shutil.rmtree(path, ignore_errors=True)
    last.unlink(missing_ok=True)
    return 0


def _replace_text(file: Path, text: str) -> None:
    draft = file.with_suffix(".draft")
    draft.write_text(text)
    os.replace(draft, file)
