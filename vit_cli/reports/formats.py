"""Prints the results of `vit formats` and `vit bench convert`."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from vit_cli.console import table, verdict

if TYPE_CHECKING:
    from vit_cli.benchmarks.conversion import Cost
    from vit_cli.format_checks import FormatCheck


def print_checks(checks: "Sequence[FormatCheck]", read_only: Iterable[str]) -> None:
    """Prints the results for each model in each format, with a column for the twins if they were compared."""
    rows: list[tuple[str, ...]] = []
    twins = any(check.twins for check in checks)
    for check in checks:
        same = "equal bits" if check.same_bits and check.same_file else "[bold red]CHANGED[/]"
        of_twins = () if check.twins is None else (f"{check.twins.worst.relative:.1e}",)
        rows.append((check.format, check.model, same, _distance(check), *of_twins, verdict(check.ok)))
    rows += [(format, "", "read only", "see parity_tests/formats", *[""] * twins, "") for format in read_only]
    columns = ("format", "model", "there and back", "from its own library", *["twins, gradients"] * twins, "")
    table("float64, relative to the largest output", columns, rows)


def print_families(checks: "Sequence[FormatCheck]") -> None:
    """Prints for each family the formats and references, and the largest differences among its models."""
    from vit_cli.families import FAMILIES, family_of

    facts: list[tuple[str, ...]] = []
    figures: list[tuple[str, ...]] = []
    for family in FAMILIES:
        own = [check for check in checks if family_of(check.config) is family]
        foreign = [check for check in own if check.format != "vit"]
        written = ", ".join(dict.fromkeys(check.format for check in foreign))
        by_library = {check.format: check.difference for check in foreign if check.difference is not None}
        libraries = ", ".join(dict.fromkeys(_LIBRARY.get(format, format) for format in by_library))
        facts.append((family.name, family.fields, written, family.also_read, libraries or family.reference))
        rows = [row for check in own if check.twins for row in check.twins.rows]
        stages, gradients = ([row for row in rows if row.name.startswith("grad.") is which] for which in (False, True))
        apart = [check.difference.relative for check in foreign if check.difference is not None]
        distances = (
            max(apart) if apart else None,
            *(max(row.relative for row in each) for each in (stages, gradients)),
        )
        shown = ("" if distance is None else f"{distance:.1e}" for distance in distances)
        figures.append((family.name, *shown, verdict(all(check.ok for check in own))))
    table("families", ("family", "config", "read and written", "read only", "reference"), facts)
    columns = ("family", "from the reference", "twins, stages", "twins, gradients", "")
    table("float64, the largest differences, relative to the largest output", columns, figures)


_LIBRARY = {"meta": "timm", "google": "timm", "big_vision": "timm"}
"""Format -> the library that opens its files, if that has another name."""


def _distance(check: "FormatCheck") -> str:
    if check.format == "vit":
        return ""
    return "not compared" if check.difference is None else f"{check.difference.relative:.1e}"


def print_costs(title: str, costs: "Iterable[Cost]") -> None:
    """Prints the time and memory of conversions, compared with a copy of the file."""
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
