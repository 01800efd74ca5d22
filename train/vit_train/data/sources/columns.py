"""Images in columns, read with pyarrow: parquet files, and folders that Hugging Face `datasets` saved (Arrow files).

A column of images contains structs {bytes, path}, as `datasets` writes them, or only bytes. Arrow files are
memory-mapped and read at random positions. To read an image of a parquet file, its whole row group must be read, so its
images are unpacked once into a cache.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from vit_core.errors import InputError, abbreviate
from vit_train.config import Data
from vit_train.data.sources import unpacked
from vit_train.data.sources.listing import Listing, column, optional_column
from vit_train.data.sources.prepared import cache_folder
from vit_train.data.sources.split import Listed, size_and_time
from vit_train.data.sources.split_names import split_of_file
from vit_train.data.sources.tables import LABELS, SPLITS
from vit_train.display import SILENT, Display

SUFFIXES = (".parquet",)
IMAGES = ("image", "img", "picture", "photo", "jpg", "png", "bytes")
LABELS_OF_SETS = (*LABELS, "fine_label")
BATCH_ROWS = 64
"""Number of rows of a parquet file that are in memory at a time while it is unpacked."""


@dataclass(frozen=True, eq=False)
class Rows(Listed):
    """Images in a column of parquet or Arrow files."""

    files: tuple[str, ...]
    column: str
    cache: str
    """Folder for unpacked parquet files."""
    file_N: np.ndarray
    row_N: np.ndarray
    key_N: np.ndarray
    labels_N: np.ndarray

    def __len__(self) -> int:
        return len(self.row_N)

    def __getitem__(self, i: Any) -> Any:
        return {"image": self._read(i), "label": int(self.labels_N[i])}

    def name(self, i: int) -> str:
        """The file and the row."""
        return f"{self.files[self.file_N[i]]}[{self.row_N[i]}]"

    @property
    def keys_N(self) -> np.ndarray:
        """The path that is stored with each image; empty if there is none."""
        return self.key_N

    @property
    def identity(self) -> tuple[object, ...]:
        """Names of the files, rows, keys and labels."""
        names = tuple(map(os.path.basename, self.files))
        return names, *(array.tobytes() for array in (self.file_N, self.row_N, self.key_N, self.labels_N))

    def places(self) -> Iterable[object]:
        """The file and the row of each image."""
        files = [os.path.realpath(file) for file in self.files]
        return ((files[file], row) for file, row in zip(self.file_N.tolist(), self.row_N.tolist(), strict=True))

    def sizes_and_times(self) -> np.ndarray:
        """int64 [N, 2]: the size of the file divided by its number of rows, and the time of the file."""
        status_F2 = np.array([size_and_time(file) for file in self.files])
        rows_F = [_parquet_file(f).metadata.num_rows if _is_parquet(f) else len(_arrow_table(f)) for f in self.files]
        status_F2[:, 0] //= np.maximum(rows_F, 1)
        return status_F2[self.file_N]

    def head(self, i: int, length: int) -> bytes:
        """The whole image."""
        return self._read(i)

    def make_ready(self, display: Display = SILENT) -> None:
        """Unpacks the parquet files that contain these images."""
        for number in np.unique(self.file_N):
            if _is_parquet(self.files[number]):
                _unpack(self.files[number], self.column, self.cache, display)

    def _read(self, i: int) -> bytes:
        file, row = self.files[self.file_N[i]], int(self.row_N[i])
        if _is_parquet(file):
            return unpacked.record(_unpacked(file, self.column, self.cache), row)
        value = _arrow_table(file).column(self.column)[row].as_py()
        return _image_bytes(value)


def _unpack(file: str, name: str, cache: str, display: Display = SILENT) -> str:
    """The ArrayRecord file with the images of a parquet file, written if it is missing."""
    count = _parquet_file(file).metadata.num_rows
    return unpacked.unpack(file, name, count, lambda: _parquet_images(file, name), Path(cache), display)


_unpacked = cache(_unpack)  # cached, so that reading an image does not access the file system first


def parquet(path: Path, files: list[Path], data: Data) -> Listing:
    """The images in parquet files."""
    return _listing(path, [str(file) for file in files], None, data)


def is_saved_dataset(folder: Path) -> bool:
    """Whether `datasets` saved a Dataset or a DatasetDict in a folder."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def saved_dataset(folder: Path, data: Data) -> Listing:
    """The images in a folder that `save_to_disk` wrote."""
    if (folder / "state.json").is_file():
        return _listing(folder, _arrow_files(folder), None, data)
    names = _json(folder / "dataset_dict.json").get("splits")
    if not isinstance(names, list) or not all(
        isinstance(name, str) and name == os.path.basename(name) for name in names
    ):
        raise InputError(f"{folder / 'dataset_dict.json'}: expected a list of splits; save the data set again")
    by_split = {name: _arrow_files(folder / name) for name in names}
    files = [file for files in by_split.values() for file in files]
    return _listing(folder, files, [name for name, files in by_split.items() for _ in files], data)


