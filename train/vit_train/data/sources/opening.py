"""Opens the splits of a run's data, from any kind of source."""

import glob
import os
from pathlib import Path

from vit_core.errors import InputError
from vit_train.config import Data
from vit_train.data.sources import columns, prepared, shards, tables
from vit_train.data.sources.folders import class_folders, split_folders, subfolders, unlabelled_folder
from vit_train.data.sources.groups import NoGroupsError
from vit_train.data.sources.listing import Listing, split_of
from vit_train.data.sources.metadata import images_with_metadata, metadata_table
from vit_train.data.sources.prepared import prepared_split
from vit_train.data.sources.split import Split, Which

FILES = (*tables.SUFFIXES, *columns.SUFFIXES, *shards.SUFFIXES)
"""Extensions of files that may be a data set."""
ARCHIVES = (".zip", ".7z", ".rar", ".gz", ".tgz", ".bz2", ".xz")


def open_split(data: Data, which: Which) -> Split:
    """A run's training or evaluation examples.

    Raises InputError if there are no examples, fewer than two classes of labelled data, or the data are not on this
    machine.
    """
    _require_local(data)
    try:
        split = _opened(data, which)
    except OSError as error:
        where = os.fsdecode(error.filename or data.name)
        here = "" if os.path.isabs(where) else f" (the path is relative to {os.getcwd()})"
        raise InputError(
            f"{where}: {error.strerror}; expected a readable folder of class folders, a table, or another data set: "
            f"name one with --data{here}"
        ) from None
    if len(split.labels) < 2 and data.labelled:
        names = ", ".join(split.labels) or "none"
        raise InputError(f"{split.title}: classes: {names}; expected two or more{_better_path(data)}")
    return split


def _better_path(data: Data) -> str:
    """Advice on a better path, for a folder with a table or with a single folder that contains the classes."""
    path = data_path(data)
    if path is None or not path.is_dir():
        return ""
    if (file := metadata_table(path)) is not None:
        return f"; to read the table, use --data {file}"
    inside = subfolders(path)
    if len(inside) == 1 and subfolders(path / inside[0]):
        return f"; give the folder with one folder for each class: --data {path / inside[0]}"
    return ", one folder for each class"


def split_names_of(data: Data) -> list[str]:
    """Names of the splits of data in a folder or in files; empty if they are not divided."""
    path = data_path(data)
    if path is None:
        return []
    listing = _listing(path, data)
    return split_folders(path) if listing is None else list(dict.fromkeys(listing.splits or ()))


def data_path(data: Data) -> Path | None:
    """The folder or file of the data, or a pattern of files; None for a prepared set that is given by name."""
    name = data.name
    if name.startswith((".", "~")) or "/" in name or os.sep in name or name.lower().endswith(FILES):
        return Path(name).expanduser()
    return None


def _opened(data: Data, which: Which) -> Split:
    if data.name == "digits":
        return prepared_split(prepared.digits_set(data), data, which)
    path = data_path(data)
    if path is None:
        return prepared_split(prepared.find_set(data), data, which)
    if (listing := _listing(path, data)) is not None:
        return split_of(listing, data, which)
    if sets := prepared.prepared_in(path):
        return prepared_split(sets[-1], data, which)
    if data.group is not None and data.labelled:
        raise NoGroupsError(f"{path}: data.group: folders have no column '{data.group}'; expected a table such as .csv")
    return class_folders(path, data, which) if data.labelled else unlabelled_folder(path, data, which)


def _listing(path: Path, data: Data) -> Listing | None:
    """The images in a table, parquet files, a saved `datasets` folder or shards; None for another folder."""
    if columns.is_saved_dataset(path):
        return columns.saved_dataset(path, data)
    files = [path] if path.is_file() or path.name.lower().endswith(tables.SUFFIXES) else _files(path)
    if not files:
        return images_with_metadata(path, data) if data.labelled else None
    kinds = {kind for file in files for kind in FILES if file.name.lower().endswith(kind)}
    if not kinds and path.suffix.lower() in ARCHIVES:
        raise InputError(f"{path}: archives other than .tar cannot be read; unpack it and give the folder")
    if len(kinds) != 1:
        raise InputError(
            f"{path}: {', '.join(sorted(kinds)) or 'a file of no known kind'}; expected one of {', '.join(FILES)}"
        )
    (kind,) = kinds
    if kind in tables.SUFFIXES:
        if len(files) > 1:
            raise InputError(f"{path}: {len(files)} tables; expected one, with a column for the split")
        return tables.table(files[0], data)
    return columns.parquet(path, files, data) if kind in columns.SUFFIXES else shards.shards(path, files, data)


def _files(path: Path) -> list[Path]:
    """The data files that a pattern matches, or that are in a folder and the folders directly in it.

    Empty if a subfolder has no data files or has subfolders, because an archive may be beside class folders.
    """
    if not path.exists() and any(char in path.name for char in "*?["):
        found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
        if not found:
            raise InputError(f"{path}: no file matches")
        return found
    found = _data_files(path)
    for folder in (path / name for name in subfolders(path)):
        if not (inside := _data_files(folder)) or subfolders(folder):
            return []
        found += inside
    return found


def _data_files(folder: Path) -> list[Path]:
    """Parquet files and shards directly in a folder, sorted."""
    wanted = (*columns.SUFFIXES, *shards.SUFFIXES)
    return sorted(file for file in folder.iterdir() if file.name.lower().endswith(wanted) and file.is_file())


def _require_local(data: Data) -> None:
    """Raises InputError for data in a store: ArrayRecord's reader finds 0 records on s3:// and does not return on
    gs://."""
    for option, path in (("data.name", data.name), ("data.directory", data.directory)):
        if path is not None and "://" in path:
            raise InputError(
                f"{option}: {path} is in a store, and training data are read from this machine only; copy them to a "
                f"folder (gcloud storage cp -r, aws s3 cp --recursive) or mount the bucket, and set {option} to it"
            )
