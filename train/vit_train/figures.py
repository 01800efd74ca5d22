"""Figures of runs and models, as PNG files."""

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.font_manager import get_font_names
from matplotlib.ticker import LogLocator, MaxNLocator, PercentFormatter

from vit_core import attention_maps
from vit_core.attention_maps import tiled
from vit_core.errors import InputError
from vit_core.storage import Location, Replaceable, check_new_file, staged_files
from vit_train import metrics

OTHER_SCRIPTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Zen Hei", "PingFang SC",
                 "Hiragino Sans GB", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Arial Unicode MS")  # fmt: skip
"""Fonts that are used, if installed, for characters that matplotlib's own font does not have."""
FILTER_COLUMNS = 7
ACCURACIES = {
    "macro_f1": ("macro F1", "C5"),
    "mean_average_precision": ("mAP", "C3"),
    "mean_average_precision_ema": ("mAP, moving average", "C6"),
    "top5": ("top-5", "C4"),
    "top1": ("top-1", "C2"),
    "top1_ema": ("top-1, moving average", "C0"),
}
"""Logged values between 0 and 1 -> their names and colors; later ones are drawn over earlier ones."""


def font_families() -> list[str]:
    """Names of fonts, in the order in which matplotlib looks for a character in them."""
    installed = set(get_font_names())
    return ["sans-serif", *(name for name in OTHER_SCRIPTS if name in installed)]


matplotlib.rcParams["font.family"] = font_families()


def training_curves(runs: Sequence[tuple[str, Location]], path: Location) -> Location:
    """Draws loss and learning rate by step and, if a run was evaluated, its accuracy below.

    runs: (title, metrics.jsonl), one column for each. Returns the path of the PNG file.
    """
    lines_of = [metrics.read_metrics(file) for _, file in runs]
    evaluated = any(metrics.curve(lines, name)[0] for lines in lines_of for name in ACCURACIES)
    heights = [1.6, 1] if evaluated else [1]
    size = (5.6 * len(runs), 3.8 + 2.2 * evaluated)
    figure, panels = plt.subplots(
        len(heights), len(runs), figsize=size, squeeze=False, layout="tight", height_ratios=heights, sharex="col"
    )
    for column, (title, _), lines in zip(panels.T, runs, lines_of, strict=True):
        _draw_loss(column[0], title, lines)
        if evaluated:
            _draw_accuracy(column[1], lines)
    return save_figure(figure, path)


def _draw_loss(panel: plt.Axes, title: str, lines: Sequence[Mapping[str, Any]]) -> None:
    steps, losses = metrics.curve(lines, "loss")
    marker = "o" if len(steps) == 1 else ""  # a line of one point is invisible
    panel.plot(steps, losses, color="C0", linewidth=1.2, marker=marker, markersize=3, label="training loss")
    if (evaluated := metrics.curve(lines, "evaluation_loss"))[0]:
        panel.plot(*evaluated, color="C2", marker="o", markersize=3, label="evaluation loss")
    names = {"top1": "top-1", "mean_average_precision": "mAP"}
    reached = [f": {text} {value:.1%}" for name, text in names.items() for value in metrics.curve(lines, name)[1]]
    panel.set(title=title + "".join(reached[-1:]), xlabel="step", ylabel="loss")
    panel.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    panel.grid(alpha=0.3)
    panel.legend(loc="upper right", fontsize=8)
    rate = panel.twinx()
    rate.plot(*metrics.curve(lines, "learning_rate"), color="C1", linewidth=1, linestyle="--")
    rate.set_ylabel("learning rate", color="C1")
    rate.set_ylim(bottom=0)


def _draw_accuracy(panel: plt.Axes, lines: Sequence[Mapping[str, Any]]) -> None:
    for name, (text, color) in ACCURACIES.items():
        if (curve := metrics.curve(lines, name))[0]:
            panel.plot(*curve, color=color, marker="o", markersize=3, label=text)
    panel.set(xlabel="step", ylabel="accuracy", ylim=(0, 1.02))
    panel.yaxis.set_major_formatter(PercentFormatter(1))
    panel.grid(alpha=0.3)
    panel.legend(loc="lower right", fontsize=8)


def compared_curves(runs: Sequence[tuple[str, Location]], path: Location) -> Location:
    """Draws the training losses of two runs (title, metrics.jsonl) in one panel, and their relative difference in
    another. Returns the path of the PNG file."""
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
    return save_figure(figure, path)


