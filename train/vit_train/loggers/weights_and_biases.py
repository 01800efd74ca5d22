"""Weights & Biases: a run in its offline form in the run's folder, or on a server if WANDB_MODE says so."""

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
    """Logs to one run of Weights & Biases, whichever process trains.

    Online, the server says which step it has. Offline, each process writes a file of its own, and wandb keeps some of
    it in memory: a process that is killed leaves it without its end. Therefore the file of a process that resumes
    contains everything since the beginning and replaces the earlier ones, unless those were sent to a server
    (`wandb sync`); then it goes on after the last step that they may contain.
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
        """Nothing: wandb writes when it wants to."""

    def close(self, complete: bool) -> None:
        """Waits until everything is written, and on the server if there is one."""
        with one_line_errors(SERVICE):
            self._run.finish(exit_code=0 if complete else 1)


def _identity(run: LoggedRun) -> str:
    """The identity of the run in Weights & Biases, which its folder remembers."""
    file = run.run / _ID
    if not file.is_file():
        file.write_text(uuid.uuid4().hex[:12])
    return file.read_text().strip()


def _sent(folder: Path, number: str, last: Path) -> int:
    """The last step that earlier processes' files, of which some were sent to a server, may contain; 0 where none was
    sent, and all of them are removed."""
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