def _is_parquet(file: str) -> bool:
    return file.lower().endswith(SUFFIXES)


def _arrow_files(folder: Path) -> list[str]:
    """The Arrow files of a saved Dataset, in order."""
    state = _json(folder / "state.json")
    try:
        names = [str(entry["filename"]) for entry in state["_data_files"]]
    except (KeyError, TypeError):
        names = []
    if not names or any(name != os.path.basename(name) for name in names):
        raise InputError(f"{folder / 'state.json'}: expected a list of Arrow files; save the data set again")
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise InputError(f"{folder}: has a file of indices; call flatten_indices() and save the data set again")
    return [str(folder / name) for name in names]


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read ({error}); save the data set again") from None
    return found if isinstance(found, dict) else {}


def _listing(path: Path, files: list[str], splits: list[str] | None, data: Data) -> Listing:
    """The images in files of columns. splits: the split of each file; None: a column or the names of files show it.
    Raises InputError if a column is missing or unusable."""
    where, schema = str(path), _schema(files[0])
    image = column(where, schema.names, data.image_column, _image_columns(schema), "image_column")
    _check_holds_images(where, schema, image)
    label = column(where, schema.names, data.label_column, LABELS_OF_SETS, "label_column")
    usual = SPLITS if splits is None else ()
    split = optional_column(where, schema.names, data.split_column, usual, "split_column")
    group = None if data.group is None else column(where, schema.names, data.group, (), "group")
    if splits is None and split is None:
        splits = split_of_file(files, path)
    wanted = [name for name in (label, split, group) if name is not None]
    keys, cells, file_N, row_N = [], {name: [] for name in wanted}, [], []  # type: ignore[var-annotated]
    for number, file in enumerate(files):
        paths, values = _small_columns(file, image, wanted)
        keys += paths
        for name in wanted:
            cells[name] += values[name]
        file_N.append(np.full(len(paths), number, np.int32))
        row_N.append(np.arange(len(paths)))
    count, files_N = len(keys), np.concatenate(file_N)
    if not count:
        raise InputError(f"{where}: no rows; expected images with labels")
    images = Rows(
        tuple(files), image, str(cache_folder(data) / "unpacked"), files_N, np.concatenate(row_N),
        np.array([os.fsencode(key) for key in keys]), np.zeros(count, np.int32),
    )  # fmt: skip
    labels = _checked_labels(where, label, cells[label])
    by_row = [splits[number] for number in files_N.tolist()] if splits else None
    return Listing(
        os.path.basename(os.path.abspath(path)).removesuffix(SUFFIXES[0]),
        images,
        labels,
        _class_names(schema, label) if isinstance(labels[0], int) else None,
        [str(name) for name in cells[split]] if split else by_row,
        [str(name) for name in cells[group]] if group else None,
    )


def _checked_labels(where: str, label: str, cells: list[Any]) -> list[str] | list[int]:
    """The labels, all text or all integers. Raises InputError that names the row for other labels."""
    kind = int if isinstance(cells[0], int) else str
    for row, cell in enumerate(cells):
        if not isinstance(cell, kind) or isinstance(cell, bool):
            raise InputError(
                f"{where}, row {row}: {label} is {cell!r}; expected all labels to be text, or all whole numbers"
            )
    return cells


