"""`vit evaluate`"""

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from vit_cli.evaluation_data import DATA_OF_RUN, DataOrRunOptions, data_of_run
from vit_cli.option_types import (
    AS_RECORDED,
    OptionalPlace,
    OptionalSize,
    OptionalTarget,
    Place,
    ReadingOptions,
    at_least,
)
from vit_cli.training import require_training, stopped_by_signal
from vit_cli.twins import Framework
from vit_core.errors import InputError
from vit_core.field_text import parse_preprocessing
from vit_core.labels import LabelMatching
from vit_core.storage import check_new_file

if TYPE_CHECKING:
    from vit_train.config import Data


def evaluate(
    checkpoint: Place,
    /,
    *,
    data: DataOrRunOptions = DATA_OF_RUN,
    held_out: float = 1.0,
    split_seed: int = 0,
    reading: ReadingOptions = AS_RECORDED,
    framework: Framework = "torch",
    image_size: OptionalSize = None,
    batch_size: int = 100,
    compute_dtype: Literal["float32", "bfloat16"] = "float32",
    allow_undecodable: Annotated[bool, Parameter(negative=())] = False,
    labels: LabelMatching = "by-name",
    preprocessing: Annotated[tuple[str, ...], Parameter(metavar="FIELD=VALUE")] = (),
    real_labels: OptionalPlace = None,
    against: OptionalPlace = None,
    json: Annotated[OptionalTarget, Parameter(metavar="FILE")] = None,
) -> int:
    """Measure the accuracy of a checkpoint on a data set.

    Every image counts once. Images are prepared by the checkpoint's own preprocessing. The first table shows top-1
    accuracy with its 95 % interval, top-5 accuracy if the model has more than five classes, and the loss; if images may
    have several classes, mean average precision and F1 (a class is predicted if its probability is above 0.5), and for
    each class the threshold with the best F1. A line compares the mean confidence with the accuracy (calibration). The
    second table shows each class. If the checkpoint's run was trained on some of these images, this is reported. Where
    the data have groups (--data.group), such as the images of one patient, the intervals do not count the images of a
    group as independent.

    Examples:
        vit evaluate runs/cifar10
        vit evaluate ViT-B_16.npz --data ./photos/
        vit evaluate runs/cifar10/steps/000100 --framework jax --json report.json
        vit evaluate runs/larger --against runs/photos

    Args:
        checkpoint: Checkpoint of any format, training run or saved step.
        data: The data to evaluate on.
        held_out: Fraction of a folder without splits. Default: all of it; without --data, as in the run.
        split_seed: Seed that selects these images.
        reading: How the checkpoint is opened.
        framework: Framework that computes.
        image_size: Resample the position embeddings for another image size: 384, or height x width as 384x512.
        batch_size: Number of images in a batch; it does not change the results.
        compute_dtype: Type of the forward pass.
        allow_undecodable: Skip images that cannot be read, instead of stopping.
        labels: How the data set's classes are matched with the model's. By name: in any order; a model without names is
            matched by position. By position: class i is output i. By number: the class named 7 is output 7.
        preprocessing: A field to use instead of the checkpoint's, such as mean=0.485,0.456,0.406. May be repeated.
        real_labels: The file real.json of ImageNet-ReaL: also print the accuracy on ImageNet's validation images by
            their reassessed labels. A prediction is correct if it is any of them; images without one are not counted.
        against: Another checkpoint to evaluate on the same images, with its own settings (options for opening, size and
            preprocessing apply to the first): also print the difference of the two accuracies, with the 95 % interval
            of the paired differences.
        json: File for all results: all classes, their average precision, the confusion matrix.
    """
    require_training(framework)
    at_least(1, batch_size=batch_size)
    data.check_columns()
    from vit_cli.reports.evaluation import WRITTEN, print_difference, print_evaluation, write_json
    from vit_cli.reports.training import TerminalDisplay
    from vit_train.checkpoint_evaluation import evaluate_checkpoint
    from vit_train.real_labels import RealLabels

    if json is not None:
        check_new_file(json, "--json", WRITTEN)
    of_run = data_of_run(checkpoint, required=data.name is None)
    source = data.of(of_run, held_out=held_out, split_seed=split_seed)
    opened = reading.open_and_report(checkpoint)
    if source is None:
        raise InputError(f"{checkpoint}: not in the folder of a training run, which would name its data; add --data")
    other = None if against is None else AS_RECORDED.open_and_report(against)
    measure = partial(
        evaluate_checkpoint,
        data=source,
        framework=framework,
        batch_size=batch_size,
        compute_dtype=compute_dtype,
        allow_undecodable=allow_undecodable,
        labels=labels,
        display=TerminalDisplay(),
    )
    with stopped_by_signal():
        found = measure(
            opened,
            image_size=image_size,
            preprocessing=parse_preprocessing(preprocessing),
            trained_on=_here(of_run, source),
            ranked=json is not None,
            real_labels=None if real_labels is None else RealLabels.read(real_labels),
            one_class=against is not None,
        )
        print_evaluation(found)
        if against is not None and other is not None:
            trained_on = _here(data_of_run(against, required=False), source)
            found = replace(found, other=measure(other, trained_on=trained_on))
        print_difference(found)
    if json is not None:
        write_json(json, found)
    return 0


def _here(of_run: "Data | None", source: "Data") -> "Data | None":
    """The data of a run. If a set of the same name is evaluated, its folder is used, because the set may have been
    moved."""
    if of_run is None or of_run.name != source.name:
        return of_run
    return of_run.replace(directory=source.directory)
