"""The groups of a run's images in `vit evaluate` and `vit probe`: which column is used, and what is printed."""

import json
from pathlib import Path

import pytest

from vit_cli.evaluation_data import other_data
from vit_cli.tests.printed import Printing, Vit
from vit_cli.tests.random_checkpoints import save_random
from vit_cli.tests.test_probe import class_folders
from vit_train.config import Data


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """24 images of 8 patients."""
    images = sorted(class_folders(tmp_path / "photos", 24).rglob("*.png"), key=lambda path: int(path.stem))
    rows = [f"{path},{path.parent.name},p{i // 3}\n" for i, path in enumerate(images)]
    (tmp_path / "t.csv").write_text("path,label,patient\n" + "".join(rows))
    return tmp_path / "t.csv"


def test_a_column_of_the_run_is_used_if_the_data_have_it(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_run = Data(name="x.csv", group="patient")
    assert other_data(str(table), of_run).group == "patient"
    assert capsys.readouterr().out == ""
    assert other_data(f"{tmp_path}/photos/", of_run).group is None
    shown = capsys.readouterr()
    assert "data.group: folders have no column 'patient'" in shown.out + shown.err


def test_columns_of_the_run_that_the_data_lack_are_left_out(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of_run = Data(name="x.csv", label_column="finding", image_column="path")
    assert other_data(str(table), of_run) == Data(name=str(table))
    shown = capsys.readouterr()
    assert (
        "no column 'finding'; found: path, label, patient; the columns of the run are left out" in shown.out + shown.err
    )
    assert other_data(str(table), Data(name="x.csv", label_column="patient")).label_column == "patient"


def test_a_probe_states_the_groups(printed: Printing, refused: Vit, table: Path, tmp_path: Path) -> None:
    model = save_random(tmp_path / "model")
    words = ["probe", model, "--data", table, "--framework", "torch", "--neighbours", 3, "--held-out", 0.25]
    out = printed(*words, "--data.group", "patient").out
    assert "95 % interval: 6 images of 2 groups (patient), worth " in out
    assert "groups" not in printed(*words).out
    text = refused(*words, "--data.group", "site")
    assert "t.csv: data.group: no column 'site'; found: path, label, patient" in text


def test_an_evaluation_states_and_writes_the_groups(vit: Vit, refused: Vit, table: Path, tmp_path: Path) -> None:
    model = save_random(tmp_path / "model")
    words = ["evaluate", model, "--data", table, "--labels", "by-position", "--data.group", "patient"]
    out = vit(*words, "--against", model, "--json", tmp_path / "x.json")
    assert "95 % interval: 24 images of 8 groups (patient), worth " in out
    assert "difference on the same 24 images of 8 groups (patient): +0.00 points (no interval: the difference is" in out
    found = json.loads((tmp_path / "x.json").read_text())
    assert (found["group"], found["groups"]) == ("patient", 8)
    assert 0 < found["effective_images"] <= 24


@pytest.mark.parametrize("words", [("evaluate",), ("show",), ("probe",), ("export", "x.onnx")])
def test_columns_are_those_of_given_data(
    words: tuple[str, ...], refused: Vit, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = save_random(tmp_path / "model")
    words = (words[0], str(model), *words[1:])
    assert "--data.group: needs --data" in refused(*words, "--data.group", "patient")
    text = refused(*words, "--data", table, "--data.label-column", "site")
    assert "t.csv: data.label_column: no column 'site'; found: path, label, patient" in text
