"""Prints and draws finished runs for `vit runs`: a table of groups, a prediction, a figure of accuracy by cost."""

from collections.abc import Sequence

import numpy as np

from vit_cli.console import say, say_wrote, table
from vit_cli.field_options import value_text
from vit_core.errors import one_line
from vit_core.storage import Location
from vit_train import figures
from vit_train.run_groups import Group, PowerLaw, half_width


def print_runs(groups: Sequence[Group]) -> None:
    """Prints a line for each group of runs that differ only in the seed, and the meaning of the intervals; then, if
    known, the accuracy of their moving averages, and the steps at which they had the first group's accuracy. Where
    images may have several classes, mean average precision takes the place of top-1 accuracy."""
    first, names, rows = groups[0], short_names(groups), list[tuple[object, ...]]()
    accuracies = [group.top1 for group in groups]
    for name, group in zip(names, groups, strict=True):
        runs, width = group.runs, half_width(accuracies, len(group.runs))
        ends = runs[0].interval if width is None else (max(group.mean - width, 0.0), min(group.mean + width, 1.0))
        reached = f"{group.mean:.2%}" + ("" if ends is None else f" ({ends[0]:.1%} - {ends[1]:.1%})")
        width = half_width(accuracies, len(runs), len(first.runs))
        apart = "" if group is first else _points(group.mean - first.mean, width)
        apart = apart if group.same_evaluation(first) else "other images"
        rows.append((name, len(runs), f"{runs[0].images:,}", f"{group.training_flops:.2e}", reached, apart))
    table("finished runs", ("runs", "seeds", "images", "FLOPs", f"{_score(groups)} (95 %)", "from the first"), rows)
    for name, group in zip(names[1:], groups[1:], strict=True):
        changes = group.changes_from(first)
        words = [f"{field} {value_text(value)}" for field, value in changes.items() if field != "examples"]
        words += ["other images or labels"] if "examples" in changes else []
        say(f"{name}: {', '.join(words)}")
    if half_width(accuracies, 1) is None and all(run.multilabel for group in groups for run in group.runs):
        say("no intervals: that of a mean AP needs runs of several seeds")
    elif half_width(accuracies, 1) is None:
        found = dict.fromkeys(run.interval_from for group in groups for run in group.runs if run.interval_from)
        images = "the number of images" if not found else one_line(" and ".join(found))
        say(f"intervals: of one run's accuracy, from {images}; they do not include differences between seeds")
    else:
        say("intervals: of the mean over seeds, with one spread between seeds for all lines (Student's t)")
    _print_averages(groups, names)
    _print_steps(groups, names)


def _score(groups: Sequence[Group]) -> str:
    """The names of the values by which runs are compared."""
    kinds = dict.fromkeys(run.multilabel for group in groups for run in group.runs)
    return " or ".join("mean AP" if multilabel else "top-1" for multilabel in kinds)


def _print_averages(groups: Sequence[Group], names: Sequence[str]) -> None:
    """Prints the accuracy of the moving averages, and its difference from the last weights of the same runs."""
    having = [(name, group) for name, group in zip(names, groups, strict=True) if group.average_top1]
    gains = [np.subtract(group.average_top1, group.top1).tolist() for _, group in having]
    rows = [
        (name, f"{np.mean(group.average_top1):.2%}", _points(float(np.mean(gain)), half_width(gains, len(gain))))
        for (name, group), gain in zip(having, gains, strict=True)
    ]
    if rows:
        table("moving averages of the weights", ("runs", _score(groups), "from the last weights"), rows)


def _print_steps(groups: Sequence[Group], names: Sequence[str]) -> None:
    """Prints the number of steps after which each run had the final accuracy of the first group's run with its seed."""
    found = [(name, group.steps_to(groups[0])) for name, group in zip(names, groups, strict=True)]
    if not any(steps for _, steps in found[1:]):
        return
    found = [(name, steps) for name, steps in found if steps]
    seeds, rows = sorted({seed for _, steps in found for seed in steps}), list[tuple[object, ...]]()
    reached = [[step for step in steps.values() if step is not None] for _, steps in found]
    complete = [own for own, (_, steps) in zip(reached, found, strict=True) if len(own) == len(steps)]
    for (name, steps), own in zip(found, reached, strict=True):
        mean = ""
        if own in complete:
            width = half_width(complete, len(own))
            mean = f"{np.mean(own):.0f}{'' if width is None else f' ± {width:.0f}'}"
        rows.append((name, *(steps[seed] or "never" if seed in steps else "" for seed in seeds), mean))
    table("steps to the first's accuracy", ("runs", *(f"seed {seed}" for seed in seeds), "mean (95 %)"), rows)
    say("steps: up to the first evaluation with the final accuracy of the first line's run with the same seed")


def _points(difference: float, width: float | None) -> str:
    """A difference of accuracies in percentage points, with half of its interval if that is known."""
    return f"{100 * difference:+.2f}{'' if width is None else f' ± {100 * width:.2f}'}"


def short_names(groups: Sequence[Group]) -> list[str]:
    """A name for each group: the folder of its run, relative to the common folder of all; for several runs their common
    beginning and a star."""
    folders = [[str(run.folder) for run in group.runs] for group in groups]
    above = _common([folder for each in folders for folder in each]).rpartition("/")[0]
    return [
        (each[0] if len(each) == 1 else f"{_common(each)}*").removeprefix(above).removeprefix("/") for each in folders
    ]


def _common(names: Sequence[str]) -> str:
    """The beginning that all names share."""
    first, last = min(names), max(names)
    return next((first[:i] for i in range(len(first)) if not last.startswith(first[: i + 1])), first)


def print_prediction(law: PowerLaw, cost: float) -> None:
    """Prints the power law, and its prediction for a run of `cost` FLOPs."""
    low, high = law.error_interval(cost)
    say(f"error = {law.error(1e15):.3f} x (FLOPs / 1e15) ^ {law.slope:.3f}, fitted to {law.points} lines")
    say(
        f"predicted at {cost:.2e} FLOPs: top-1 {1 - law.error(cost):.1%}, 95 % interval {1 - high:.1%} - {1 - low:.1%} "
        "(if the law holds that far)"
    )


def draw_runs(groups: Sequence[Group], law: PowerLaw | None, cost: float | None, path: Location) -> None:
    """Draws the error of every group by its cost, the power law and its prediction, and prints the file's path."""
    names = short_names(groups)
    points = [
        (name, group.training_flops, [1 - run.top1 for run in group.runs])
        for name, group in zip(names, groups, strict=True)
    ]
    line = None if law is None or cost is None else (law.error, law.error_interval(cost), cost)
    say_wrote(figures.errors_by_cost(points, line, path))
