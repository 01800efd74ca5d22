"""Writes predictions as a table, or row by row as CSV, JSON lines or parquet."""

import csv
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO, get_args

from vit_cli import console
from vit_cli.named_images import text_of
from vit_cli.requirements import require
from vit_core.errors import InputError, one_line
from vit_core.pipeline import Prediction
from vit_core.storage import Location, Replaceable, check_new_file, staged_files

if TYPE_CHECKING:
    from vit_cli.benchmarks.prediction import Rates

Kind = Literal["table", "csv", "jsonl", "parquet"]
Write = Callable[[str, Prediction], None]
"""Function that writes the prediction for the image at a path."""
COLUMNS = ("image", "rank", "label", "probability")
_LONGEST_LINE = 2**26
"""Characters of a line that are read to see whether predictions are in a file."""
_ROWS_AT_ONCE = 2**14
"""Number of rows of a parquet file that are kept in memory."""


def print_rates(title: str, rates: "Rates") -> None:
    """Prints the speed of predictions, of the model alone and of decoding alone."""
    rows = (("the model alone", rates.model), ("decoding alone", rates.decoding), ("vit predict", rates.predict))
    console.table(title, ("", "images/s"), ((name, f"{rate:,.1f}") for name, rate in rows))
    console.say(f"{rates.share:.0%} of the rate that the slower of the two allows")


def kind_of(to: Kind | None, out: Location | None) -> Kind:
    """The kind of output: the requested one, or else that of the file's extension. Raises InputError if they
    contradict."""
    if out is None:
        if to == "parquet":
            raise InputError("--to parquet: cannot be printed; add --out FILE.parquet")
        return to or "table"
    if to == "table":
        raise InputError(f"--to table: is for the terminal; leave out --out {out}, or use csv, jsonl or parquet")
    suffix = out.name.rpartition(".")[2]
    if to is None and suffix not in get_args(Kind)[1:]:
        raise InputError(f"--out {out}: expected a name that ends in .csv, .jsonl or .parquet, or add --to")
    check_new_file(out, "--out", Replaceable("a file of predictions", _is_of_predictions))
    return to or suffix  # type: ignore[return-value]


def _is_of_predictions(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(4)
    if start == b"PAR1":
        from pyarrow import parquet

        return tuple(parquet.read_schema(path).names) == COLUMNS
    with path.open(encoding="utf-8") as text:
        first = text.readline(_LONGEST_LINE)
    return first == ",".join(COLUMNS) + "\n" or json.loads(first).keys() == {"image", "labels", "probabilities"}


@contextmanager
def writing(
    kind: Kind, out: Location | None, marked_above: Callable[[], float | None] = lambda: None
) -> Iterator[Write]:
    """Context in which predictions are written to a file, which appears at the end and only if nothing failed, or to
    standard output; messages then go to standard error. marked_above: called at the end, returns the probability above
    which the table marks a class as predicted; None marks none."""
    with ExitStack() as stack:
        if kind == "table":
            yield stack.enter_context(_table(marked_above))
            return
        if out is None:
            stack.enter_context(console.messages_on_stderr())
            yield (_csv if kind == "csv" else _json_lines)(sys.stdout)
            sys.stdout.flush()
            return
        path = stack.enter_context(staged_files(out.parent, (out.name,))) / out.name
        if kind == "parquet":
            yield stack.enter_context(_parquet(path))
        else:
            file = stack.enter_context(path.open("w", encoding="utf-8", newline=""))
            yield (_csv if kind == "csv" else _json_lines)(file)


@contextmanager
def _table(marked_above: Callable[[], float | None]) -> Iterator[Write]:
    rows: list[tuple[str, str, float]] = []

    def write(path: str, prediction: Prediction) -> None:
        image = one_line(text_of(path))
        for label, probability in zip(prediction.labels, prediction.probabilities, strict=True):
            rows.append((image, one_line(label), probability))
            image = ""

    yield write
    if not rows:
        return
    above, columns = marked_above(), ("image", "class", "probability")
    cells = [(image, label, f"{probability:.2%}") for image, label, probability in rows]
    if above is None:
        console.table("predictions", columns, cells, names=2)
        return
    marks = ["yes" if probability > above else "" for *_, probability in rows]
    marked = [(*row, mark) for row, mark in zip(cells, marks, strict=True)]
    console.table("predictions", (*columns, "above 0.5" if above == 0.5 else f"from {above:.6g}"), marked, names=2)


def _csv(file: TextIO) -> Write:
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(COLUMNS)
    return lambda path, prediction: rows.writerows(_rows(path, prediction))


def _json_lines(file: TextIO) -> Write:
    def write(path: str, prediction: Prediction) -> None:
        fields = {"image": text_of(path), "labels": prediction.labels, "probabilities": prediction.probabilities}
        file.write(json.dumps(fields) + "\n")

    return write


@contextmanager
def _parquet(path: Path) -> Iterator[Write]:
    require("parquet", "pyarrow")
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema(zip(COLUMNS, (pa.string(), pa.int32(), pa.string(), pa.float64()), strict=True))
    waiting: list[tuple[Any, ...]] = []
    with parquet.ParquetWriter(path, schema) as file:

        def flush() -> None:
            columns = zip(*waiting, strict=True) if waiting else [[]] * len(COLUMNS)
            file.write_table(pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema))
            waiting.clear()

        def write(image: str, prediction: Prediction) -> None:
            waiting.extend(_rows(image, prediction))
            if len(waiting) >= _ROWS_AT_ONCE:
                flush()

        yield write
        flush()


def _rows(path: str, prediction: Prediction) -> Iterator[tuple[str, int, str, float]]:
    pairs = zip(prediction.labels, prediction.probabilities, strict=True)
    for rank, (label, probability) in enumerate(pairs, start=1):
        yield text_of(path), rank, label, probability
