"""Folders of images with a table in the format of Hugging Face's `imagefolder`: metadata.csv or metadata.jsonl."""

import os
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np

from vit_core.errors import InputError
from vit_train.config import Data
from vit_train.data.sources.folders import Files, subfolders
from vit_train.data.sources.listing import Listing
from vit_train.data.sources.split_names import is_known
from vit_train.data.sources.tables import table

NAMES = ("metadata.csv", "metadata.jsonl")


def metadata_table(folder: Path) -> Path | None:
    """The table in a folder of images; None if there is none."""
    return next((folder / name for name in NAMES if (folder / name).is_file()), None)


def images_with_metadata(folder: Path, data: Data) -> Listing | None:
    """The images of a folder, or of its split folders, as listed by the table in each. None for class folders, and if
    there is no table. Raises InputError if only some splits have a table, or if it is beside the splits."""
    inside = subfolders(folder)
    title = os.path.basename(os.path.abspath(folder))
    if not inside:
        file = metadata_table(folder)
        return None if file is None else replace(table(file, data), title=title)
    if not all(is_known(name) for name in inside):
        return None
    tables = {name: metadata_table(folder / name) for name in inside if not subfolders(folder / name)}
    files = {name: file for name, file in tables.items() if file is not None}
    if list(tables) != inside:
        return None
    if (file := metadata_table(folder)) is not None and not files:
        raise InputError(f"{folder}: {file.name} is not in the folders of its images; give the table: --data {file}")
    if not files:
        return None
    if missing := [name for name in inside if name not in files]:
        some = next(iter(files.values()))
        raise InputError(
            f"{folder / missing[0]}: has no {some.name}, unlike {some.parent}; add it, or move the folder away"
        )
    listings = {name: table(file, data) for name, file in files.items()}
    names = [
        os.path.join(os.fsencode(name), key) for name, one in listings.items() for key in one.images.keys_N.tolist()
    ]
    groups = [one.groups for one in listings.values() if one.groups is not None]
    return Listing(
        title,
        Files(str(folder), np.array(names), np.zeros(len(names), np.int32)),
        [cell for one in listings.values() for cell in one.cells],  # type: ignore[arg-type]
        next(iter(listings.values())).classes,
        [name for name, one in listings.items() for _ in one.cells],
        list(chain(*groups)) if groups else None,
        tuple(chain(*(one.notes for one in listings.values()))),
    )
