"""Errors a person can act on: one line that says what, where, what was expected, and how to mend it."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Bad input from outside (file, config, argument). The command line prints it as one line and exits with 2."""


def some(names: Iterable[str], separator: str = ", ", most: int = 6) -> str:
    """The first names of a list that may be long, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return separator.join(names[:most]) + more


def one_line(text: str) -> str:
    """With nothing in it that would move a terminal's cursor: names in a file are whatever somebody wrote."""
    return "".join(char if char.isprintable() else " " for char in text)


def unknown_name(what: str, given: object, known: Iterable[str]) -> InputError:
    """The error for a name that is not one of `known`, with the nearest right one where there is one."""
    names = [str(name) for name in known]
    lower = {name.lower(): name for name in names}
    near = get_close_matches(str(given).lower(), lower, n=1, cutoff=0.5)
    hint = f"did you mean '{lower[near[0]]}'?" if near else f"known: {', '.join(names)}"
    return InputError(f"unknown {what} '{given}'; {hint}")
