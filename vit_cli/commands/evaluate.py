"""`vit evaluate`"""

from dataclasses import asdict, dataclass
from typing import Annotated, Literal

from cyclopts import Parameter

from vit_cli.option_types import (
    FieldWords,
    OptionalSize,
    OptionalTarget,
    PartName,
    Place,
    ReadFormat,
    open_and_report,
)
from vit_cli.training import require_training, run_with, stopped_by_signal
from vit_cli.twins import Framework
from vit_core.errors import InputError
from vit_core.field_text import parse_preprocessing
from vit_core.labels import LabelMatching
from vit_core.storage import Location
from vit_train.config import Data


@dataclass(frozen=True)
class Columns:
    """Which columns of a table, of parquet files or of shards are used, as in `vit_train.config.Data`."""

    image_column: Annotated[str | None, Parameter(name="--data.image-column", metavar="NAME")] = None
    """Column of the paths or images of --data. Default: as in the run, else path, image, file and the like."""
    label_column: Annotated[str | None, Parameter(name="--data.label-column", metavar="NAME")] = None
    """Column of the labels. Default: as in the run, else label, class, category and the like."""
    label_separator: Annotated[str | None, Parameter(name="--data.label-separator", metavar="TEXT")] = None
    """What separates several labels in one cell, such as ";". Default: as in the run."""
    label_columns: Annotated[
        tuple[str, ...], Parameter(name="--data.label-columns", metavar="NAMES", consume_multiple=True)
    ] = ()
    """Columns with 1 or 0, one for each class, instead of a column of labels. Default: as in the run."""
    split_column: Annotated[str | None, Parameter(name="--data.split-column", metavar="NAME")] = None
    """Column that says which split an image is in. Default: as in the run, else split, if there is one."""


def evaluate(
    checkpoint: Place,
    /,
    *,
    data: Annotated[str, Parameter(metavar="DATA")] | None = None,
    data_dir: Annotated[str, Parameter(metavar="FOLDER")] | None = None,
    columns: Annotated[Columns, Parameter(name="*")] = Columns(),
    split: Annotated[str, Parameter(metavar="NAME")] | None = None,
    held_out: float = 1.0,
    split_seed: int = 0,
    from_: ReadFormat | None = None,
    set_: FieldWords = (),
    part: PartName | None = None,
    framework: Framework = "torch",
    image_size: OptionalSize = None,
    batch_size: int = 100,
    compute_dtype: Literal["float32", "bfloat16"] = "float32",
    allow_undecodable: Annotated[bool, Parameter(negative=())] = False,
    labels: LabelMatching = "by-name",
    preprocessing: Annotated[tuple[str, ...], Parameter(metavar="FIELD=VALUE")] = (),
    json: Annotated[OptionalTarget, Parameter(metavar="FILE")] = None,
) -> int:
    """Measure the accuracy of a checkpoint on a data set.

    Every image counts once. Images are prepared as the checkpoint's own preprocessing says. The first table shows top-1
    and top-5 accuracy, the loss, and the 95 % interval of top-1; where images may have several classes, mean average
    precision and F1 (a class is answered where its probability is above 0.5). The second table shows each class. Where
    the checkpoint's own run was trained on some of the images, that is reported.

    Examples:
        vit evaluate runs/cifar10
        vit evaluate ViT-B_16.npz --data ./photos/
        vit evaluate runs/cifar10/steps/000100 --framework jax --json report.json

    Args:
        checkpoint: Checkpoint of any format, training run or saved step.
        data: A folder, written with a slash; the name of a tensorflow-datasets set; or digits. Default: the data of the
            run that the checkpoint belongs to.
        data_dir: Folder in which tensorflow-datasets sets are prepared.
        columns: Columns of the data.
        split: Split of the data set. Default: test if there is one, else a validation split.
        held_out: Share of a folder without splits. Default: all of it; without --data, as in the run.
        split_seed: Seed that chooses which images this share has.
        from_: Format of the checkpoint, where it is not recognised.
        set_: A field of its model's config that it does not contain, such as heads=6. May be repeated.
        part: The model to read, where the file holds several, such as model_ema.
        framework: Framework that computes.
        image_size: Resample the position embeddings for another image size: 384, or height x width as 384x512.
        batch_size: Images at once; this changes no result.
        compute_dtype: Type of the forward pass.
        allow_undecodable: Skip images that cannot be read, instead of stopping.
        labels: How the data set's classes are matched with the model's. By name, in any order; a model without names by
            position. By position: class i is output i. By number: the class called 7 is output 7.
        preprocessing: A field to use instead of the checkpoint's, such as mean=0.485,0.456,0.406. May be repeated.
        json: File to write everything into: all classes, their average precision, the confusion matrix.
    """
    require_training(framework)
    if batch_size < 1:
        raise InputError(f"--batch-size {batch_size}: expected 1 or more")
    from vit_cli.reports.evaluation import check_json, print_evaluation, write_json
    from vit_cli.reports.training import TerminalDisplay
    from vit_train.stages import evaluate_checkpoint

    if json is not None:
        check_json(json)
    try:
        of_run = _data_of_run(checkpoint)
    except InputError:  # a damaged run.json: the checkpoint may be whole
        if data is None:
            raise
        of_run = None
    source = _other_data(data, columns, of_run).replace(held_out=held_out, split_seed=split_seed) if data else of_run
    if source is None:
        raise InputError(f"{checkpoint}: of no training run, so the data to evaluate on are not known; add --data")
    with stopped_by_signal():
        found = evaluate_checkpoint(
            open_and_report(checkpoint, from_, set_, part),
            source.replace(directory=data_dir or source.directory),
            framework,
            split=split,
            image_size=image_size,
            batch_size=batch_size,
            compute_dtype=compute_dtype,
            allow_undecodable=allow_undecodable,
            labels=labels,
            preprocessing=parse_preprocessing(preprocessing),
            trained_on=of_run if data or split else None,
            ranked=json is not None,
            display=TerminalDisplay(),
        )
    print_evaluation(found)
    if json is not None:
        write_json(json, found)
    return 0


def _other_data(name: str, columns: Columns, of_run: Data | None) -> Data:
    """Data of another name, with the columns that are given, or else those of the run."""
    given = {column: value for column, value in asdict(columns).items() if value}
    labels_given = any(column.startswith("label") for column in given)
    inherited = (
        {}
        if of_run is None
        else {
            column: getattr(of_run, column)
            for column in asdict(columns)
            if not (labels_given and column.startswith("label"))
        }
    )
    return Data(name=name, **{**inherited, **given})


def _data_of_run(checkpoint: Location) -> Data | None:
    """The data of the training run that a checkpoint belongs to; None without a run."""
    from vit_train.run import read_request

    run = run_with(checkpoint)
    return None if run is None else read_request(run).config.data
