"""`vit predict`"""

from typing import Annotated, Literal

from cyclopts import Parameter

from vit_cli.option_types import (
    FieldWords,
    OptionalPlace,
    OptionalSize,
    OptionalTarget,
    PartName,
    Place,
    ReadFormat,
    open_and_report,
)
from vit_cli.reports.prediction import Kind
from vit_cli.twins import Framework
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
    unreadable: Literal["skip", "error"] = "skip",
    class_names: Annotated[OptionalPlace, Parameter(metavar="FILE")] = None,
    framework: Framework = "torch",
    batch_size: int = 32,
    threads: int | None = None,
    image_size: OptionalSize = None,
    compute_dtype: Literal["float32", "bfloat16"] = "float32",
    preprocessing: Annotated[tuple[str, ...], Parameter(metavar="FIELD=VALUE")] = (),
    from_: ReadFormat | None = None,
    set_: FieldWords = (),
    part: PartName | None = None,
    base: OptionalPlace = None,
) -> int:
    """Name what images show.

    Images are prepared as the checkpoint's own preprocessing says, decoded by several threads, and computed in
    batches, which all devices share. Probabilities are those of training: they sum to 1 over the classes, or are of
    each class by itself where an image may have several.

    Examples:
        vit predict runs/folder photo.jpg
        vit predict runs/folder ./photos --out predictions.csv
        find photos -name "*.jpg" | vit predict runs/folder - --to jsonl

    Args:
        checkpoint: Checkpoint of any format, training run or saved step.
        images: Files, folders (all images in them and below), and patterns such as "photos/*.jpg".
        stdin: Take the paths of images from standard input, one in each line; - is short for it.
        to: How to write: a table, CSV or parquet with a row for each class, JSON lines with one for each image.
            Default: as the name of the file ends; without a file a table.
        out: File to write to. Default: the terminal. Standard output then holds nothing else.
        top_k: Number of classes of each image.
        unreadable: What to do with an image that cannot be read: name and skip it, or end with an error.
        class_names: Text file with the names of the classes, one in each line, for a checkpoint without them.
        framework: Framework that computes.
        batch_size: Images at once; the last batch is filled up to this size.
        threads: Threads that decode. Default: one for each processor, at most 8.
        image_size: Resample the position embeddings for another image size: 384, or height x width as 384x512.
        compute_dtype: Type of the weights and the computation.
        preprocessing: A field to use instead of the checkpoint's, such as mean=0.485,0.456,0.406. May be repeated.
        from_: Format of the checkpoint, where it is not recognised.
        set_: A field of its model's config that it does not contain, such as heads=6. May be repeated.
        part: The model to read, where the file holds several, such as model_ema.
        base: Checkpoint that the adapters belong to, where it is a folder of adapters (default: the one that it names).
    """
    from vit_cli.inference import each_image, fitting_batch, import_twin, positive, warnings_said
    from vit_cli.named_images import named_images
    from vit_cli.reports.prediction import kind_of, writing

    positive(top_k=top_k, batch_size=batch_size, threads=threads)
    twin, kind, named = import_twin(framework), kind_of(to, out), named_images(images, stdin)
    with writing(kind, out) as write:
        with warnings_said():
            pipeline = twin.pipeline(
                open_and_report(checkpoint, from_, set_, part, base),
                top_k=top_k,
                batch_size=fitting_batch(named, batch_size),
                labels=None if class_names is None else _lines_of(class_names),
                preprocessing=parse_preprocessing(preprocessing),
                image_size=image_size,
                dtype=compute_dtype,
                threads=threads,
            )
        each_image(
            f"predict ({framework})",
            named.paths,
            named.count,
            pipeline.stream,
            write,
            unreadable=unreadable,
            batch_size=pipeline.batch_size,
            hardware=pipeline.function.hardware,
        )
    return 0


def _lines_of(path: Location) -> list[str]:
    """The lines of a text file. InputError where it cannot be read."""
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--class-names {path}: cannot be read ({reason})") from None
