"""What a long task shows while it is under way."""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vit_train.preflight import PreflightReport


class Task:
    """A task whose steps are counted; this one shows nothing."""

    def update(self, completed: int, note: str | None = None) -> None:
        """Shows that so many steps are completed, and a note beside them; None keeps the last note."""


class Display:
    """Shows nothing. A program that wants progress passes a subclass, as the `vit` command does."""

    def task(self, title: str, total: int, completed: int = 0) -> AbstractContextManager[Task]:
        """Shows a task of `total` steps, of which `completed` are done, until the context ends."""
        return nullcontext(Task())

    def working(self, text: str) -> AbstractContextManager[None]:
        """Shows a text, for work whose steps cannot be counted, until the context ends."""
        return nullcontext()

    def preflight(self, report: "PreflightReport") -> None:
        """Shows what processes and devices will do, before training begins."""


SILENT = Display()
"""The display of programs that want none, and of all processes of a run but the first."""
