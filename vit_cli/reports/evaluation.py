"""Prints evaluations and writes them as JSON: accuracies, and the metrics of each class."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from vit_cli.console import say, say_wrote, table
from vit_cli.reports.groups import groups_line
from vit_core.errors import one_line
from vit_core.storage import Location, json_report, staged_files
from vit_train.calibration import Calibration
from vit_train.checkpoint_evaluation import Evaluation
from vit_train.classification import ClassReport
from vit_train.evaluation import Accuracy

WRITTEN = json_report("a file of vit evaluate", "evaluated", "images", "skipped", "loss")
"""The files that `vit evaluate --json` replaces."""
ALL_LISTED, WORST_LISTED = 20, 10
"""Largest number of classes that are all listed, and number of the worst classes that are listed of more."""


def print_evaluation(evaluation: Evaluation) -> None:
    """Prints the accuracy of a checkpoint, the metrics of each class, and the number of skipped images."""
    if evaluation.process:
        return
    accuracy = evaluation.accuracy
    print_accuracies(evaluation.title, [("weights", accuracy)])
    if accuracy.calibration is not None:
        calibrated = accuracy.calibration
        say(
            f"calibration error {calibrated.expected_error:.2%} ({len(calibrated.counts_K)} bins): mean confidence "
            f"{calibrated.confidence:.2%}, accuracy {accuracy.top1:.2%}"
        )
    if evaluation.real is not None:
        real, (low, high) = evaluation.real, evaluation.real.interval
        say(f"ReaL: {real.top1:.2%} ({low:.2%} - {high:.2%}) of the {real.total:,} images with a reassessed label")
    if accuracy.classes is not None:
        _print_classes(accuracy.classes)
    if skipped := evaluation.images - accuracy.total:
        say(f"skipped, because they cannot be read: {skipped} of {evaluation.images} images")


def print_difference(evaluation: Evaluation) -> None:
    """Prints the difference from the accuracy of the other checkpoint, if there is one."""
    other, found = evaluation.other, evaluation.difference
    if evaluation.process or other is None or found is None:
        return
    images = f"{found.total:,} images" if found.groups is None else one_line(str(found.groups))
    certain = f"no interval: the difference is the same {'for all images' if found.groups is None else 'in all groups'}"
    if found.interval is not None:
        certain = "95 % interval {:+.2f} to {:+.2f}".format(*(100 * end for end in found.interval))
    say(f"{other.title}: top-1 {other.accuracy.top1:.2%}")
    say(
        f"difference on the same {images}: {100 * found.difference:+.2f} points ({certain}); only the "
        f"first is right: {found.first_alone:,} images, only the second: {found.second_alone:,}"
    )


def print_accuracies(title: str, accuracies: Sequence[tuple[str, Accuracy]]) -> None:
    """Prints accuracies as a table."""
    cells = [{"": name, **_cells(accuracy)} for name, accuracy in accuracies]
    columns = max(cells, key=len)
    table(title, tuple(columns), [[row.get(column, "-") for column in columns] for row in cells])
    numbers = [accuracy.effective for _, accuracy in accuracies]
    if (groups := accuracies[0][1].groups) is not None and None not in numbers:
        say(groups_line(groups, numbers))


def write_json(path: Location, evaluation: Evaluation) -> None:
    """Writes all numbers of an evaluation as a JSON file, in process 0 only. Raises InputError if it cannot be
    written."""
    if evaluation.process:
        return
    with staged_files(path.parent, (path.name,)) as stage:
        (stage / path.name).write_text(json.dumps(_json_of(evaluation), indent=1, allow_nan=False) + "\n")
    say_wrote(path)


def _json_of(evaluation: Evaluation) -> dict[str, Any]:
    accuracy, classes = evaluation.accuracy, evaluation.accuracy.classes
    interval: dict[str, Any] = {} if accuracy.multilabel else {"top1_interval": accuracy.interval}
    if accuracy.groups is not None:
        interval |= {"group": accuracy.groups.column, "groups": accuracy.groups.count}
        interval |= {"effective_images": accuracy.effective}
    return {
        "evaluated": evaluation.title,
        "images": accuracy.total,
        "skipped": evaluation.images - accuracy.total,
        "loss": accuracy.loss if np.isfinite(accuracy.loss) else None,
        **accuracy.values,
        **interval,
        **({"real_top1": evaluation.real.top1, "real_images": evaluation.real.total} if evaluation.real else {}),
        **_json_of_difference(evaluation),
        **({} if accuracy.calibration is None else _json_of_calibration(accuracy.calibration)),
        **(classes.to_json() if classes else {}),
    }


def _json_of_difference(evaluation: Evaluation) -> dict[str, Any]:
    other, found = evaluation.other, evaluation.difference
    if other is None or found is None:
        return {}
    return {
        "against": other.title,
        "against_top1": other.accuracy.top1,
        "top1_difference": found.difference,
        "top1_difference_interval": found.interval,
    }


def _json_of_calibration(found: Calibration) -> dict[str, Any]:
    bins = {"predictions": found.counts_K, "confidences": found.confidences_K, "correct": found.correct_K}
    return {
        "calibration_error": found.expected_error,
        "mean_confidence": found.confidence,
        "calibration_bins": {name: values.tolist() for name, values in bins.items()},
    }


def _cells(accuracy: Accuracy) -> dict[str, object]:
    """The cells of a table by the names of their columns."""
    rest = {"loss": f"{accuracy.loss:.4f}", "images": accuracy.total}
    if accuracy.multilabel and accuracy.classes:
        classes = accuracy.classes
        names = ("mean AP", "macro F1", "micro F1", "all classes right")
        values = (classes.mean_average_precision, classes.macro_f1, classes.micro_f1, accuracy.top1)
        return {**dict(zip(names, map(_percent, values), strict=True)), **rest}
    low, high = accuracy.interval
    top5 = {} if accuracy.top5 is None else {"top-5": f"{accuracy.top5:.2%}"}
    return {"top-1": f"{accuracy.top1:.2%}", "95 % interval": f"{low:.2%} - {high:.2%}", **top5, **rest}


def _print_classes(report: ClassReport) -> None:
    f1_C, count = report.f1_C, len(report.labels)
    shown, which = np.arange(count), ""
    if count > ALL_LISTED:
        shown = np.argsort(f1_C, kind="stable")[:WORST_LISTED]  # nan (a class without examples) is last
        which = f"; shown are the {WORST_LISTED} with the lowest F1, --json FILE has all"
    recall = "recall" if report.pairs is None else "accuracy"
    columns = {recall: report.recall_C, "precision": report.precision_C, "F1": f1_C}
    if report.average_precision_C is not None:
        columns["average precision"] = report.average_precision_C
    best = report.best_f1
    if best is not None:
        columns["best F1"] = best.f1_C
    rows = [
        [one_line(report.labels[i]), report.examples_C[i], *(_percent(values_C[i]) for values_C in columns.values())]
        for i in shown
    ]
    if best is not None:
        rows = [[*row, _threshold(best.thresholds_C[i])] for row, i in zip(rows, shown, strict=True)]
    table("classes", ("class", "images", *columns, *(["at"] if best is not None else [])), rows)
    if best is not None:
        say(
            "F1: with a class predicted above a probability of 0.5; best F1: from the probability beside it on, which "
            "is chosen on these images, so that F1 on new images is lower"
        )
    say(f"{count} classes, macro F1 {_percent(report.macro_f1)}, micro F1 {_percent(report.micro_f1)}{which}")


def _threshold(value: float) -> str:
    """A threshold of a probability with four decimals, rounded down so that no prediction is lost; "-" for nan."""
    return "-" if np.isnan(value) else f"{np.floor(value * 1e4) / 1e4:.4f}"


def _percent(value: float | None) -> str:
    """A fraction in percent; "-" for None."""
    return "-" if value is None or np.isnan(value) else f"{value:.2%}"
