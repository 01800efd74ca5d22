"""`vit runs`"""

from math import isfinite
from typing import Annotated

from cyclopts import Parameter

from vit_cli.console import say
from vit_cli.option_types import OptionalTarget, Place
from vit_cli.requirements import require
from vit_core.errors import InputError
from vit_core.storage import require_local


def runs(
    folders: Annotated[tuple[Place, ...], Parameter(negative=())],
    /,
    *,
    at: Annotated[float | None, Parameter(metavar="FLOPS")] = None,
    png: Annotated[OptionalTarget, Parameter(metavar="FILE")] = None,
) -> int:
    """Compare the accuracy of finished runs, over their seeds and by their cost.

    Runs that differ only in the seed share a line, with their mean top-1 accuracy, its 95 % interval and the difference
    from the first line; mean average precision, where images may have several classes. The fields that differ from the
    first line are listed.

    Examples:
        vit runs runs/ablations
        vit runs runs/small runs/middle runs/large --at 1.55e16 --png scaling.png

    Args:
        folders: Training runs, or folders of training runs; runs in them that are not finished are left out.
        at: Fit a power law to the error as a function of the training cost, and print its prediction for a run of this
            cost.
        png: File for a figure of accuracy by cost.
    """
    require("train", "scipy", "matplotlib")
    from vit_cli.reports.runs import draw_runs, print_prediction, print_runs
    from vit_train.figures import check_new_figure
    from vit_train.run_groups import PowerLaw, UnfinishedError, grouped, read_finished_run, runs_under

    if at is not None and not (isfinite(at) and at > 0):
        raise InputError(f"--at {at}: expected a number of FLOPs above 0, such as 1.5e16")
    out = None if png is None else require_local(png, "--png")
    if out is not None:
        check_new_figure(out, "--png")
    finished = []
    for folder in folders:
        for run in runs_under(folder):
            try:
                finished.append(read_finished_run(run))
            except UnfinishedError as error:
                if run == folder:
                    raise
                say(f"left out: {error}")
    if not finished:
        raise InputError(f"{', '.join(map(str, folders))}: no finished run; see the lines above")
    groups = grouped(finished)
    law = None
    if at is not None:
        law = PowerLaw.fitted([group.training_flops for group in groups], [1 - group.mean for group in groups])
    print_runs(groups)
    if law is not None and at is not None:
        print_prediction(law, at)
    if out is not None:
        draw_runs(groups, law, at, out)
    return 0
