"""Files of features, written row by row in bounded memory: .npy and .safetensors with a table of the images beside
them, or .parquet files with all data.

Both kinds of arrays begin with their shape, which is known only at the end, because images that cannot be read are left
out: it is written last, into space that is reserved for it.
"""

import csv
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from vit_core.errors import InputError
from vit_core.storage import Location, Replaceable, check_new_file, is_local, local_copy, staged_files

SUFFIXES = (".npy", ".safetensors", ".parquet")
NAME = "features"
"""The name of the tensor in a safetensors file."""
COLUMNS = ("image", "label")
"""Columns of the table beside an array: the path of each image, and its folder, if that is its class."""
_HEADER_BYTES = 256
_PARQUET_BYTES = 2**25
"""Rows of a parquet file that are held in memory."""


class AddRow(Protocol):
    """Writes the features of an image."""

    def __call__(self, image: str, label: str | None, values: np.ndarray) -> None: ...


@dataclass(frozen=True)
class Features:
    """The contents of a file of features."""

    values_N: np.ndarray
    """[N, ...]; of an .npy file on this machine a memory map, which takes no memory."""
    images: tuple[str, ...]
    labels: tuple[str, ...] | None
    """Class of each image; None where an image has none."""


def check_target(path: Location) -> None:
    """Raises InputError if features cannot be written to a path."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"--out {path}: expected a name that ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    check_new_file(path, "--out", Replaceable("a file of features with the table of its images", _is_of_features))
    table = table_beside(path)
    if path.suffix != ".parquet" and table.exists() and not path.exists():
        raise InputError(f"--out {path}: its table of images would replace {table}, another file; choose another name")


def _is_of_features(path: Path) -> bool:
    if path.suffix == ".parquet":
        from pyarrow import parquet

        return tuple(parquet.read_schema(path).names) == (*COLUMNS, NAME)
    with Path(table_beside(path)).open(encoding="utf-8") as table:
        return table.readline(2**10).rstrip("\r\n") == ",".join(COLUMNS)


def table_beside(path: Location) -> Location:
    """The table of the images of an array: features.csv beside features.npy."""
    return path.with_name(f"{path.stem}.csv")


@contextmanager
def feature_file(path: Location, shape: tuple[int, ...], dtype: str) -> Iterator[AddRow]:
    """A context in which rows are added to a file. At the end the complete file appears; after an error there is no
    file.

    shape: that of each row. dtype: "float32" or "float64". Raises InputError if the file system refuses to write.
    """
    names = [path.name] if path.suffix == ".parquet" else [path.name, table_beside(path).name]
    with staged_files(path.parent, names) as stage:
        if path.suffix == ".parquet":
            with _parquet(stage / names[0], shape, dtype) as add:
                yield add
            return
        with (stage / names[0]).open("wb") as file, (stage / names[1]).open("w", encoding="utf-8", newline="") as table:
            rows = csv.writer(table, lineterminator="\n")
            rows.writerow(COLUMNS)
            array = _Array(file, path.suffix, shape, np.dtype(dtype))

            def add_row(image: str, label: str | None, values: np.ndarray) -> None:
                array.add(_checked(values, shape))
                rows.writerow((image, label or ""))

            yield add_row
            array.finish()


class _Array:
    """The rows of an array, and before them a header that is written twice, with the same length."""

    def __init__(self, file: BinaryIO, suffix: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.file, self.suffix, self.shape, self.dtype, self.rows = file, suffix, shape, dtype, 0
        self._write_header()

    def add(self, values: np.ndarray) -> None:
        """Writes a row."""
        self.file.write(np.ascontiguousarray(values, self.dtype).tobytes())
        self.rows += 1

    def finish(self) -> None:
        """Writes the number of rows."""
        self.file.seek(0)
        self._write_header()

    def _write_header(self) -> None:
        shape = [self.rows, *self.shape]
        if self.suffix == ".npy":  # NumPy keeps space in its header for a first axis that grows
            descr = np.lib.format.dtype_to_descr(self.dtype)
            fields = {"descr": descr, "fortran_order": False, "shape": tuple(shape)}
            np.lib.format.write_array_header_1_0(self.file, fields)
            return
        kind = {4: "F32", 8: "F64"}[self.dtype.itemsize]
        entry = {"dtype": kind, "shape": shape, "data_offsets": [0, prod(shape) * self.dtype.itemsize]}
        text = json.dumps({NAME: entry}).encode().ljust(_HEADER_BYTES)
        self.file.write(len(text).to_bytes(8, "little") + text)


def _checked(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if values.shape != shape:
        raise AssertionError(f"a row of {values.shape} among rows of {shape}")
    return values


@contextmanager
def _parquet(path: Path, shape: tuple[int, ...], dtype: str) -> Iterator[AddRow]:
    """Columns image, label and features: a list of numbers for each row, whose shape is in the schema's metadata."""
    import pyarrow as pa
    from pyarrow import parquet

    length = prod(shape)
    columns = {"image": pa.string(), "label": pa.string(), NAME: pa.list_(pa.from_numpy_dtype(dtype), length)}
    schema = pa.schema(columns, metadata={"shape": json.dumps(shape)})
    images: list[tuple[str, str | None]] = []
    rows: list[np.ndarray] = []
    with parquet.ParquetWriter(path, schema) as file:

        def flush() -> None:
            flat = np.concatenate(rows) if rows else np.empty(0, dtype)
            arrays = [pa.array([each[i] for each in images], pa.string()) for i in (0, 1)]
            file.write_table(pa.table([*arrays, pa.FixedSizeListArray.from_arrays(flat, length)], schema))
            images.clear()
            rows.clear()

        def add_row(image: str, label: str | None, values: np.ndarray) -> None:
            images.append((image, label))
            rows.append(_checked(values, shape).ravel().astype(dtype))
            if len(images) * length * np.dtype(dtype).itemsize >= _PARQUET_BYTES:
                flush()

        yield add_row
        flush()


