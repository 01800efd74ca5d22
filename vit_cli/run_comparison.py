"""Compares two training runs of one config, in a table and a figure."""

from pathlib import Path

import numpy as np

from vit_cli import console
from vit_cli.console import say, say_wrote
from vit_core import parity
from vit_core.checkpoints import open_checkpoint
from vit_core.checkpoints.run_folder import saved_steps
from vit_core.errors import InputError, abbreviate
from vit_core.storage import Location
from vit_train import figures
from vit_train.metrics import METRICS, curve, read_metrics
from vit_train.run import differences, read_request


def compare_runs(a: Location, b: Location, out: Path) -> None:
    """Prints the losses of both runs and the difference of the weights at the newest common step; draws both curves.

    Raises InputError for folders that are not runs, or are runs of different configs.
    """
    if found := differences(read_request(a), read_request(b)):
        raise InputError(
            f"{a} (here) and {b} (there) are runs of different configs: {abbreviate(found, '; ')}; expected runs that "
            f"differ only in the framework; vit runs {a} {b} compares the accuracy of other runs"
        )
    metrics = [read_metrics(run / METRICS) for run in (a, b)]
    losses = [dict(zip(*curve(lines, "loss"), strict=True)) for lines in metrics]
    steps = sorted(losses[0].keys() & losses[1].keys())
    if not steps:
        raise InputError(f"{a} and {b} have logged no step in common")
    shown = sorted({steps[round(i)] for i in np.linspace(0, len(steps) - 1, 12)})
    rows = [
        (step, f"{x:.6f}", f"{y:.6f}", f"{abs(x - y) / abs(y):.1e}")
        for step, x, y in ((step, losses[0][step], losses[1][step]) for step in shown)
    ]
    console.table(f"training loss of A, {a}, and B, {b}", ("step", "A", "B", "relative difference"), rows)
    hashes = [dict(zip(*curve(lines, "fingerprint"), strict=True)) for lines in metrics]
    if common := sorted(hashes[0].keys() & hashes[1].keys()):
        equal = sum(hashes[0][step] == hashes[1][step] for step in common)
        say(f"batches with equal fingerprints: {equal} of {len(common)}")
    _compare_weights(a, b)
    say_wrote(figures.compared_curves([(str(a), a / METRICS), (str(b), b / METRICS)], out))


def _compare_weights(a: Location, b: Location) -> None:
    """Prints the difference of the weights at the newest step that both runs have saved."""
    saved = [{int(folder.name): folder for folder in saved_steps(run)} for run in (a, b)]
    if not (common := saved[0].keys() & saved[1].keys()):
        return
    step = max(common)
    first, second = (open_checkpoint(steps[step]).arrays for steps in saved)
    relative = {name: parity.difference(first[name], second[name])[1] for name in first}
    worst = max(relative, key=lambda name: relative[name])
    same = sum(np.array_equal(first[name], second[name]) for name in first)
    say(
        f"weights after step {step}: {same} of {len(relative)} parameters equal bit for bit; largest "
        f"difference {relative[worst]:.1e} of its scale ({worst}), median {np.median(list(relative.values())):.1e}"
    )
