"""How reports and progress look in a terminal."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.status import Status
from rich.table import Table
from rich.text import Text

from vit_core.errors import one_line
from vit_core.parity import FLOAT64_BOUND, OracleRow, Report, Row

if TYPE_CHECKING:
    from vit_core.bench import Cost
    from vit_torch.proofs import Proof

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
    console.print(one_line(text), markup=False, highlight=False, soft_wrap=True)


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


def inspection(report: Mapping[str, Any], chosen: Mapping[str, Any]) -> None:
    """Prints what vit_core.inspection.report found; `chosen` are the fields of the config that are not the paper's."""
    say(f"{report['path']}: {report['format']}, {report['parameters']:,} parameters")
    for note in report["notes"]:
        say(f"  {note}")
    grid, types = "x".join(map(str, report["grid"])), ", ".join(f"{n:,} {t}" for t, n in report["dtypes"].items())
    say(f"grid {grid}, prefix tokens {report['prefix_tokens']}, types {types}")
    table("config, where it is not the paper's", ("field", "value"), ((name, _plain(x)) for name, x in chosen.items()))
    rows = ((name, f"{m['parameters']:,}", f"{m['bytes'] / 2**20:,.2f} MiB") for name, m in report["modules"].items())
    table("parameters", ("module", "number", "stored"), rows)
    for line in report["suspicious"]:
        console.print(Text(one_line(f"suspicious: {line}"), style="yellow"), soft_wrap=True)


def _plain(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def costs(title: str, found: "Iterable[Cost]") -> None:
    """Prints what conversions cost beside a copy of the file."""
    rows = (
        (
            f"{c.source} to {c.target}",
            f"{c.copy_seconds:.2f} s",
            f"{c.seconds:.2f} s",
            f"{c.times_copy:.1f}",
            f"{c.peak_bytes / 1e6:,.0f} MB",
            f"{c.times_file:.3f}",
        )
        for c in found
    )
    table(title, ("", "copy", "convert", "times the copy", "anonymous memory", "times the file"), rows)


def proofs(found: "Iterable[Proof]", read_only: Mapping[str, str]) -> None:
    """Prints what was seen of each format."""
    rows = []
    for proof in found:
        apart = (
            ""
            if proof.format == "vit"
            else "no such model there"
            if proof.difference is None
            else f"{proof.difference.relative:.1e}"
        )
        kept = "equal bits" if proof.same_bits and proof.same_file else "[bold red]CHANGED[/]"
        rows.append((proof.format, proof.model, kept, apart, _verdict(proof.ok)))
    rows += [(format, what, "read only", "see parity_tests/formats", "") for format, what in read_only.items()]
    columns = ("format", "model", "there and back", "from its own library", "")
    table("float64, relative to the largest output", columns, rows)