def read_features(path: Location) -> Features:
    """The features in a file that `feature_file` wrote. Raises InputError for a file that is damaged, or none of
    features."""
    if not path.is_file():
        step = "for the features of a checkpoint, add --data" if path.is_dir() else "vit features writes one"
        raise InputError(f"{path}: no such file of features; {step}")
    try:
        if path.suffix == ".parquet":
            return _read_parquet(path)
        values_N, table = _read_array(path), table_beside(path)
        rows = list(csv.reader(io.StringIO(table.read_text(), newline="")))
    except FileNotFoundError:
        raise InputError(f"{table_beside(path)}: missing; it has the names of the images in {path.name}") from None
    except Exception as error:  # readers answer broken files with exceptions of every kind
        raise InputError(f"{path}: no whole file of features ({' '.join(str(error).split())[:200]})") from None
    if not rows or tuple(rows[0]) != COLUMNS or len(rows) - 1 != len(values_N):
        raise InputError(
            f"{table}: {max(len(rows) - 1, 0)} images, {path.name} has {len(values_N)}; they belong to other features"
        )
    images, labels = zip(*rows[1:], strict=True) if len(rows) > 1 else ((), ())
    return Features(values_N, images, labels if all(labels) else None)


def _read_array(path: Location) -> np.ndarray:
    if path.suffix == ".npy" and is_local(path):
        values_N: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        return values_N
    with local_copy(path) as file:
        if path.suffix == ".npy":
            values_N = np.load(file, allow_pickle=False)
            return values_N
        from safetensors.numpy import load_file

        return load_file(file)[NAME]


def _read_parquet(path: Location) -> Features:
    from pyarrow import parquet

    with local_copy(path) as file:
        table = parquet.read_table(file)
    shape = json.loads(table.schema.metadata[b"shape"])
    values_N = table[NAME].combine_chunks().flatten().to_numpy().reshape(-1, *shape)
    images, labels = (tuple(table[name].to_pylist()) for name in COLUMNS)
    return Features(values_N, images, labels if all(labels) else None)
