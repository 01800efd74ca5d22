"""`vit show`"""

import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from cyclopts import Parameter

from vit_cli import console
from vit_cli.evaluation_data import DATA_OF_RUN, DataOrRunOptions, GivenOrRunData, data_of_run, run_containing
from vit_cli.option_types import (
    AS_RECORDED,
    OptionalPlace,
    OptionalSize,
    OptionalTarget,
    Place,
    ReadingOptions,
    at_least,
)
from vit_cli.reports.page import GENERATOR, page
from vit_cli.training import require_training
from vit_cli.twins import Framework
from vit_core.checkpoints import Checkpoint
from vit_core.errors import InputError, abbreviate
from vit_core.labels import LabelMatching
from vit_core.parameters import parameters
from vit_core.preprocess import Preprocessing, decode, resize_image
from vit_core.storage import Location, absolute, check_new_folder, local_copy, location, staged_files

if TYPE_CHECKING:
    from vit_cli.shown_figures import Shown
    from vit_train.data.sources import Split
    from vit_train.display import Display
    from vit_train.predictions import Predictions

PAGE = "index.html"


def show(
    checkpoint: Place,
    image: Annotated[OptionalPlace, Parameter(metavar="IMAGE")] = None,
    /,
    *,
    out: Annotated[OptionalTarget, Parameter(metavar="FOLDER")] = None,
    data: DataOrRunOptions = DATA_OF_RUN,
    images: int = 1000,
    labels: LabelMatching = "by-name",
    framework: Framework = "torch",
    image_size: OptionalSize = None,
    reading: ReadingOptions = AS_RECORDED,
    overwrite: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Draw a model's filters, attention and wrong predictions.

    Writes PNG files and index.html, a page with all of them that needs no other file: patch filters and position
    embeddings; for an image, attention by head and layer, attention rollout, mean attention distance and the attention
    of registers; for a training run the curves; for its data set the confusion matrix and the worst wrong predictions,
    or, for a masked autoencoder, images that it completes. Figures that cannot be drawn are listed.

    Examples:
        vit show runs/cifar10
        vit show ViT-B_16.npz cat.jpg --out cat
        vit show runs/photos --data ./new_photos/ --images 200

    Args:
        checkpoint: Checkpoint of any format, training run or saved step.
        image: Image for the figures of attention. Default: the first of the data set.
        out: Folder to write (default: the checkpoint's name followed by _figures).
        data: The data whose images are used.
        images: Largest number of images of the data set, evenly spaced.
        labels: How the data set's classes are matched with the model's, as for vit evaluate.
        framework: Framework that computes.
        image_size: Resample the position embeddings for another image size: 384, or height x width as 384x512.
        reading: How the checkpoint is opened.
        overwrite: Write into a folder that contains other files, and replace files of the same names.
    """
    require_training(framework)
    at_least(1, images=images)
    data.check_columns()
    from vit_cli.reports.training import TerminalDisplay
    from vit_cli.shown_figures import Shown

    folder = out or location(f"{absolute(checkpoint).name}_figures")
    _check_free(folder, overwrite)
    check_new_folder(folder, "--out")
    opened = reading.open_and_report(checkpoint).adapt(image_size=image_size)
    model, recorded = opened.config.model, opened.config.preprocessing
    preprocessing = recorded or Preprocessing(image_size=model.image_size, channels=model.channels)
    drawn_for = None if image is None else (image.name, _pixels(image, preprocessing))
    display = TerminalDisplay()
    examples = _examples(checkpoint, data, display)
    predictions = None
    if examples is not None:
        predictions = _predictions(opened, preprocessing, examples, framework, images, labels, display)
    if drawn_for is None and examples is not None:
        drawn_for = _first_readable(examples, predictions, preprocessing)
    shown = Shown(
        opened, preprocessing, framework, display, drawn_for, run_containing(checkpoint), examples, predictions
    )
    _write(folder, str(checkpoint), shown)
    return 0


def _check_free(folder: Location, overwrite: bool) -> None:
    """Raises InputError if a folder has files but no page that `vit show` wrote."""
    if not folder.exists() or overwrite:
        return
    if folder.is_file():
        raise InputError(f"{folder}: is a file; choose another --out")
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    if names and not ((folder / PAGE).is_file() and GENERATOR.encode() in (folder / PAGE).read_bytes()):
        raise InputError(
            f"{folder}: contains other files ({abbreviate(names, most=3)}); choose another --out, or add --overwrite"
        )


def _pixels(image: Location, preprocessing: Preprocessing) -> np.ndarray:
    """An image's pixels by the checkpoint's preprocessing. Raises InputError if it cannot be read."""
    if image.is_dir():
        raise InputError(f"{image}: is a folder; give one image")
    with local_copy(image) as file:
        return resize_image(decode(file, preprocessing), preprocessing)


def _first_readable(
    examples: "Split", predictions: "Predictions | None", preprocessing: Preprocessing
) -> tuple[str, np.ndarray]:
    """Name and pixels of the first image that can be read. Raises InputError if there is none."""
    from vit_train.data.batches import evaluation_pixels
    from vit_train.predictions import readable_among

    ids = range(len(examples)) if predictions is None else predictions.ids_N
    for i, pixels_HWC, _ in readable_among(examples, ids, partial(evaluation_pixels, preprocessing=preprocessing)):
        return examples.name(i), pixels_HWC
    raise InputError(f"{examples.title}: no image can be read; see the lines above")


def _examples(checkpoint: Location, data: GivenOrRunData, display: "Display") -> "Split | None":
    """The images of --data or, without it, of the run. If there are none, None, with a printed reason."""
    from vit_train.data.sources import open_split

    if (source := data.of(data_of_run(checkpoint), held_out=1.0)) is None:
        return None
    try:
        examples = open_split(source, "test")
    except InputError as error:
        if data.name is not None:
            raise
        console.say(f"not drawn: confusion matrix and worst images; the data of the run: {error}")
        return None
    examples.make_ready(display)
    return examples


def _predictions(
    checkpoint: Checkpoint,
    preprocessing: Preprocessing,
    examples: "Split",
    framework: Framework,
    images: int,
    labels: LabelMatching,
    display: "Display",
) -> "Predictions | None":
    """The model's predictions for a data set. If images may have several classes or the model has no head, None, with a
    printed reason."""
    from vit_train.checkpoint_evaluation import matched_outputs
    from vit_train.frameworks import predictor_class
    from vit_train.predictions import predictions_for

    if examples.multilabel:
        console.say("not drawn: confusion matrix and worst images; images may have several classes")
        return None
    if not checkpoint.config.model.num_classes:
        console.say("not drawn: confusion matrix and worst images; the model has no head")
        return None
    outputs = matched_outputs(checkpoint, examples, labels)
    own = checkpoint.with_config(checkpoint.config.replace(preprocessing=preprocessing))
    predictor = predictor_class(framework, "float32")(own)
    return predictions_for(predictor, examples, preprocessing, outputs, images, display)


def _write(folder: Location, title: str, shown: "Shown") -> None:
    """Draws everything, and writes all files at once."""
    with tempfile.TemporaryDirectory(prefix="vit-") as scratch:
        drawn = []
        for figure in shown.figures():
            with console.working(f"drawing {figure.file}"):
                figure.draw(Path(scratch) / figure.file)
            drawn.append((figure.title, figure.text, Path(scratch) / figure.file))
        names = (*(file.name for *_, file in drawn), PAGE)
        with staged_files(folder, names) as stage:
            for *_, file in drawn:
                shutil.copyfile(file, stage / file.name)
            (stage / PAGE).write_text(page(title, _facts(shown.checkpoint), drawn), encoding="utf-8")
    for name in names:
        console.say_wrote(folder / name)


def _facts(checkpoint: Checkpoint) -> list[tuple[str, object]]:
    """The facts about a checkpoint in the page's table."""
    config, model = checkpoint.config, checkpoint.config.model
    provenance = {name: value for name, value in config.provenance.model_dump(mode="json").items() if value}
    provenance.pop("position_resampling", None)
    return [
        ("format", checkpoint.format),
        ("parameters", f"{sum(row.size for row in parameters(model).values()):,}"),
        ("image size", "x".join(map(str, model.image_size))),
        ("patch size", "x".join(map(str, model.patch_size))),
        ("layers, heads, width", f"{model.depth}, {model.heads}, {model.width}"),
        ("pooling", model.pooling),
        ("classes", abbreviate(config.labels, most=12) if config.labels else model.num_classes),
        ("provenance", ", ".join(f"{name} {value}" for name, value in provenance.items()) or "-"),
    ]
