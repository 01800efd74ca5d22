"""Interface for showing the progress of long tasks."""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vit_train.preflight import PreflightReport


class Task:
    """A task with a number of steps; this base class shows nothing."""

    def update(self, completed: int, note: str | None = None) -> None:
        """Shows the number of completed steps and a note; None keeps the last note."""


class Display:
    """Shows nothing. A program that shows progress passes a subclass, as the `vit` command does."""

    def task(self, title: str, total: int, completed: int = 0) -> AbstractContextManager[Task]:
        """Shows a task of `total` steps, of which `completed` are done, until the context ends."""
        return nullcontext(Task())

    def working(self, text: str) -> AbstractContextManager[None]:
        """Shows a text, for work whose steps cannot be counted, until the context ends."""
        return nullcontext()

    def preflight(self, report: "PreflightReport") -> None:
        """Shows the processes, devices and memory of a run, before training begins."""


SILENT = Display()
"""The display of programs that show no progress, and of all processes of a run except the first."""
