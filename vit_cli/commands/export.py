"""`vit export`"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from vit_cli import console
from vit_cli.evaluation_data import NO_DATA, DataOptions, data_of_run
from vit_cli.export_check import on_data, on_random_images
from vit_cli.exported_files import (
    Runner,
    names_of_files,
    open_file,
    operators_of,
    require_packages,
    target_of,
    write_files,
)
from vit_cli.option_types import (
    AS_RECORDED,
    OptionalSize,
    Place,
    ReadingOptions,
    at_least,
)
from vit_cli.option_types import Target as WrittenPlace
from vit_cli.reports.export import print_on_data, print_program, print_random_images
from vit_cli.requirements import TRAINING, require
from vit_core.checkpoints import Checkpoint
from vit_core.checkpoints.overwriting import check_outside_runs
from vit_core.checkpoints.verification import check_not_source
from vit_core.deployment import Deployment, Input, Precision, Target
from vit_core.errors import InputError, abbreviate
from vit_core.field_text import parse_preprocessing
from vit_core.labels import LabelMatching
from vit_core.preprocess import Preprocessing
from vit_core.storage import Location, location, staged_files
from vit_core.traced_pixels import why_not_traceable

if TYPE_CHECKING:
    from vit_train.config import Data
    from vit_train.data.sources import Split


def export(
    source: Place,
    target: WrittenPlace,
    /,
    *,
    to: Target | None = None,
    input: Input | None = None,
    batch: Annotated[int | Literal["any"] | None, Parameter(metavar="NUMBER|any")] = None,
    any_size: Annotated[bool, Parameter(negative=())] = False,
    precision: Precision = "float32",
    image_size: OptionalSize = None,
    opset: int | None = None,
    preprocessing: Annotated[tuple[str, ...], Parameter(metavar="FIELD=VALUE")] = (),
    data: DataOptions = NO_DATA,
    images: int = 1000,
    labels: LabelMatching = "by-name",
    reading: ReadingOptions = AS_RECORDED,
    overwrite: Annotated[bool, Parameter(negative=())] = False,
    check: bool = True,
) -> int:
    """Write a checkpoint as a program for other runtimes, and check that it is the same model.

    The program contains the weights, the preprocessing (the part that --input selects), the labels and the provenance;
    this package is not needed to run it. Before the file appears at TARGET, it is run on random images: in onnxruntime,
    by torch.export.load, or by JAX. If its outputs differ from the model's, nothing is written and the exit status is
    1. With --data it is also compared with the model on a data set, from file to label.

    Examples:
        vit export runs/cifar10 cifar10.onnx
        vit export runs/cifar10 cifar10_int8.onnx --precision int8 --data cifar10
        vit export ViT-B_16.npz b16.pt2 --input pixels --any-size
        vit export runs/cifar10 cifar10.mlirbc --batch 8

    Args:
        source: Checkpoint of any format, training run or saved step.
        target: File to write. Its extension selects the target: .onnx, .pt2 (torch-export), .jaxexport or .mlirbc
            (stablehlo).
        to: Target, if the file has another extension.
        input: The input of the program. image: decoded uint8 images of any size, which it resizes by the checkpoint's
            preprocessing. pixels: uint8 images of the model's size, which it normalizes. normalized: float32. Default:
            image, if the target can express it.
        batch: Number of images, or any (default: any, if the target can express it; otherwise 1).
        any_size: Accept images whose sides are any multiples of the patch size (two patches or more), and resample the
            position embeddings in the program. For a model for images of any aspect (max_patches), the program takes
            images that are already resized by its preprocessing, of one size in a batch.
        precision: Type of weights and computation. int8: weights and inputs of matrix products in 8 bits, by
            onnxruntime's dynamic quantization.
        image_size: Resample the position embeddings for another image size: 384, or height x width as 384x512.
        opset: Opset of an ONNX file (default: 20).
        preprocessing: A field to use instead of the checkpoint's, such as mean=0.485,0.456,0.406. May be repeated.
        data: The images to compare on.
        images: Largest number of images of the data set, evenly spaced.
        labels: How the data set's classes are matched with the model's, as for vit evaluate.
        reading: How the checkpoint is opened.
        overwrite: Replace existing files.
        check: Run the written file and compare its outputs.
    """
    to = to or target_of(target)
    require_packages(to)
    if data.name is not None:
        require("train", *TRAINING)
    data.check_columns()
    at_least(1, images=images)
    if opset is not None and to != "onnx":
        raise InputError(f"--opset {opset}: only ONNX files have an opset; leave it out for {to}")
    opened = reading.open_and_report(source)
    check_not_source(target, source, location(opened.origin))
    check_outside_runs(target)
    checkpoint = opened.adapt(image_size=image_size)
    made = _preprocessing_of(checkpoint, preprocessing, any_size)
    if any_size and data.name is not None and made.max_patches is None:
        raise InputError("--data: images are brought to one size, so --any-size cannot be compared on them; remove one")
    if batch is None:
        batch = 1 if to == "stablehlo" else "any"
    deployment = Deployment.of(
        checkpoint,
        made,
        target=to,
        input=input or _default_input(to, made, any_size),
        batch=None if batch == "any" else batch,
        any_size=any_size,
        precision=precision,
    )
    names = names_of_files(target.name, checkpoint, deployment)
    _check_free(target, names, overwrite)
    comparison = None
    if (compared := data.of(data_of_run(source, required=False), held_out=1.0)) is not None:
        comparison = _comparison(checkpoint, compared, images, labels)
    try:
        with staged_files(target.parent, names) as stage:
            path = stage / target.name
            with console.working(f"tracing the model for {to}"):
                write_files(path, checkpoint, deployment, opset)
            size = sum((stage / name).stat().st_size for name in names)
            print_program(target.name, deployment, size, *operators_of(path, deployment))
            if check:
                _check_outputs(path, checkpoint, deployment, comparison)
    except _DiffersError:
        console.say(f"{target}: not written, because its outputs are not those of the model")
        return 1
    console.say_wrote(*(target.parent / name for name in reversed(names)))
    return 0


@dataclass(frozen=True)
class _Comparison:
    """The images of a data set that a program is compared on."""

    split: "Split"
    outputs: tuple[int, ...]
    """Class of the split -> output of the model."""
    images: int


class _DiffersError(Exception):
    """The outputs of a program differ from the model's by more than the bound."""


