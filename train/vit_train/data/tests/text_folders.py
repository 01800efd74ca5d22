"""Folders of files that contain their own names, for the tests of sources."""

from pathlib import Path
from typing import Any

from vit_train.config import Data
from vit_train.data.sources import Split, Which, open_split


def fill(folder: Path, *names: str) -> Path:
    """A folder of files that contain their own names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def folder_split(folder: Path, which: Which, **fields: Any) -> Split:
    return open_split(Data(name=str(folder), **fields), which)


def held(split: Split) -> list[tuple[str, int]]:
    return [(example["image"].decode(), example["label"]) for example in split.examples]
