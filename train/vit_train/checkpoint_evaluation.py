"""Evaluation of a checkpoint on a data set, alone or compared with another checkpoint."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from vit_core.checkpoints import Checkpoint
from vit_core.errors import InputError
from vit_core.labels import LabelMatching, match_labels
from vit_core.preprocess import Preprocessing, assumed_preprocessing
from vit_train.config import Data, EvaluationOptions
from vit_train.data.checking import DECODED, check_split, images_in_common, unreadable_line
from vit_train.data.sources import Split, open_split
from vit_train.display import SILENT, Display
from vit_train.engine import Framework
from vit_train.evaluation import Accuracy, evaluate
from vit_train.frameworks import join_processes, predictor_class
from vit_train.paired import PairedDifference
from vit_train.real_labels import RealAccuracy, RealLabels
from vit_train.signals import stop_signals

logger = logging.getLogger("vit")


@dataclass(frozen=True)
class Evaluation:
    """Accuracy of a checkpoint."""

    title: str
    """Checkpoint, split and framework, as text for the user."""
    accuracy: Accuracy
    images: int
    """Number of images of the split; accuracy.total is less if some could not be read and this was allowed."""
    process: int
    """Number of this process, from 0."""
    real: RealAccuracy | None = None
    """Accuracy by ImageNet's reassessed labels, if they were given."""
    other: "Evaluation | None" = None
    """The evaluation of another checkpoint on the same images, if one was given."""

    @cached_property
    def difference(self) -> PairedDifference | None:
        """The difference from the accuracy of the other checkpoint, if images have one class each; None without another
        checkpoint."""
        return None if self.other is None else PairedDifference.of(self.accuracy, self.other.accuracy)


def evaluate_checkpoint(
    checkpoint: Checkpoint,
    data: Data,
    framework: Framework,
    *,
    split: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    batch_size: int = 100,
    compute_dtype: Literal["float32", "bfloat16"] = "float32",
    allow_undecodable: bool = False,
    labels: LabelMatching = "by-name",
    preprocessing: Mapping[str, Any] | None = None,
    trained_on: Data | None = None,
    ranked: bool = False,
    one_class: bool = False,
    real_labels: RealLabels | None = None,
    display: Display = SILENT,
) -> Evaluation:
    """Accuracy of a checkpoint on a data set, by the preprocessing that the checkpoint records.

    labels: how the data set's classes are matched with the model's (vit_core.labels). preprocessing: fields that
    replace the checkpoint's. trained_on: the data of the checkpoint's run, if known: the title then says how many of
    the images were training images, unless training compared the same two splits. ranked: see `evaluate`. one_class:
    refuse a data set whose images may have several classes. real_labels: also compute the accuracy by these labels of
    ImageNet's validation images. Logs assumptions. Raises InputError if the model does not have a class of the data
    set, or if an image cannot be read; StoppedBySignal after SIGINT or SIGTERM.
    """
    checkpoint = checkpoint.adapt(image_size=image_size)
    examples = open_split(data.replace(eval_split=split) if split else data, "test")
    if one_class and examples.multilabel:
        raise InputError(
            f"{examples.title}: images may have several classes; --against compares predictions of one each"
        )
    examples.make_ready(display)
    if real_labels is not None:
        real_labels.check(examples)
    if (resampled := checkpoint.config.provenance.resampling_warning) is not None:
        logger.warning("%s", resampled)
    outputs, made = matched_outputs(checkpoint, examples, labels), _preprocessing_of(checkpoint, preprocessing or {})
    # The predictor normalizes by what the checkpoint records.
    checkpoint = checkpoint.with_config(checkpoint.config.replace(preprocessing=made))
    options = EvaluationOptions(
        preprocessing=made,
        batch_size=batch_size,
        loss="sigmoid" if examples.multilabel else "softmax",
        allow_undecodable=allow_undecodable,
    )
    join_processes(framework)
    with stop_signals() as stop:
        predictor = predictor_class(framework, "float32")(checkpoint, compute_dtype=compute_dtype)
        try:
            accuracy = evaluate(
                predictor, examples, options, outputs=outputs, ranked=ranked, stop=stop, display=display
            )
        except InputError:
            _refuse_unreadable(examples, made, display)
            raise
    own_split = split is None and data == trained_on
    title = examples.title + (_trained_share(trained_on, examples, own_split) if trained_on else "")
    real = None
    if real_labels is not None and accuracy.ids_N is not None and accuracy.classes and accuracy.classes.pairs:
        real = real_labels.accuracy(examples, accuracy.ids_N, accuracy.classes.pairs[1])
    return Evaluation(f"{checkpoint.origin} on {title}, {framework}", accuracy, len(examples), predictor.process, real)


def _refuse_unreadable(examples: Split, preprocessing: Preprocessing, display: Display) -> None:
    """Raises InputError if images of a split cannot be read, with their number and the option that skips them; only for
    a split whose images can all be tried in a short time."""
    if len(examples) > DECODED:
        return
    checked = check_split(examples, preprocessing, display)
    if checked.unreadable:
        raise InputError(f"{unreadable_line(checked)}; fix or remove them, or add --allow-undecodable") from None


def _trained_share(trained_on: Data, examples: Split, own_split: bool) -> str:
    """Text for the title of an evaluation: the number of its images that the run was trained on, which is also logged
    as a warning. Empty if there are none, and if the run's data are not on this machine, which is logged. own_split:
    the examples are a split of the run's data; they need no comparison if training evaluated on them, because it has
    compared them itself (preflight.check_data)."""
    try:
        if own_split and open_split(trained_on, "eval").title == examples.title:
            return ""
        count = images_in_common(open_split(trained_on, "train"), examples)
    except InputError as error:
        logger.info("whether these are images that the run was trained on is not known: %s", error)
        return ""
    if not count:
        return ""
    logger.warning(
        "the run was trained on %d of these %d images: on new images its accuracy can be lower", count, len(examples)
    )
    return f" ({count:,} of {len(examples):,} trained on)"


def matched_outputs(checkpoint: Checkpoint, examples: Split, labels: LabelMatching) -> tuple[int, ...]:
    """The output of the model for each class of a split; logs how they were matched. Raises InputError for other
    classes."""
    config = checkpoint.config
    if not config.model.num_classes:
        raise InputError(f"{checkpoint.origin}: has no head, so no classes to evaluate; fine-tune it first")
    try:
        match = match_labels(config.labels, config.model.num_classes, examples.labels, labels)
    except InputError as error:
        raise InputError(f"{checkpoint.origin} on {examples.title}: {error}") from None
    for note in match.notes:
        logger.info("%s", note)
    return match.outputs


def _preprocessing_of(checkpoint: Checkpoint, changes: Mapping[str, Any]) -> Preprocessing:
    """A checkpoint's preprocessing with some fields changed; logs what is assumed where it records none."""
    found, assumed = checkpoint.config.preparation(changes)
    if assumed:
        logger.warning("%s; set --preprocessing %s=VALUE", assumed_preprocessing(found), assumed[0])
    return found
