"""Recognizes the splits of a data set by usual names, in any case."""

import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from vit_core.errors import InputError
from vit_train.config import Data
from vit_train.data.sources.split import Which

TRAIN = ("train", "training")
VALIDATION = ("validation", "val", "valid", "dev")
TEST = ("test", "testing")
KNOWN = (*TRAIN, *VALIDATION, *TEST)
"""All names by which a split is recognized, in any case."""
PREFERRED: dict[Which, tuple[str, ...]] = {"train": TRAIN, "eval": VALIDATION + TEST, "test": TEST + VALIDATION}
"""Names in the order in which they are tried if no split is asked for."""


def choose(where: str, found: Collection[str], data: Data, which: Which) -> str | None:
    """The split that is asked for or, if none is, the first with a preferred name. None if there is none for
    evaluation.

    Raises InputError if the split that is asked for, or the training split, does not exist.
    """
    asked = data.train_split if which == "train" else data.eval_split
    if asked is None and not found:
        return None
    for name in (asked,) if asked is not None else PREFERRED[which]:
        if (same := spelled(name, found)) is not None:
            return same
    if asked is not None or which == "train":
        raise no_split(where, asked or "train", found or ["no splits"])
    return None


def has_training(found: Collection[str]) -> bool:
    """Whether one of the splits found has a known name of a training split."""
    return any(spelled(name, found) is not None for name in TRAIN)


def spelled(name: str, found: Collection[str]) -> str | None:
    """The name as it is spelled in `found`: an equal name, or one that differs only in case; None if there is none.
    Raises InputError for several that differ only in case."""
    if name in found:
        return name
    same = [one for one in found if one.casefold() == name.casefold()]
    if len(same) > 1:
        raise InputError(f"split '{name}': found as {' and '.join(sorted(same))}; keep one of them")
    return same[0] if same else None


def is_known(name: str) -> bool:
    """Whether a folder or a file of this name is recognized as a split."""
    return name.casefold() in KNOWN


def unknown_names_note(where: str, found: Collection[str], data: Data) -> tuple[str, ...]:
    """A note on splits that are not used, because their names are not known."""
    asked = {name.casefold() for name in (data.train_split, data.eval_split) if name}
    unknown = [name for name in found if not is_known(name) and name.casefold() not in asked]
    if not unknown:
        return ()
    what = f"split{'s' * (len(unknown) > 1)} {', '.join(map(repr, unknown))}"
    return (f"{where}: {what} not used; known names are {', '.join(KNOWN)}; or set --data.eval-split",)


def no_split(where: str, name: str, known: Collection[str]) -> InputError:
    """The error for a split that does not exist."""
    return InputError(f"{where}: no split '{name}'; found: {', '.join(known)}")


def split_of_file(files: Sequence[str], root: Path) -> list[str] | None:
    """The split of each file, by a known name of a split in the name of the file or of its folder
    ("train-00000-of-00002.parquet", "val/0000.tar"); None if no file has one.

    Raises InputError if only some files have one.
    """
    base = root if root.is_dir() else root.parent
    parts = [os.path.relpath(file, base).replace(os.sep, " ") for file in files]
    words = [[word for word in re.split(r"[^a-zA-Z]+", part) if word] for part in parts]
    found = [next((word for word in those if is_known(word)), None) for those in words]
    if not any(found):
        return None
    if None in found:
        file = files[found.index(None)]
        raise InputError(f"{file}: its name has no split, unlike others; expected one of {', '.join(KNOWN)} in it")
    return [str(name) for name in found]
