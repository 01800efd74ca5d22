"""How `vit runs` shows finished runs: a table of groups, a prediction, a figure of accuracy by cost."""

from collections.abc import Sequence

from vit_cli.console import say, table
from vit_cli.field_options import value_text
from vit_core.storage import Location
from vit_train import figures
from vit_train.run_groups import Group, PowerLaw, half_width


def print_runs(groups: Sequence[Group]) -> None:
    """Prints a line for each group of runs that differ in the seed alone, and what the intervals mean."""
    first, names, rows = groups[0], short_names(groups), list[tuple[object, ...]]()
    for name, group in zip(names, groups, strict=True):
        runs, width = group.runs, half_width(groups, len(group.runs))
        low, high = runs[0].interval if width is None else (max(group.mean - width, 0.0), min(group.mean + width, 1.0))
        average = "" if group.average_mean is None else f"{group.average_mean:.2%}"
        reached = f"{group.mean:.2%} ({low:.1%} - {high:.1%})"
        cost = f"{group.training_flops:.2e}"
        rows.append((name, len(runs), f"{runs[0].images:,}", cost, reached, average, _apart(group, groups)))
    columns = ("runs", "seeds", "images", "FLOPs", "top-1 (95 %)", "average", "from the first")
    table("finished runs", columns, rows)
    for name, group in zip(names[1:], groups[1:], strict=True):
        say(
            f"{name}: {', '.join(f'{field} {value_text(value)}' for field, value in group.changes_from(first).items())}"
        )
    if half_width(groups, 1) is None:
        say(
            "intervals: of one run's accuracy, from the number of images; two seeds of one config show what chance does"
        )
    else:
        say("intervals: of the mean over seeds, with one spread between seeds for all lines (Student's t)")


def _apart(group: Group, groups: Sequence[Group]) -> str:
    """The difference from the first group in percentage points, with its interval if there are several seeds."""
    first = groups[0]
    if group is first:
        return ""
    width = half_width(groups, len(group.runs), len(first.runs))
    apart = f"{100 * (group.mean - first.mean):+.2f}"
    return apart if width is None else f"{apart} ± {100 * width:.2f}"


def short_names(groups: Sequence[Group]) -> list[str]:
    """A name for each group: its run's folder, below the folder that holds all of them; of several runs the common
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
    """Prints the power law, and what it predicts for a run of `cost` FLOPs."""
    low, high = law.error_interval(cost)
    say(f"error = {law.error(1e15):.3f} x (FLOPs / 1e15) ^ {law.slope:.3f}, fitted to {law.points} lines")
    say(
        f"predicted at {cost:.2e} FLOPs: top-1 {1 - law.error(cost):.1%}, 95 % interval {1 - high:.1%} - {1 - low:.1%} "
        "(if the law holds that far)"
    )


def draw_runs(groups: Sequence[Group], law: PowerLaw | None, cost: float | None, path: Location) -> None:
    """Draws the error of every group by its cost, the power law and its prediction, and names the file."""
    names = short_names(groups)
    points = [
        (name, group.training_flops, [1 - run.top1 for run in group.runs])
        for name, group in zip(names, groups, strict=True)
    ]
    line = None if law is None or cost is None else (law.error, law.error_interval(cost), cost)
    say(f"figure {figures.errors_by_cost(points, line, path)}")