def _check_holds_images(where: str, schema: Any, image: str) -> None:
    """Raises InputError for a column of text, such as paths."""
    import pyarrow as pa

    kind = schema.field(image).type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        raise InputError(
            f"{where}: column {image} has text; expected the bytes of images; save a table of paths as .csv"
        )


def _image_columns(schema: Any) -> tuple[str, ...]:
    """The columns that may contain images: first those with usual names, then all with a suitable type."""
    import pyarrow as pa

    def holds_images(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return {"bytes", "path"} <= {kind.field(i).name for i in range(kind.num_fields)}
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    typed = tuple(field.name for field in schema if holds_images(field.type))
    return (*(name for name in IMAGES if name in typed), *typed) or IMAGES


def _class_names(schema: Any, label: str) -> tuple[str, ...] | None:
    """The names of classes that `datasets` stores for a column of numbers; None if there are none."""
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]
        names = feature["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _small_columns(file: str, image: str, wanted: list[str]) -> tuple[list[str], dict[str, list[Any]]]:
    """The path of each image, and the columns `wanted`. Raises InputError if the file lacks a column."""
    import pyarrow as pa

    struct = pa.types.is_struct(_schema(file).field(image).type) if image in _schema(file).names else None
    if struct is None or (missing := [name for name in wanted if name not in _schema(file).names]):
        raise InputError(f"{file}: no column {image if struct is None else missing[0]}, which the first file has")
    if _is_parquet(file):
        table = _reading(file, lambda: _parquet_file(file).read([*wanted, *([f"{image}.path"] if struct else [])]))
        paths = table.column(image) if struct else None
    else:
        table = _arrow_table(file)
        paths = table.column(image) if struct else None
    values = {name: table.column(name).to_pylist() for name in wanted}
    if paths is None:
        return [""] * table.num_rows, values
    import pyarrow.compute

    stored = pyarrow.compute.struct_field(paths, "path") if len(paths) else paths
    return [path or "" for path in stored.to_pylist()], values


def _parquet_images(file: str, name: str) -> Iterator[bytes]:
    """The bytes of each image of a parquet file, in order; BATCH_ROWS images are in memory at a time."""
    for batch in _parquet_file(file).iter_batches(batch_size=BATCH_ROWS, columns=[name], use_threads=False):
        for value in batch.column(0):
            yield _image_bytes(value.as_py())


def _image_bytes(value: Any) -> bytes:
    """The bytes in a cell. An empty cell gives b"", which is reported as an image that cannot be decoded."""
    found = value.get("bytes") if isinstance(value, dict) else value
    return found if isinstance(found, bytes) else b""


def _schema(file: str) -> Any:
    return _parquet_file(file).schema_arrow if _is_parquet(file) else _arrow_table(file).schema


@cache
def _parquet_file(file: str) -> Any:
    _require_pyarrow(file)
    import pyarrow.parquet

    return _reading(file, lambda: pyarrow.parquet.ParquetFile(file, memory_map=True))


@cache
def _arrow_table(file: str) -> Any:
    """A memory-mapped table, of which only the used parts are read."""
    _require_pyarrow(file)
    import pyarrow as pa

    return _reading(file, lambda: pa.ipc.open_stream(pa.memory_map(file)).read_all())


def _require_pyarrow(file: str) -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise InputError(f"{file}: needs pyarrow: pip install 'vit-parity[parquet]'") from None


def _reading(file: str, read: Any) -> Any:
    """What `read` returns. Raises InputError for a file that pyarrow cannot read."""
    import pyarrow as pa

    try:
        return read()
    except FileNotFoundError:
        raise InputError(f"{file}: missing; copy the data set again") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = abbreviate([" ".join(str(error).split())])
        raise InputError(f"{file}: cannot be read ({reason}); expected a complete file; copy it again") from None
