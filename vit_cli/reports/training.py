"""Shows training in the terminal: progress, the preflight table, results."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from time import monotonic

from rich.progress import Progress, TaskID

from vit_cli import console
from vit_cli.console import say, say_wrote, table
from vit_cli.reports.evaluation import print_accuracies
from vit_train.display import Display, Task
from vit_train.preflight import PreflightReport
from vit_train.stages import StageResult

LINE_EVERY = 60.0
"""Seconds between two lines of progress where the output is no terminal."""


class _BarTask(Task):
    """A task with a progress bar."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        self.bar, self.task = bar, task

    def update(self, completed: int, note: str | None = None) -> None:
        fields = {} if note is None else {"note": note}
        self.bar.update(self.task, completed=completed, **fields)  # type: ignore[arg-type]


class _LineTask(_BarTask):
    """A task that also prints a line about once a minute, because a bar is written to a file only at its end."""

    def __init__(self, bar: Progress, task: TaskID, completed: int) -> None:
        super().__init__(bar, task)
        self.first, self.begin = completed, monotonic()
        self.last = self.begin

    def update(self, completed: int, note: str | None = None) -> None:
        super().update(completed, note)
        now, shown = monotonic(), self.bar.tasks[0]
        if now - self.last < LINE_EVERY or not self.first < completed < (shown.total or 0):
            return
        self.last = now
        left = (now - self.begin) / (completed - self.first) * ((shown.total or 0) - completed)
        say(
            f"{shown.description}: {completed:,} of {shown.total:,.0f}, {shown.fields['note']}, "
            f"{timedelta(seconds=round(left))} left".replace(", , ", ", ")
        )


class TerminalDisplay(Display):
    """Shows progress bars, spinners and the preflight table in the terminal."""

    def __init__(self) -> None:
        self._bars = 0

    @contextmanager
    def task(self, title: str, total: int, completed: int = 0) -> Iterator[Task]:
        """A progress bar. A bar within another one is removed when its task ends, and is never written to a file."""
        if self._bars and not console.console.is_terminal:
            yield Task()
            return
        with console.progress(passing=self._bars > 0) as bar:
            self._bars += 1
            try:
                task = bar.add_task(title, total=total, completed=completed, note="starting")
                yield _BarTask(bar, task) if console.console.is_terminal else _LineTask(bar, task, completed)
            finally:
                self._bars -= 1

    @contextmanager
    def working(self, text: str) -> Iterator[None]:
        """A spinner."""
        with console.working(text):
            yield

    def preflight(self, report: PreflightReport) -> None:
        """Prints the table of processes, the mesh, the size of the state, and the speed of making batches."""
        processes = len(report.processes)
        table(
            f"preflight: {report.engine}, {processes} process{'es' * (processes > 1)}",
            ("process", "host", "devices", "rows of a batch", "images/s loaded"),
            (
                (i, process.host, process.devices, process.rows, f"{process.images_per_second:,.0f}")
                for i, process in enumerate(report.processes)
            ),
        )
        total, on_device = (sum(sizes) for sizes in zip(*report.state_bytes.values(), strict=True))
        say(f"mesh       {report.mesh}")
        say(f"state      {on_device / 2**20:,.1f} MiB on each device, of {total / 2**20:,.1f} MiB")
        largest = sorted(report.state_bytes.items(), key=lambda item: -item[1][0])[:3]
        for name, (size, part) in largest:
            say(f"           {part / 2**20:,.2f} of {size / 2**20:,.2f} MiB: {name}")
        say(f"loader     {report.images_per_second:,.0f} images/s in total: training cannot be faster")


def print_stage(result: StageResult) -> None:
    """Prints the accuracy of a run, and the paths of its files; nothing for a run that was stopped."""
    fit = result.fit
    if result.process or (fit.accuracy is None and fit.reconstruction is None):
        return
    if fit.reconstruction is not None:
        say(f"evaluation after {fit.step} steps: loss of the hidden patches {fit.reconstruction:.4f}")
        say("the decoder is not in the checkpoint, only in the run's saved steps, from which it resumes")
    rows = [("weights", fit.accuracy), ("moving average", fit.average)]
    if fit.accuracy is not None:
        print_accuracies(f"evaluation after {fit.step} steps", [(name, found) for name, found in rows if found])
    for folder in fit.folders:
        say(f"checkpoint {folder}")
    if result.curves is not None:
        say_wrote(result.curves)
