"""How reports and progress look in a terminal."""

import sys
from collections.abc import Iterable

import numpy as np
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from vit_core.parity import Report, Row, difference

# Not cut to 80 columns where nobody sees a terminal (a file, a log).
console = Console(width=None if sys.stdout.isatty() else 110)


def progress() -> Progress:
    """A progress bar with step, free text (`note`), elapsed and remaining time."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("<"),
        TimeRemainingColumn(),
        console=console,
    )


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Prints a table; every column but the first is right-aligned."""
    drawn = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        drawn.add_column(column, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        drawn.add_row(*map(str, row))
    console.print(drawn)


def parity_report(title: str, report: Report, every_parameter: bool = False) -> None:
    """Prints a parity table: the stages in order, and the gradients by module (or each)."""
    rows = report.rows if every_parameter else summarised(report.rows)
    table(title, ("tensor", "max abs", "relative", "bound", ""), (_cells(row) for row in rows))
    console.print(
        f"outputs equal bit for bit once rounded to float32: {report.equal_rounded} of {report.outputs}; "
        f"worst: {report.worst.name} ({report.worst.relative:.1e})"
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
            worst[group] = Row(group, row.max_abs, row.relative, row.bound)
    return kept + list(worst.values())


def _cells(row: Row) -> tuple[str, ...]:
    verdict = "" if row.bound is None else "[green]ok[/]" if row.ok else "[bold red]OUT[/]"
    return row.name, f"{row.max_abs:.1e}", f"{row.relative:.1e}", f"{row.bound:.0e}" if row.bound else "-", verdict


def oracle_report(
    title: str, in_jax: dict[str, np.ndarray], in_torch: dict[str, np.ndarray], oracle: dict[str, np.ndarray]
) -> None:
    """Prints each twin's relative error against a more precise run, and their ratio."""
    errors = (
        (name, difference(in_jax[name], oracle[name])[1], difference(in_torch[name], oracle[name])[1])
        for name in oracle
        if not name.startswith("grad.")
    )
    rows = ((name, f"{a:.1e}", f"{b:.1e}", f"{a / b:.2f}" if b else "-") for name, a, b in errors)
    table(title, ("tensor", "JAX error", "PyTorch error", "ratio"), rows)
