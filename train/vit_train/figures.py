"""Figures of runs and models, as PNG files."""

from collections.abc import Sequence

import matplotlib
import numpy as np

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from vit_core.storage import Location, staged_files
from vit_train import metrics


def training_curves(runs: Sequence[tuple[str, Location]], path: Location) -> Location:
    """Draws loss, learning rate and, where a run was evaluated, accuracy over steps.

    runs: (title, metrics.jsonl), a panel for each. Returns the path of the PNG file.
    """
    figure, panels = plt.subplots(1, len(runs), figsize=(5.6 * len(runs), 3.8), squeeze=False, layout="tight")
    for panel, (title, file) in zip(panels[0], runs, strict=True):
        lines = metrics.read_metrics(file)
        panel.plot(*metrics.curve(lines, "loss"), color="C0", linewidth=1.2, label="training loss")
        if (evaluated := metrics.curve(lines, "evaluation_loss"))[0]:
            panel.plot(*evaluated, color="C2", marker="o", markersize=3, label="evaluation loss")
        names = {"top1": "top-1", "mean_average_precision": "mAP"}
        reached = [f": {text} {value:.1%}" for name, text in names.items() for value in metrics.curve(lines, name)[1]]
        panel.set(title=title + "".join(reached[-1:]), xlabel="step", ylabel="loss")
        panel.grid(alpha=0.3)
        panel.legend(loc="upper right", fontsize=8)
        rate = panel.twinx()
        rate.plot(*metrics.curve(lines, "learning_rate"), color="C1", linewidth=1, linestyle="--")
        rate.set_ylabel("learning rate", color="C1")
        rate.set_ylim(bottom=0)
    return _save(figure, path)


def compared_curves(runs: Sequence[tuple[str, Location]], path: Location) -> Location:
    """Draws the training losses of two runs (title, metrics.jsonl) in one panel, and their relative difference in
    another."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(7.5, 6), sharex=True, layout="tight")
    curves = [dict(zip(*metrics.curve(metrics.read_metrics(file), "loss"), strict=True)) for _, file in runs]
    for (title, _), curve, style in zip(runs, curves, ("-", "--"), strict=True):
        above.plot(list(curve), list(curve.values()), style, linewidth=1.3, label=title)
    steps = sorted(curves[0].keys() & curves[1].keys())
    apart = [abs(curves[0][step] - curves[1][step]) / abs(curves[1][step]) for step in steps]
    below.semilogy(steps, np.maximum(apart, 1e-8), color="C3", linewidth=1.2)
    above.set(ylabel="training loss", title="the same run, twice")
    above.legend()
    below.set(xlabel="step", ylabel="relative difference (at least 1e-8)")
    for panel in (above, below):
        panel.grid(alpha=0.3)
    return _save(figure, path)


def position_similarity(tables: Sequence[tuple[str, np.ndarray, tuple[int, int]]], path: Location) -> Location:
    """Draws the cosine similarity of each patch's position embedding to all others (figure 7 of arXiv:2010.11929).

    tables: (title, pos_ND without prefix tokens, grid (h, w)), drawn side by side.
    """
    figure = plt.figure(figsize=(4.4 * len(tables) + 0.8, 4.8))
    for panel, (title, pos_ND, (height, width)) in zip(
        figure.subfigures(1, len(tables), squeeze=False)[0], tables, strict=True
    ):
        unit_ND = pos_ND / np.linalg.norm(pos_ND, axis=1, keepdims=True)
        similarity = (unit_ND @ unit_ND.T).reshape(height, width, height, width)
        panel.suptitle(title, fontsize=10)
        axes = panel.subplots(height, width, squeeze=False, gridspec_kw={"wspace": 0.08, "hspace": 0.08})
        for y in range(height):
            for x in range(width):
                image = axes[y, x].imshow(similarity[y, x], vmin=-1, vmax=1, cmap="viridis")
                axes[y, x].set(xticks=[], yticks=[])
        panel.colorbar(image, ax=axes, shrink=0.7, label="cosine similarity")
    return _save(figure, path)


def patch_filters(kernels: Sequence[tuple[str, np.ndarray]], path: Location, columns: int = 12) -> Location:
    """Draws the first filters of patch embeddings (title, weight [D, C, P, Q]), each filter on its own scale."""
    figure = plt.figure(figsize=(5.2 * len(kernels), 4.6))
    for panel, (title, weight_DCPQ) in zip(figure.subfigures(1, len(kernels), squeeze=False)[0], kernels, strict=True):
        panel.suptitle(title, fontsize=10)
        rows = -(-len(weight_DCPQ) // columns)
        spacing = {"wspace": 0.1, "hspace": 0.1}
        for axis in panel.subplots(rows, columns, squeeze=False, gridspec_kw=spacing).flat:
            axis.axis("off")
        for axis, filter_CPQ in zip(panel.axes, weight_DCPQ, strict=False):
            spread = np.ptp(filter_CPQ) or 1.0
            axis.imshow(((filter_CPQ - filter_CPQ.min()) / spread).transpose(1, 2, 0), cmap="gray")
    return _save(figure, path)


def _save(figure: plt.Figure, path: Location) -> Location:
    with staged_files(path.parent, (path.name,)) as stage:
        figure.savefig(stage / path.name, dpi=110)
    plt.close(figure)
    return path
