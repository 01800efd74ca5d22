"""Figures of labels in other scripts, of few images and of few steps."""

import json
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import Image

from vit_train import figures
from vit_train.prediction_figures import confusion_matrix, predicted_images
from vit_train.predictions import PredictedImage

LABELS = ["\u84dd\u8272", "cat"]


def drawn(path: Path) -> list[str]:
    """Draws a figure with a label of Chinese characters; returns the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        confusion_matrix(np.eye(2, dtype=int), LABELS, LABELS, path)
    return [str(each.message) for each in caught]


def test_characters_that_no_font_has_are_named_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plt.rcParams, "font.family", ["DejaVu Sans"])
    (text,) = drawn(tmp_path / "a.png")
    assert text.startswith(
        "no font has the characters \u84dd\u8272, so figures show boxes; for Chinese, Japanese and Korean install"
    )


def test_characters_are_drawn_with_an_installed_font(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A font is built under the name of one for Chinese, in which each character is a filled square."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 1000), (1000, 1000), (1000, 0)):
        pen.lineTo(corner)
    pen.closePath()
    names, square = [".notdef", "blue", "color"], pen.glyph()
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(names)
    font.setupCharacterMap({ord("\u84dd"): "blue", ord("\u8272"): "color"})
    font.setupGlyf(dict.fromkeys(names, square))
    font.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    font.setupHorizontalHeader(ascent=1000, descent=0)
    font.setupNameTable({"familyName": "Source Han Sans SC", "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(tmp_path / "chinese.ttf")
    monkeypatch.setattr(font_manager.fontManager, "ttflist", list(font_manager.fontManager.ttflist))
    font_manager.fontManager.addfont(tmp_path / "chinese.ttf")
    assert "Source Han Sans SC" in figures.font_families()
    monkeypatch.setitem(plt.rcParams, "font.family", figures.font_families())
    assert drawn(tmp_path / "a.png") == []


def test_few_images_leave_no_empty_columns(tmp_path: Path) -> None:
    image = PredictedImage(np.zeros((8, 8, 3), np.uint8), "cat", "dog", 0.5, 1.0)
    widths = [Image.open(predicted_images([image] * count, tmp_path / "a.png")).width for count in (2, 8, 9)]
    assert widths[0] * 4 == widths[1] == widths[2]


def test_long_names_of_classes_can_be_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plt, "close", lambda figure: None)
    names = ["Quercus robur subsp. robur (leaf, summer)", "Quercus robur subsp. robur (leaf, autumn)", "maple"]
    confusion_matrix(np.eye(3, dtype=int), names, names, tmp_path / "a.png")
    drawn_names = [label.get_text() for label in plt.gcf().axes[0].get_yticklabels()]
    plt.close("all")
    assert drawn_names == ["Quercus robur … f, summer)", "Quercus robur … f, autumn)", "maple"]


@pytest.mark.parametrize("steps", [(1, 2, 3), (4,)])
def test_ticks_of_few_steps_are_whole(tmp_path: Path, steps: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [{"step": step, "loss": 1.0, "learning_rate": 0.1} for step in steps]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(plt, "close", lambda figure: None)
    figures.training_curves([("run", tmp_path / "metrics.jsonl")], tmp_path / "a.png")
    ticks = plt.gcf().axes[0].get_xticks()
    plt.close("all")
    np.testing.assert_array_equal(ticks, np.round(ticks))


@pytest.mark.parametrize("errors", [[[0.0, 0.02], [0.3]], [[0.0], [0.0]], [[0.1], [0.3]]])
def test_every_run_is_in_the_figure_of_errors_by_cost(
    errors: list[list[float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those without an error, for which a logarithmic axis has no place."""
    drawn: list[plt.Figure] = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: drawn.append(figure))
    points = [(f"run {i}", 10.0 ** (12 + i), each) for i, each in enumerate(errors)]
    figures.errors_by_cost(points, None, tmp_path / "errors.png")
    drawn[0].canvas.draw()  # sets the limits of the axes
    panel = drawn[0].axes[0]
    shown = panel.transData.transform([(cost, error) for _, cost, each in points for error in each])
    assert all(panel.bbox.contains(x, y) for x, y in shown)
    plt.close(drawn[0])
