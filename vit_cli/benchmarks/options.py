"""Checks of options that several `vit bench` commands share."""

from typing import Any

from vit_cli.benchmarks.contestants import CHECKOUTS
from vit_core.errors import InputError
from vit_core.storage import location, require_local


def checkouts(words: tuple[str, ...]) -> dict[str, str]:
    """Contestant -> folder, from words such as big_vision=PATH."""
    found = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not equals or name not in CHECKOUTS:
            raise InputError(f"--peer {word}: expected NAME=PATH, where NAME is one of {', '.join(CHECKOUTS)}")
        folder: Any = require_local(location(path), "--peer")
        if not (folder / name).is_dir():
            raise InputError(f"--peer {word}: {folder} has no folder {name}; give a checkout of {CHECKOUTS[name]}")
        found[name] = str(folder.resolve())
    return found
