"""How `vit formats` and `vit bench` show their results."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from vit_cli.console import table, verdict

if TYPE_CHECKING:
    from vit_cli.benchmarks.conversion import Cost
    from vit_cli.format_proofs import Proof


def print_proofs(proofs: "Sequence[Proof]", read_only: Iterable[str]) -> None:
    """Prints what was found for each model in each format; a column for the twins, where they were compared."""
    rows: list[tuple[str, ...]] = []
    twins = any(proof.twins for proof in proofs)
    for proof in proofs:
        same = "equal bits" if proof.same_bits and proof.same_file else "[bold red]CHANGED[/]"
        of_twins = () if proof.twins is None else (f"{proof.twins.worst.relative:.1e}",)
        rows.append((proof.format, proof.model, same, _distance(proof), *of_twins, verdict(proof.ok)))
    rows += [(format, "", "read only", "see parity_tests/formats", *[""] * twins, "") for format in read_only]
    columns = ("format", "model", "there and back", "from its own library", *["twins, gradients"] * twins, "")
    table("float64, relative to the largest output", columns, rows)


def _distance(proof: "Proof") -> str:
    if proof.format == "vit":
        return ""
    return "no such model there" if proof.difference is None else f"{proof.difference.relative:.1e}"


def print_costs(title: str, costs: "Iterable[Cost]") -> None:
    """Prints what conversions cost, beside a copy of the file."""
    rows = (
        (
            f"{cost.source} to {cost.target}",
            f"{cost.copy_seconds:.2f} s",
            f"{cost.seconds:.2f} s",
            f"{cost.times_copy:.1f}",
            f"{cost.peak_bytes / 1e6:,.0f} MB",
            f"{cost.times_file:.3f}",
        )
        for cost in costs
    )
    table(title, ("", "copy", "convert", "times the copy", "anonymous memory", "times the file"), rows)
