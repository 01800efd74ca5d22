"""What commands print, for the tests."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Printed:
    """What a command printed."""

    out: str
    err: str


Printing = Callable[..., Printed]
"""Runs a command, `printed("inspect", path, status=0)`."""
Vit = Callable[..., str]
"""Runs a command; returns what it printed, or the one line for bad input."""
