"""The terminal: lines, tables, spinners and progress bars. Everything that `vit` prints goes through here."""

import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.status import Status
from rich.table import Column, Table
from rich.text import Text

from vit_core.errors import one_line

console = Console(width=None if sys.stdout.isatty() else 200)
"""Wide enough for every table if the output is a file, a pipe or a log, for which rich would use 80 columns."""


def say(text: str) -> None:
    """Prints a line as it is: no markup, no wrapping."""
    console.print(one_line(text), markup=False, highlight=False, soft_wrap=True)


def say_wrote(*files: object, contents: str = "") -> None:
    """Prints that a command wrote some files or folders. contents: what is in them."""
    say(f"wrote {', '.join(map(str, files))}{f' ({contents})' if contents else ''}")


def say_in(text: str, style: str) -> None:
    """Prints a line in a style of rich, without markup or wrapping."""
    console.print(Text(one_line(text), style=style), soft_wrap=True)


def working(text: str) -> Status:
    """A spinner beside a text, for work whose steps cannot be counted; invisible without a terminal."""
    return console.status(text)


def progress(shown: bool = True, passing: bool = False) -> Progress:
    """A progress bar with the step, a text (field `note`), elapsed and remaining time; invisible unless `shown`.
    passing: remove it from the terminal when it ends.

    In a narrow terminal the bar is shorter and the text is cut.
    """
    whole = Column(no_wrap=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=min(40, max(8, console.width - 106)) if console.is_terminal else 8),
        MofNCompleteColumn(table_column=whole),
        _Note(),
        TimeElapsedColumn(table_column=whole),
        TextColumn("<"),
        TimeRemainingColumn(table_column=whole),
        console=console,
        disable=not shown,
        transient=passing,
    )


class _Note(ProgressColumn):
    """The column that is shortened first in a narrow terminal; the others have one line, which rich keeps."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["note"], no_wrap=True, overflow="ellipsis")


def table(
    title: str, columns: Sequence[str], rows: Iterable[Iterable[object]], notes: bool = False, names: int = 1
) -> None:
    """Prints a table. The first `names` columns are left-aligned, the others right-aligned; so is the last one, unless
    it contains notes."""
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        left = i < names or (notes and i == len(columns) - 1)
        drawn.add_column(column, justify="left" if left else "right", no_wrap=True)
    for row in rows:
        drawn.add_row(*map(str, row))
    if title:
        say_in(title, "bold")  # rich would wrap it at the width of the columns
    console.print(drawn)


def verdict(ok: bool) -> str:
    """A cell that says whether a difference is within its bound."""
    return "[green]ok[/]" if ok else "[bold red]OUT[/]"


@contextmanager
def messages_on_stderr() -> Iterator[None]:
    """Context in which everything printed goes to standard error, because standard output is for data."""
    console.stderr = True
    try:
        yield
    finally:
        console.stderr = False


@contextmanager
def log_messages(name: str = "vit") -> Iterator[None]:
    """Context in which log messages of the training code are printed as lines: errors on stderr, others on stdout."""
    logger, handler = logging.getLogger(name), _LineHandler()
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


class _LineHandler(logging.Handler):
    """Prints each record as one line."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.ERROR:
            print(f"vit: error: {one_line(text)}", file=sys.stderr, flush=True)
        else:
            say(f"warning: {text}" if record.levelno >= logging.WARNING else text)
