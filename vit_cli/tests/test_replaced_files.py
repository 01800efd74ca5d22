"""Commands replace the files that they wrote themselves, and no others: a mistyped --out costs nobody their data."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from vit_cli.benchmarks import model_speed, programs
from vit_cli.reports import evaluation, prediction
from vit_cli.tests.test_bench_model import MACHINE
from vit_core.errors import InputError
from vit_core.feature_files import check_target, feature_file
from vit_core.pipeline import Prediction
from vit_core.storage import check_new_file
from vit_train.figures import check_new_figure, save_figure

USERS = [
    "image,label\na.jpg,cat\n",
    "path,label,probability\na.jpg,cat,0.5\n",
    '{"image": "a.jpg", "labels": ["cat"]}\n',
    '{"text": "the probability of rain"}\n',
    "PAR1",
]
CLASSES = tuple(f"class {i}" for i in range(2000))  # a line of more than 64 KiB


@pytest.mark.parametrize("extension", ["csv", "jsonl", "parquet"])
def test_predictions(extension: str, tmp_path: Path) -> None:
    file = tmp_path / f"found.{extension}"
    prediction.kind_of(None, file)
    with prediction.writing(extension, file) as write:  # type: ignore[arg-type]
        write("a.jpg", Prediction(CLASSES, (0.0005,) * len(CLASSES)))
    assert prediction.kind_of(None, file) == extension
    for content in USERS:
        file.write_text(content)
        with pytest.raises(InputError, match=rf"--out .*found\.{extension}: exists and is not a file of predictions"):
            prediction.kind_of(None, file)
        assert file.read_text() == content
    file.write_text("")
    assert prediction.kind_of(None, file) == extension


@pytest.mark.parametrize("extension", ["png", "pdf", "svg"])
def test_figures(extension: str, tmp_path: Path) -> None:
    file = tmp_path / f"drawn.{extension}"
    check_new_figure(file, "--png")
    figure, axes = plt.subplots()
    axes.imshow(np.random.default_rng(0).random((200, 200)))  # more than the bytes that are looked at
    save_figure(figure, file)
    assert file.stat().st_size > 8192
    check_new_figure(file, "--png")
    Image.new("RGB", (8, 8)).save(file, format="png")
    with pytest.raises(InputError, match=r"--png .* exists and is not a figure of matplotlib, so it is not replaced"):
        check_new_figure(file, "--png")


def test_a_photograph_is_never_a_figure(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a name that ends in \.png, or in \.pdf or \.svg"):
        check_new_figure(tmp_path / "photo.jpg", "--out")


@pytest.mark.parametrize("extension", ["npy", "safetensors", "parquet"])
def test_features(extension: str, tmp_path: Path) -> None:
    file = tmp_path / f"of_photos.{extension}"
    check_target(file)
    with feature_file(file, (3,), "float32") as add:
        add("a.jpg", None, np.ones(3, "float32"))
    check_target(file)
    for header in ("image,label,age", "image,labels", "x"):  # a table of the user's, also beside an array
        file.with_suffix(".csv").write_text(f"{header}\n")
        if extension == "parquet":
            pyarrow.parquet.write_table(pyarrow.table({"image": ["a"], "features": [[1.0]]}), file)
        with pytest.raises(InputError, match=r"--out .* exists and is not a file of features"):
            check_target(file)
    file.unlink()
    if extension != "parquet":
        with pytest.raises(InputError, match=r"--out .*: its table of images would replace .*of_photos\.csv"):
            check_target(file)


def test_reports(tmp_path: Path) -> None:
    """The signs are those of the written files; and no file of one kind is replaced by another's command."""
    speed, bare = tmp_path / "speed.json", tmp_path / "labels.json"
    model_speed.write_report(speed, model_speed.Report(machine=MACHINE))
    bare.write_text('{"0": "cat", "evaluated": false, "machine": 1, "topology": 2}')
    check_new_file(speed, "--json", model_speed.WRITTEN)
    (program := tmp_path / "program.json").write_text(json.dumps(dict.fromkeys(programs.Programs.model_fields)))
    check_new_file(program, "--json", programs.WRITTEN)
    for file, kind in (
        (speed, programs.WRITTEN),
        (speed, evaluation.WRITTEN),
        *((bare, kind) for kind in (model_speed.WRITTEN, programs.WRITTEN, evaluation.WRITTEN)),
    ):
        with pytest.raises(InputError, match=f"--json .* exists and is not {kind.what}"):
            check_new_file(file, "--json", kind)


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file := tmp_path / "x.csv").write_text("x")
    monkeypatch.setattr(Path, "open", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(InputError, match=r"--out .*x\.csv: exists and is not a file of predictions"):
        prediction.kind_of(None, file)