def errors_by_cost(
    points: Sequence[tuple[str, float, Sequence[float]]],
    line: tuple[Callable[[float], float], tuple[float, float], float] | None,
    path: Location,
) -> Location:
    """Draws errors (1 - accuracy) by the FLOPs of training, on logarithmic axes.

    points: (name, FLOPs, errors of its runs). line: the error as a function of FLOPs, the interval of the error
    predicted at the last FLOPs, and those FLOPs. Returns the path of the PNG file.
    """
    figure, panel = plt.subplots(figsize=(7.5, 4.6), layout="tight")
    for i, (name, cost, errors) in enumerate(points):
        panel.loglog([cost] * len(errors), errors, "o", color=f"C{i % 10}", markersize=5, label=name)
    if line is not None:
        error, (low, high), cost = line
        costs = np.geomspace(min(cost, *(point[1] for point in points)), max(cost, *(point[1] for point in points)))
        panel.loglog(costs, [error(each) for each in costs], "--", color="gray", linewidth=1, label="power law")
        panel.errorbar(
            [cost], [error(cost)], [[error(cost) - low], [high - error(cost)]], fmt="s", color="gray", capsize=4,
            label=f"predicted: top-1 {1 - error(cost):.1%}",
        )  # fmt: skip
    positive = [error for _, _, errors in points for error in errors if error > 0]
    if len(positive) < sum(len(errors) for _, _, errors in points):  # a logarithmic axis has no place for errors of 0
        smallest = min(positive, default=0.01)
        panel.set_yscale("symlog", linthresh=smallest)
        panel.set_ylim(bottom=-smallest / 10)
    else:
        panel.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
    panel.yaxis.set_major_formatter(PercentFormatter(1))
    panel.yaxis.set_minor_formatter(PercentFormatter(1))
    panel.tick_params(axis="y", which="minor", labelsize="medium")
    panel.set(xlabel="FLOPs of training", ylabel="error (1 - top-1)")
    panel.grid(alpha=0.3, which="both")
    panel.legend(fontsize=8)
    return save_figure(figure, path)


def position_similarity(tables: Sequence[tuple[str, np.ndarray, tuple[int, int]]], path: Location) -> Location:
    """Draws the cosine similarity of each patch's position embedding to all others (figure 7 of arXiv:2010.11929).

    tables: (title, pos_ND without prefix tokens, grid (h, w)), drawn side by side.
    """
    figure, panels = plt.subplots(1, len(tables), figsize=(4.8 * len(tables), 4.4), squeeze=False, layout="constrained")
    for panel, (title, pos_ND, grid) in zip(panels[0], tables, strict=True):
        similarity = tiled(attention_maps.position_similarity(pos_ND, grid))
        image = panel.imshow(similarity, vmin=-1, vmax=1, cmap="viridis", interpolation="nearest")
        panel.set_title(title, fontsize=10)
        panel.axis("off")
    figure.colorbar(image, ax=panels, shrink=0.8, label="cosine similarity")
    return save_figure(figure, path)


def patch_filters(kernels: Sequence[tuple[str, np.ndarray]], path: Location, count: int = 28) -> Location:
    """Draws the first principal components of patch filters (title, weight [D, C, P, Q]), each on its own scale, as in
    figure 7 of arXiv:2010.11929. If filters do not have 1 or 3 channels, the mean over channels is drawn."""
    figure, panels = plt.subplots(1, len(kernels), figsize=(4.8 * len(kernels), 3.2), squeeze=False, layout="tight")
    for panel, (title, weight_DCPQ) in zip(panels[0], kernels, strict=True):
        if weight_DCPQ.shape[1] not in (1, 3):
            weight_DCPQ = weight_DCPQ.mean(axis=1, keepdims=True)
        filters_KPQC = attention_maps.principal_filters(weight_DCPQ, count)
        rows = -(-len(filters_KPQC) // FILTER_COLUMNS)
        grid_KPQC = np.ones((rows * FILTER_COLUMNS, *filters_KPQC.shape[1:]))
        grid_KPQC[: len(filters_KPQC)] = filters_KPQC
        canvas = np.nan_to_num(tiled(grid_KPQC.reshape(rows, FILTER_COLUMNS, *filters_KPQC.shape[1:])), nan=1.0)
        panel.imshow(canvas.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        panel.set_title(title, fontsize=10)
        panel.axis("off")
    return save_figure(figure, path)


def check_new_figure(path: Location, option: str) -> None:
    """Raises InputError, with the name of the option, if no figure can be written at a location: the extension of its
    name is of another format, another file is there, or the file system refuses. Call it before a long computation."""
    if path.suffix.lower() not in (".png", ".pdf", ".svg"):  # in which matplotlib writes its name
        raise InputError(f"{option} {path}: expected a name that ends in .png, or in .pdf or .svg")
    check_new_file(path, option, Replaceable("a figure of matplotlib", _is_figure))


def _is_figure(path: Path) -> bool:
    """Whether a file names matplotlib as its creator: PNG and SVG at their beginning, PDF at its end."""
    with path.open("rb") as file:
        if path.suffix.lower() != ".pdf":
            return b"Matplotlib" in file.read(4096)
        file.seek(max(0, path.stat().st_size - 2**17))
        return b"/Creator (Matplotlib" in file.read()


def save_figure(figure: plt.Figure, path: Location) -> Location:
    """Writes a figure as a PNG file and closes it; returns the path."""
    with staged_files(path.parent, (path.name,)) as stage, _one_warning_of_missing_characters():
        figure.savefig(stage / path.name, dpi=110)
    plt.close(figure)
    return path


@contextmanager
def _one_warning_of_missing_characters() -> Iterator[None]:
    """Context in which one warning replaces matplotlib's warnings for each character that no font has."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    texts = dict.fromkeys(str(each.message) for each in caught)
    missing = "".join(chr(int(found[1])) for text in texts if (found := re.match(r"Glyph (\d+) ", text)))
    for text in texts:
        if not text.startswith("Glyph "):
            warnings.warn(text, stacklevel=4)
    if missing:
        fonts = "for Chinese, Japanese and Korean install Noto Sans CJK or Arial Unicode MS"
        warnings.warn(f"no font has the characters {missing}, so figures show boxes; {fonts}", stacklevel=4)
