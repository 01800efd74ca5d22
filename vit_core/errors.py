"""Errors that a user can fix: one line with what was found, where, what was expected and how to fix it."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Invalid input from outside (file, config, argument). The command line prints it as one line and exits with status
    2."""


class InexpressibleError(InputError):
    """A model that was recognized, but that computes what ViTConfig cannot express."""


class DamagedError(InputError):
    """A file that changed after it was written: it is missing, truncated or modified. If a training run finds this
    error in its newest saved step, it resumes from the step before; for other errors it does not."""


def abbreviate(names: Iterable[str], separator: str = ", ", most: int = 6) -> str:
    """The first names of a list, and the number of the remaining ones: "a, b and 7 more"."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return separator.join(map(one_line, names[:most])) + more


def shortened(text: str, most: int = 300) -> str:
    """The text in one line, with " ..." where it is cut, between two words, because it is longer than `most`."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most].rpartition(' ')[0] or line[:most]} ..."


def one_line(text: str) -> str:
    """The text without characters that move a terminal's cursor, which names in an untrusted file may contain."""
    return "".join(char if char.isprintable() else " " for char in text)


def unknown_name(what: str, given: object, known: Iterable[str]) -> InputError:
    """The error for a name that is not one of `known`, with the nearest known name if one is similar."""
    names = [str(name) for name in known]
    lower = {name.lower(): name for name in names}
    near = get_close_matches(str(given).lower(), lower, n=1, cutoff=0.5)
    hint = f"did you mean '{lower[near[0]]}'?" if near else f"known: {', '.join(names)}"
    return InputError(f"unknown {what} '{given}'; {hint}")
