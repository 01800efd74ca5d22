"""The figures a run leaves behind, as PNG files."""

import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")

import matplotlib.pyplot as plt


def training_curves(metrics: Sequence[tuple[str, Path]], path: Path) -> Path:
    """Loss and learning rate over steps, a panel for each (title, metrics.jsonl)."""
    figure, panels = plt.subplots(1, len(metrics), figsize=(5.2 * len(metrics), 3.6), squeeze=False, layout="tight")
    for panel, (title, file) in zip(panels[0], metrics, strict=True):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        steps = [line["step"] for line in lines]
        panel.semilogy(steps, [line["loss"] for line in lines], color="C0", linewidth=1.2)
        panel.set(title=title, xlabel="step", ylabel="training loss (log scale)")
        panel.grid(alpha=0.3)
        rate = panel.twinx()
        rate.plot(steps, [line["learning_rate"] for line in lines], color="C1", linewidth=1, linestyle="--")
        rate.set_ylabel("learning rate", color="C1")
        rate.set_ylim(bottom=0)
    return _save(figure, path)


def position_similarity(tables: Sequence[tuple[str, np.ndarray, tuple[int, int]]], path: Path) -> Path:
    """Cosine similarity of each patch's position embedding to all others (the ViT paper's figure 7).

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


def patch_filters(kernels: Sequence[tuple[str, np.ndarray]], path: Path, columns: int = 12) -> Path:
    """The learned patch embedding: for each (title, weight [D, C, P, Q]) its filters, each on its own scale."""
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


def _save(figure: plt.Figure, path: Path) -> Path:
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
