"""How reports and progress look in a terminal."""

import sys
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.status import Status
from rich.table import Table
from rich.text import Text

from vit_core.parity import FLOAT64_BOUND, OracleRow, Report, Row

# Not cut to 80 columns where nobody sees a terminal (a file, a log).
console = Console(width=None if sys.stdout.isatty() else 110)


def progress(shown: bool = True) -> Progress:
    """A progress bar with step, free text (`note`), elapsed and remaining time; nothing unless shown."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("<"),
        TimeRemainingColumn(),
        console=console,
        disable=not shown,
    )


def say(text: str) -> None:
    """Prints a line as it is: no markup, no wrapping."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def working(text: str) -> Status:
    """A spinner beside a text, for what cannot count its steps; nothing where nobody sees a terminal."""
    return console.status(text)


def table(title: str, columns: Sequence[str], rows: Iterable[Iterable[object]], notes: bool = False) -> None:
    """Prints a table; every column but the first is right-aligned, and the last too unless it holds notes."""
    drawn = Table(title=Text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        left = not i or (notes and i == len(columns) - 1)
        drawn.add_column(column, justify="left" if left else "right", no_wrap=True)
    for row in rows:
        drawn.add_row(*map(str, row))
    console.print(drawn)


def parity_report(title: str, report: Report, every_parameter: bool = False) -> None:
    """Prints a parity table: the stages in order, and the gradients by module (or each)."""
    rows = report.rows if every_parameter else summarised(report.rows)
    table(title, ("tensor", "max abs", "relative", ""), (_cells(row) for row in rows))
    say(
        f"bound {FLOAT64_BOUND:.0e}, worst {report.worst.relative:.1e} ({report.worst.name}); "
        f"outputs equal bit for bit once rounded to float32: {report.equal_rounded} of {report.outputs}"
    )
    if report.first_divergence:
        console.print(f"[bold red]first divergence: {report.first_divergence.name}[/]")


STEM = {"grad": "gradients", "step": "one step"}
"""Kinds of tensors there is one of for each parameter, and what the table calls them."""


def summarised(rows: Iterable[Row]) -> list[Row]:
    """Gradients gathered into one row for each block (and one for what stands outside): the worst of them."""
    kept: list[Row] = []
    worst: dict[str, Row] = {}
    for row in rows:
        kind, _, name = row.name.partition(".")
        if kind not in STEM:
            kept.append(row)
            continue
        module = ".".join(name.split(".")[:2]) if name.startswith("blocks.") else "other parameters"
        group = f"{STEM[kind]}, {module}"
        if group not in worst or row.relative > worst[group].relative:
            worst[group] = Row(group, row.max_abs, row.relative)
    return kept + list(worst.values())


def _cells(row: Row) -> tuple[str, ...]:
    return row.name, f"{row.max_abs:.1e}", f"{row.relative:.1e}", _verdict(row.ok)


def _verdict(ok: bool) -> str:
    return "[green]ok[/]" if ok else "[bold red]OUT[/]"


def oracle_report(title: str, rows: Iterable[OracleRow]) -> None:
    """Prints each twin's relative error against a float64 oracle, and how far the twins are apart."""
    cells = []
    for row in rows:
        verdict = _verdict(row.ok) if row.name == "output" else ""
        cells.append((row.name, f"{row.error_a:.1e}", f"{row.error_b:.1e}", f"{row.apart:.1e}", verdict))
    table(title, ("tensor", "JAX error", "PyTorch error", "apart", ""), cells)
