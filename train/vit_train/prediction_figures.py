"""Figures of a model's predictions for the images of a data set, as PNG files."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np

from vit_core.storage import Location
from vit_train.attention_figures import draw_image
from vit_train.calibration import Calibration
from vit_train.classification import wilson_interval
from vit_train.figures import save_figure
from vit_train.predictions import PredictedImage

MOST_CLASSES = 40
"""Largest number of rows of the confusion matrix in a figure; of more classes, the most confused ones are drawn."""


def confusion_matrix(
    counts_CP: np.ndarray, labels: Sequence[str], predictions: Sequence[str], path: Location
) -> Location:
    """Draws the confusion matrix: classes (rows) by predicted classes (columns), each row as shares of its images. Of
    many classes, those that occur in the most wrong predictions are drawn. Returns the path of the PNG file."""
    wrong_CP = counts_CP.copy()
    np.fill_diagonal(wrong_CP, 0)
    if len(labels) > MOST_CLASSES:
        by_class = wrong_CP.sum(axis=1) + wrong_CP[:, : len(labels)].sum(axis=0)
        kept = np.sort(np.argsort(-by_class, kind="stable")[:MOST_CLASSES])
        counts_CP, labels, predictions = (
            counts_CP[np.ix_(kept, kept)],
            [labels[i] for i in kept],
            [labels[i] for i in kept],
        )
    shares_CP = counts_CP / np.maximum(counts_CP.sum(axis=1, keepdims=True), 1)
    side = max(4.0, 0.42 * len(labels) + 2)
    figure, panel = plt.subplots(figsize=(side + 0.8, side), layout="constrained")
    image = panel.imshow(shares_CP, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts_CP):
        if count and len(labels) <= 20:
            dark = shares_CP[row, column] > 0.5
            panel.text(column, row, count, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    names = [[_text(name, 26) for name in each] for each in (predictions, labels)]
    panel.set_xticks(range(len(predictions)), names[0], rotation=90, fontsize=8)
    panel.set_yticks(range(len(labels)), names[1], fontsize=8)
    panel.set(xlabel="prediction", ylabel="class")
    figure.colorbar(image, ax=panel, shrink=0.8, label="share of the class")
    return save_figure(figure, path)


def reliability(found: Calibration, path: Location) -> Location:
    """Draws the accuracy of the predictions in each bin of confidence, with Wilson's 95 % interval, over their mean
    confidence; and how many predictions each bin has (a reliability diagram). Returns the path of the PNG file."""
    counts_K = found.counts_K.astype(int)
    (bins,) = np.nonzero(counts_K)
    accuracies = found.correct_K[bins] / counts_K[bins]
    ends_2 = np.array([wilson_interval(int(found.correct_K[k]), int(counts_K[k])) for k in bins]).T
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(4.6, 5.6), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    above.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1, label="calibrated")
    above.errorbar(
        found.confidences_K[bins] / counts_K[bins],
        accuracies,
        np.maximum(np.abs(ends_2 - accuracies), 0),
        fmt="o",
        markersize=4,
        capsize=2,
        label="predictions, 95 % interval",
    )
    edges = np.linspace(0, 1, len(counts_K) + 1)
    below.bar(edges[:-1], counts_K, width=1 / len(counts_K), align="edge", edgecolor="white")
    above.set(ylabel="accuracy", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    below.set(xlabel="confidence (probability of the prediction)", ylabel="predictions")
    below.yaxis.get_major_locator().set_params(integer=True)
    above.legend(loc="upper left", fontsize=8)
    return save_figure(figure, path)


def predicted_images(images: Sequence[PredictedImage], path: Location, columns: int = 8) -> Location:
    """Draws images with their class, the predicted class and its probability. Returns the path of the PNG file."""
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure, panels = plt.subplots(rows, columns, figsize=(1.35 * columns, 1.75 * rows), squeeze=False, layout="tight")
    for panel in panels.flat:
        panel.axis("off")
    for panel, image in zip(panels.flat, images, strict=False):
        draw_image(panel, image.pixels_HWC)
        title = f"{_text(image.label, 20)}\n→ {_text(image.prediction, 16)} {image.probability:.0%}"
        panel.set_title(title, fontsize=7)
    return save_figure(figure, path)


def _text(name: str, most: int) -> str:
    """A name of at most `most` characters, escaped so that matplotlib does not read formulas in it. Of a longer one the
    beginning and the end are kept, because similar names of classes often differ in their last word."""
    line = " ".join(name.split())
    if len(line) > most:
        line = f"{line[: most // 2].rstrip()} … {line[-(most - most // 2 - 3) :].lstrip()}"
    return line.replace("$", r"\$")
