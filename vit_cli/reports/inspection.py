"""Prints a checkpoint for `vit inspect`."""

from collections.abc import Iterable, Mapping
from typing import Any

from vit_cli.console import say, say_in, table
from vit_core.checkpoints import CheckpointConfig
from vit_core.checkpoints.inspection import chosen
from vit_core.field_text import field_text
from vit_core.preprocess import assumed_preprocessing, preprocessing_text


def print_description(report: Mapping[str, Any], config: CheckpointConfig) -> None:
    """Prints `vit_core.checkpoints.inspection.description`, the preprocessing, and the config fields that differ from
    those of ViT's paper."""
    say(f"{report['path']}: {report['format']}, {report['parameters']:,} parameters")
    for note in report["notes"]:
        say(f"  {note}")
    grid, types = "x".join(map(str, report["grid"])), ", ".join(f"{n:,} {t}" for t, n in report["dtypes"].items())
    say(f"grid {grid}, prefix tokens {report['prefix_tokens']}, types {types}")
    made, assumed = config.preparation()
    size = "" if made.max_patches else f"{'x'.join(map(str, made.image_size))} pixels, "
    say(assumed_preprocessing(made) if assumed else f"preprocessing: {size}{preprocessing_text(made)}")
    fields = ((name, _text(name, value)) for name, value in chosen(config.model).items())
    table("config: sizes, and what differs from ViT's paper (arXiv:2010.11929)", ("field", "value"), fields)
    rows = ((name, f"{m['parameters']:,}", f"{m['bytes'] / 2**20:,.2f} MiB") for name, m in report["modules"].items())
    table("parameters", ("module", "number", "stored"), rows)


def print_suspicious(lines: Iterable[str]) -> None:
    """Prints warnings about suspicious values of a checkpoint."""
    for line in lines:
        say_in(f"suspicious: {line}", "yellow")


def _text(name: str, value: object) -> str:
    if name == "rope":
        return field_text(name, value).partition("=")[2]
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
