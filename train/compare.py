"""`vit compare`: how far two runs of one config part, in a table and a figure."""

from pathlib import Path

import numpy as np

from vit_core import display, parity
from vit_core.checkpoint import open_checkpoint, saved_steps
from vit_core.display import say
from vit_core.errors import InputError

from . import figures, metrics
from .run import differences, read_request


def compare(a: Path, b: Path, out: Path) -> None:
    """Prints losses side by side and the distance of the weights at the newest common step; draws both curves.

    InputError for folders that are no runs, or runs of other configs.
    """
    if found := differences(read_request(a), read_request(b)):
        raise InputError(f"{a} and {b} are runs of other configs: {'; '.join(found)}")
    lines = [metrics.read(run / metrics.METRICS) for run in (a, b)]
    losses = [dict(zip(*metrics.curve(of, "loss"), strict=True)) for of in lines]
    steps = sorted(losses[0].keys() & losses[1].keys())
    if not steps:
        raise InputError(f"{a} and {b} have logged no step in common")
    shown = sorted({steps[round(i)] for i in np.linspace(0, len(steps) - 1, 12)})
    rows = [
        (step, f"{x:.6f}", f"{y:.6f}", f"{abs(x - y) / abs(y):.1e}")
        for step, x, y in ((step, losses[0][step], losses[1][step]) for step in shown)
    ]
    display.table(f"training loss of A, {a}, and B, {b}", ("step", "A", "B", "relative difference"), rows)
    prints = [dict(zip(*metrics.curve(of, "fingerprint"), strict=True)) for of in lines]
    if common := sorted(prints[0].keys() & prints[1].keys()):
        equal = sum(prints[0][step] == prints[1][step] for step in common)
        say(f"batches with equal fingerprints: {equal} of {len(common)}")
    _weights(a, b)
    say(f"figure {figures.compared_curves([(str(a), a / metrics.METRICS), (str(b), b / metrics.METRICS)], out)}")


def _weights(a: Path, b: Path) -> None:
    """Says how far the weights are apart at the newest step that both saved."""
    saved = [{int(folder.name): folder for folder in saved_steps(run)} for run in (a, b)]
    if not (common := saved[0].keys() & saved[1].keys()):
        return
    step = max(common)
    first, second = (open_checkpoint(of[step]).arrays for of in saved)
    apart = {name: parity.difference(first[name], second[name])[1] for name in first}
    worst = max(apart, key=lambda name: apart[name])
    same = sum(np.array_equal(first[name], second[name]) for name in first)
    say(
        f"weights after step {step}: {same} of {len(apart)} parameters equal bit for bit; furthest apart "
        f"{apart[worst]:.1e} of its scale ({worst}), median {np.median(list(apart.values())):.1e}"
    )
