"""The words of a command line before cyclopts parses them: spellings of options, values of several words."""

import re
from collections.abc import Sequence

SEPARATOR = "\x1f"
"""Separator between the words of one option's value, if several are joined."""


def is_option(word: str) -> bool:
    """Whether a word is an option rather than a value; negative numbers are values."""
    return word.startswith("-") and not re.fullmatch(r"-\.?[0-9].*|-", word)


def with_hyphens(words: Sequence[str]) -> list[str]:
    """The words with hyphens instead of underscores in the names of options, which may be written either way."""
    return [_with_hyphens(word) if word.startswith("--") else word for word in words]


def _with_hyphens(word: str) -> str:
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def words_of_size(following: Sequence[str]) -> int:
    """Number of words of a size: one ("384", "384x512"), or two numbers ("384 512")."""
    return 2 if len(following) > 1 and following[0].isdigit() and following[1].isdigit() else 1


def join_sizes(words: Sequence[str], option: str = "--image-size") -> list[str]:
    """The words with a size of two words joined: `--image-size 384 512` becomes `--image-size=384x512`."""
    if option not in words:
        return list(words)
    place = words.index(option)
    size = words[place + 1 :]
    if words_of_size(size) == 1:
        return list(words)
    return [*words[:place], f"{option}={'x'.join(size[:2])}", *size[2:]]


def spaced(text: str) -> str:
    """A value whose words were joined, with spaces for messages."""
    return text.replace(SEPARATOR, " ")
