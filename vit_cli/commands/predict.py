"""`vit predict`"""

from math import nextafter
from typing import Annotated, Literal

from cyclopts import Parameter

from vit_cli.option_types import (
    AS_RECORDED,
    IN_BATCHES,
    ComputingOptions,
    OptionalPlace,
    OptionalTarget,
    Place,
    ReadingOptions,
    at_least,
)
from vit_cli.reports.prediction import Kind
from vit_core.errors import InputError
from vit_core.field_text import parse_preprocessing
from vit_core.storage import Location


def predict(
    checkpoint: Place,
    images: Annotated[tuple[str, ...], Parameter(metavar="IMAGE")] = (),
    /,
    *,
    stdin: Annotated[bool, Parameter(negative=())] = False,
    to: Kind | None = None,
    out: Annotated[OptionalTarget, Parameter(metavar="FILE")] = None,
    top_k: int = 5,
    threshold: float | None = None,
    class_names: Annotated[OptionalPlace, Parameter(metavar="FILE")] = None,
    computing: ComputingOptions = IN_BATCHES,
    compute_dtype: Literal["float32", "bfloat16"] = "float32",
    reading: ReadingOptions = AS_RECORDED,
) -> int:
    """Predict the classes of images.

    Images are prepared by the checkpoint's own preprocessing, decoded by several threads, and computed in batches,
    which all devices share. Probabilities are computed as in training: they sum to 1 over the classes, or are
    independent for each class if an image may have several.

    Examples:
        vit predict runs/folder photo.jpg
        vit predict runs/folder ./photos --out predictions.csv
        find photos -name "*.jpg" | vit predict runs/folder - --to jsonl

    Args:
        checkpoint: Checkpoint of any format, training run or saved step.
        images: Files, folders (with all subfolders), patterns such as "photos/*.jpg", and tables (.csv, .tsv, .jsonl)
            with a column of paths, relative to their folder.
        stdin: Read the paths of images from standard input, one in each line; - is short for it.
        to: Form of the output: a table, CSV or parquet with a row for each class, JSON lines with one line for each
            image. Default: by the extension of the file; without a file, a table.
        out: File to write. Default: standard output; with --to csv or jsonl, nothing else is written there.
        top_k: Number of classes for each image.
        threshold: For a model of images with several classes: the table marks the classes whose probability is at least
            this number, the same for all classes (default: above 0.5; `vit evaluate` shows the threshold of each class
            with the best F1). Other outputs have no marks.
        class_names: Text file with the names of the classes, one in each line, for a checkpoint without them.
        computing: How images pass through the model.
        compute_dtype: Type of the weights and the computation.
        reading: How the checkpoint is opened.
    """
    from vit_cli.inference import each_image, fitting_batch, import_twin, warnings_said
    from vit_cli.named_images import named_images
    from vit_cli.reports.prediction import kind_of, writing

    at_least(1, top_k=top_k, batch_size=computing.batch_size, threads=computing.threads)
    twin, kind, named = import_twin(computing.framework), kind_of(to, out), named_images(images, stdin)
    if threshold is not None and not 0 <= threshold <= 1:
        raise InputError(f"--threshold {threshold:g}: expected a probability from 0 to 1")
    if threshold is not None and kind != "table":
        raise InputError(
            f"--threshold {threshold:g}: marks classes in the table; compare the probabilities in a {kind}"
        )
    marked_above: float | None = None
    with writing(kind, out, lambda: marked_above) as write:
        with warnings_said():
            pipeline = twin.pipeline(
                reading.open_and_report(checkpoint),
                top_k=top_k,
                batch_size=fitting_batch(named, computing.batch_size),
                labels=None if class_names is None else _lines_of(class_names),
                preprocessing=parse_preprocessing(computing.preprocessing),
                image_size=computing.image_size,
                dtype=compute_dtype,
                threads=computing.threads,
            )
        if pipeline.probabilities == "sigmoid":
            # A given threshold is included, as those of `vit evaluate` are; 0.5 is not, as in its decisions.
            marked_above = 0.5 if threshold is None else nextafter(threshold, -1.0)
        elif threshold is not None:
            raise InputError(
                f"--threshold {threshold:g}: each image has one class here, the most probable; leave it out"
            )
        each_image(
            f"predict ({computing.framework})",
            named.paths,
            named.count,
            pipeline.stream,
            write,
            unreadable=computing.unreadable,
            batch_size=pipeline.batch_size,
            hardware=pipeline.function.hardware,
        )
    return 0


def _lines_of(path: Location) -> list[str]:
    """The lines of a text file. Raises InputError if it cannot be read."""
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--class-names {path}: cannot be read ({reason})") from None
