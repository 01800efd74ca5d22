"""Docstrings as help: lines of a paragraph joined, so that they wrap at any width, and the examples at the end."""

import functools
import re
from collections.abc import Iterator
from inspect import cleandoc
from typing import Any

from cyclopts import App

_HEADING = re.compile(r"(Args|Examples?):")
_ENTRY = re.compile(r"    \w+: ")


def prepare_help(app: App) -> None:
    """Gives a command the help that its function's docstring contains."""
    function = app.default_command
    assert function is not None
    text, examples = split_examples(cleandoc(function.__doc__ or ""))

    @functools.wraps(function)
    def explained(*_: Any, **__: Any) -> None:
        """A function whose docstring is the help."""

    explained.__doc__ = "\n".join(joined_lines(text))
    app.default_command = explained
    app.help_epilogue = examples


def split_examples(docstring: str) -> tuple[str, str | None]:
    """A docstring without its section of examples, and that section."""
    found = re.search(r"^Examples?:\n(    .*\n?)+\n?", docstring, re.M)
    if found is None:
        return docstring, None
    return docstring[: found.start()] + docstring[found.end() :], found[0].rstrip()


def joined_lines(docstring: str) -> Iterator[str]:
    """A line for each paragraph, heading and entry of `Args`."""
    paragraph: list[str] = []
    for line in [*docstring.splitlines(), ""]:
        begins = not line or _HEADING.fullmatch(line) or _ENTRY.match(line)
        if begins and paragraph:
            yield " ".join(paragraph)
            paragraph = []
        if not line or _HEADING.fullmatch(line):
            yield line
        else:
            paragraph.append(line.rstrip() if _ENTRY.match(line) else line.strip())


def default_text(value: object) -> str | None:
    """The text of a default in the help; None for no value, for flags that are off and for repeatable options."""
    if value is None or value is False or value == ():
        return None
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
