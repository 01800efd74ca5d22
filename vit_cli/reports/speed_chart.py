"""The chart of `vit bench model`."""

from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from vit_cli.benchmarks.implementations import KINDS
from vit_cli.benchmarks.model_speed import Part
from vit_core.storage import Location, staged_files

_TITLES = {"forward": "forward pass", "train": "train step"}


def draw(parts: Sequence[Part], path: Location) -> None:
    """Draws images/s of every implementation: a row of panels for each part, the forward pass beside the train step."""
    height = sum(1.2 + 0.32 * len(part.measured) for part in parts)
    figure, panels = plt.subplots(len(parts), 2, figsize=(11, height), squeeze=False, layout="tight")
    for part, row in zip(parts, panels, strict=True):
        for kind, panel in zip(KINDS, row, strict=True):
            names = [one.implementation for one in part.measured]
            speeds = [part.images_per_second(one, kind) for one in part.measured]
            spread = [[part.setting.batch_size / t for t in one.timing(kind).turns] for one in part.measured]
            low = [max(speed - min(each), 0) for speed, each in zip(speeds, spread, strict=True)]
            high = [max(max(each) - speed, 0) for speed, each in zip(speeds, spread, strict=True)]
            colors = ["C1" if one.framework == "jax" else "C0" for one in part.measured]
            bars = panel.barh(names, speeds, xerr=(low, high), color=colors, ecolor="0.45", height=0.7)
            for one, bar in zip(part.measured, bars, strict=True):
                bar.set_alpha(1.0 if one.implementation.startswith("vit_") else 0.5)
                utilisation = f" {part.utilisation(one, kind):.0%} MFU"
                panel.text(0, bar.get_y() + bar.get_height() / 2, utilisation, va="center", fontsize=8)
            panel.invert_yaxis()
            panel.set_title(f"{_TITLES[kind]}, images/s\n{part.setting}", fontsize=9)
            panel.grid(alpha=0.3, axis="x")
            panel.set_axisbelow(True)
    with staged_files(path.parent, (path.name,)) as stage:
        figure.savefig(stage / path.name, dpi=110)
    plt.close(figure)