def _default_input(target: Target, preprocessing: Preprocessing, any_size: bool) -> Input:
    """The default of --input: images if the program can resize them, otherwise pixels, with a printed reason."""
    if any_size:
        return "pixels"
    reason = "a size that may change, which its modules cannot have" if target == "stablehlo" else None
    if reason := reason or why_not_traceable(preprocessing):
        console.say(f"input: pixels of the model's size, because the program cannot resize images: {reason}")
        return "pixels"
    return "image"


def _preprocessing_of(checkpoint: Checkpoint, words: Sequence[str], any_size: bool) -> Preprocessing:
    """The checkpoint's preprocessing with some fields changed. Prints what is assumed if it records none. Raises
    InputError if images would have different sizes but the program accepts only one."""
    model, recorded = checkpoint.config.model, checkpoint.config.preprocessing
    if recorded is None:
        console.say(
            "warning: preprocessing: the checkpoint does not record how its images were made; what --preprocessing "
            "does not set is assumed: mean=0.5 std=0.5 interpolation=bicubic resize=crop crop_fraction=1"
        )
    found = recorded or Preprocessing(image_size=model.image_size, channels=model.channels)
    found = found.replace(**parse_preprocessing(words))
    if found.max_patches is not None and not any_size:
        raise InputError(
            f"preprocessing.max_patches: {found.max_patches} gives each image its own size, but this program has one; "
            "add --any-size (images of one batch have one size), or --preprocessing max_patches=none (all are "
            f"resized to {'x'.join(map(str, found.image_size))})"
        )
    return found


def _check_free(target: Location, names: Sequence[str], overwrite: bool) -> None:
    """Raises InputError if files exist at the target and may not be replaced."""
    there = [name for name in names if (target.parent / name).exists()]
    if there and not overwrite:
        raise InputError(f"{target.parent}: already has {abbreviate(there)}; choose another name, or add --overwrite")


def _check_outputs(path: Path, checkpoint: Checkpoint, deployment: Deployment, comparison: _Comparison | None) -> None:
    """Runs a written program and the model on random images, and prints the differences. Raises _DiffersError if one
    exceeds its bound."""
    with console.working("running it"):
        program = open_file(path, deployment)
        found = on_random_images(checkpoint, deployment, program)
    print_random_images(found)
    if not all(each.ok for each in found):
        raise _DiffersError
    if comparison is not None:
        _compare(path.name, checkpoint, deployment, program, comparison)


def _comparison(checkpoint: Checkpoint, data: "Data", images: int, labels: LabelMatching) -> _Comparison:
    """Opens a data set. Raises InputError if it cannot be opened, or has other classes than the model."""
    from vit_cli.reports.training import TerminalDisplay
    from vit_train.checkpoint_evaluation import matched_outputs
    from vit_train.data.sources import open_split

    examples = open_split(data, "test")
    examples.make_ready(TerminalDisplay())
    return _Comparison(examples, matched_outputs(checkpoint, examples, labels), images)


def _compare(
    name: str, checkpoint: Checkpoint, deployment: Deployment, program: Runner, comparison: _Comparison
) -> None:
    """Prints the predictions of a program and of the model for images of a data set."""
    from vit_cli.reports.training import TerminalDisplay
    from vit_train.frameworks import predictor_class

    own = checkpoint.with_config(checkpoint.config.replace(preprocessing=deployment.preprocessing))
    twin = predictor_class(deployment.framework, "float32")(own)
    split, outputs = comparison.split, comparison.outputs
    found = on_data(twin, deployment, program, split, outputs, comparison.images, TerminalDisplay())
    print_on_data(name, deployment, found)
