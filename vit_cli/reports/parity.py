"""Prints differences between two models."""

from collections.abc import Iterable, Sequence

from vit_cli.console import say, say_in, table, verdict
from vit_core.parity import FLOAT64_BOUND, OracleRow, Report, Row

GROUPS = {"grad": "gradients", "step": "one step"}
"""First part of the names of tensors that exist once for each parameter -> their name in the table."""


def print_parity(title: str, report: Report, every_parameter: bool = False) -> None:
    """Prints the stages in order, and the gradients by module (or one by one)."""
    rows = report.rows if every_parameter else summarize(report.rows)
    cells = ((row.name, f"{row.max_abs:.1e}", f"{row.relative:.1e}", verdict(row.ok)) for row in rows)
    table(title, ("tensor", "max abs", "relative", ""), cells)
    say(
        f"bound {FLOAT64_BOUND:.0e}, worst {report.worst.relative:.1e} ({report.worst.name}); "
        f"outputs equal bit for bit once rounded to float32: {report.equal_rounded} of {report.outputs}"
    )
    if report.first_divergence:
        say_in(f"first divergence: {report.first_divergence.name}", "bold red")


def summarize(rows: Iterable[Row]) -> list[Row]:
    """The rows; the gradients of each block (and those outside the blocks) are one row, with the worst of them."""
    kept: list[Row] = []
    worst: dict[str, Row] = {}
    for row in rows:
        kind, _, name = row.name.partition(".")
        if kind not in GROUPS:
            kept.append(row)
            continue
        module = ".".join(name.split(".")[:2]) if name.startswith("blocks.") else "other parameters"
        group = f"{GROUPS[kind]}, {module}"
        if group not in worst or row.relative > worst[group].relative:
            worst[group] = Row(group, row.max_abs, row.relative)
    return kept + list(worst.values())


def print_oracle_report(title: str, rows: Iterable[OracleRow], twins: Sequence[str]) -> None:
    """Prints the relative error of each twin against a float64 reference, and the difference between the twins."""
    cells = []
    for row in rows:
        shown = verdict(row.ok) if row.name == "output" else ""
        cells.append((row.name, f"{row.error_a:.1e}", f"{row.error_b:.1e}", f"{row.apart:.1e}", shown))
    table(title, ("tensor", *(f"{name} error" for name in twins), "difference", ""), cells)
