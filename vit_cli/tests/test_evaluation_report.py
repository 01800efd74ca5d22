"""What `vit evaluate` prints and writes of every class."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from vit_cli.reports import evaluation as report
from vit_cli.tests.printed import Vit
from vit_core import CheckpointConfig, parity, save_checkpoint
from vit_core.checkpoints import Checkpoint
from vit_core.storage import check_new_file
from vit_train.checkpoint_evaluation import Evaluation
from vit_train.classification import report_of_predictions, report_of_sets
from vit_train.data.batches import EvaluationBatches
from vit_train.engines.torch.predictor import TorchPredictor
from vit_train.evaluation import Accuracy
from vit_train.tests.small_run import CONFIG, LABELS, MODEL, folder_of_images, quadrants


@pytest.fixture
def weights() -> Checkpoint:
    """Its fifth class is none of the images'."""
    model = MODEL.replace(num_classes=5)
    config = CheckpointConfig(model=model, labels=(*LABELS, "east"), preprocessing=CONFIG.preprocessing)
    return Checkpoint.of(config, {name: x.astype(np.float32) for name, x in parity.randomized(model, 0).items()})


def test_json_has_what_scikit_learn_finds(vit: Vit, weights: Checkpoint, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model", weights)
    images = folder_of_images(tmp_path / "images", 40)
    where = ["evaluate", tmp_path / "model", "--data", images]
    out = vit(*where, "--json", tmp_path / "report.json")
    found = json.loads((tmp_path / "report.json").read_text())
    # Files of a class stand together in a folder; the images are those of `quadrants`.
    pixels_BHWC = EvaluationBatches(quadrants(40), CONFIG.preprocessing, 40)[0].images_BHWC
    classes_N, predictions_N = np.arange(40) % 4, TorchPredictor(weights).predict(pixels_BHWC).argmax(axis=1)
    matrix = metrics.confusion_matrix(classes_N, predictions_N, labels=range(5))[:4]
    assert len(set(predictions_N)) > 2, "a test of more than one prediction"
    columns = len(found["confusion_matrix"]["columns"])
    assert found["confusion_matrix"]["counts"] == matrix[:, :columns].tolist()
    assert found["top1"] == metrics.accuracy_score(classes_N, predictions_N)
    assert found["top1_interval"][0] < found["top1"] < found["top1_interval"][1]
    f1 = metrics.f1_score(classes_N, predictions_N, labels=range(4), average=None, zero_division=np.nan)
    assert [each["f1"] for each in found["classes"]] == [None if np.isnan(x) else pytest.approx(x) for x in f1]
    assert (found["images"], found["skipped"], len(found["classes"])) == (40, 0, 4)
    assert 0 < found["mean_average_precision"] < 1
    for each in found["classes"]:
        (line,) = (line for line in out.splitlines() if line.startswith(f" {each['label']}"))
        assert f"{each['recall']:.2%}" in line
        assert f"{each['average_precision']:.2%}" in line
    assert "average precision" not in vit(*where), "ranking takes all logits into memory, so only for the file"


def test_columns_of_a_table_are_chosen_by_options(vit: Vit, refused: Vit, weights: Checkpoint, tmp_path: Path) -> None:
    """The same accuracy as from class folders, from a table whose columns have unusual names."""
    save_checkpoint(tmp_path / "model", weights)
    images = folder_of_images(tmp_path / "images", 40)
    rows = [f"{path.relative_to(tmp_path)},{path.parent.name}\n" for path in sorted(images.rglob("*.png"))]
    table = tmp_path / "scans.csv"
    table.write_text("scan,finding\n" + "".join(rows))
    where = ["evaluate", tmp_path / "model", "--data", table]
    assert "no column path or" in refused(*where)
    columns = ["--data.image-column", "scan", "--data.label-column", "finding"]
    vit(*where, *columns, "--json", tmp_path / "table.json")
    vit("evaluate", tmp_path / "model", "--data", images, "--json", tmp_path / "folders.json")
    table_report, folders = (json.loads((tmp_path / name).read_text()) for name in ("table.json", "folders.json"))
    assert table_report["confusion_matrix"] == folders["confusion_matrix"]
    assert np.sum(folders["confusion_matrix"]["counts"]) == 40


def test_a_file_that_cannot_be_written_is_refused_first(refused: Vit, tmp_path: Path) -> None:
    for path, why in ((tmp_path, "is a folder"), (tmp_path / "no" / "report.json", "its folder is missing")):
        assert f"--json {path}: {why}; give a file" in refused("evaluate", tmp_path / "none", "--json", path)
    refusing = Path("/proc/report.json")  # a file system that refuses new files, of root too
    assert f"--json {refusing}: cannot write there (" in refused("evaluate", tmp_path / "none", "--json", refusing)


def test_what_is_missing_is_named_first(refused: Vit, tmp_path: Path) -> None:
    """A checkpoint that is not there, before the data that it would be evaluated on."""
    assert f"{tmp_path}/none: no such checkpoint" in refused("evaluate", tmp_path / "none")


def of(accuracy: Accuracy) -> Evaluation:
    return Evaluation("a model on some images", accuracy, accuracy.total + 1, 0)


def test_of_many_classes_the_worst_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """The names of the classes are those that are recognized worse and worse; the last has no images."""
    labels, rng = tuple(f"class {i:02d}" for i in range(31)), np.random.default_rng(0)
    classes_N = np.repeat(np.arange(30), 100)
    predictions_N = np.where(rng.random(3000) < (30 - classes_N) / 30, classes_N, 0)
    report.print_evaluation(
        of(Accuracy(1500, 2000, 3000, 1.0, report_of_predictions(labels, classes_N, predictions_N)))
    )
    out = capsys.readouterr().out
    shown = [line.split()[1] for line in out.splitlines() if line.startswith(" class ") and "images" not in line]
    assert len(shown) == 10
    assert "00" in shown, "its images are right, its predictions mostly wrong"
    assert set(shown) - {"00"} == {f"{i:02d}" for i in range(21, 30)}
    assert "31 classes, macro F1 " in out
    assert "; shown are the 10 with the lowest F1, --json FILE has all\n" in out
    assert "skipped, because they cannot be read: 1 of 3001 images" in out


def test_top_5_is_printed_only_where_there_are_more_outputs(capsys: pytest.CaptureFixture[str]) -> None:
    report.print_accuracies("of six", [("weights", Accuracy(30, 45, 50, 1.0))])
    out = " ".join(capsys.readouterr().out.split())
    assert "top-1 95 % interval top-5 loss images" in out
    assert "weights 60.00% 46.18% - 72.39% 90.00% 1.0000 50" in out
    report.print_accuracies("of five", [("weights", Accuracy(30, None, 50, 1.0))])
    out = " ".join(capsys.readouterr().out.split())
    assert "top-1 95 % interval loss images" in out
    assert "weights 60.00% 46.18% - 72.39% 1.0000 50" in out


def test_several_classes_for_each_image(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    has_NC = rng.random((50, 3)) < 0.5
    logits_NC = rng.normal(size=(50, 3)) + has_NC
    classes = report_of_sets(("cat", "dog\x1b[2J", "bird"), has_NC, logits_NC)
    exact = int(((logits_NC > 0) == has_NC).all(axis=1).sum())
    report.print_evaluation(of(Accuracy(exact, 50, 50, 1.0, classes)))
    out = capsys.readouterr().out
    for value in (classes.mean_average_precision, classes.macro_f1, classes.micro_f1, exact / 50):
        assert f"{value:.2%}" in out
    assert "top-1" not in out
    assert "\x1b[2J" not in out
    report.write_json(tmp_path / "report.json", of(Accuracy(exact, 50, 50, 1.0, classes)))
    check_new_file(tmp_path / "report.json", "--json", report.WRITTEN)  # a second run replaces it
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["exact"] == exact / 50
    assert "top1" not in found
    assert "confusion_matrix" not in found


def test_two_checkpoints_on_the_same_images(vit: Vit, refused: Vit, weights: Checkpoint, tmp_path: Path) -> None:
    """The difference's interval is scipy's, of paired predictions."""
    other = Checkpoint.of(weights.config, parity.randomized(weights.config.model, 1))
    for name, each in (("first", weights), ("second", other)):
        save_checkpoint(tmp_path / name, each)
    images = folder_of_images(tmp_path / "images", 40)
    pixels_BHWC = EvaluationBatches(quadrants(40), CONFIG.preprocessing, 40)[0].images_BHWC
    right = [TorchPredictor(each).predict(pixels_BHWC).argmax(1) == np.arange(40) % 4 for each in (weights, other)]
    expected = stats.ttest_rel(*(each.astype(float) for each in right))
    out = vit("evaluate", tmp_path / "first", "--against", tmp_path / "second", "--data", images,
              "--json", tmp_path / "report.json")  # fmt: skip
    found = json.loads((tmp_path / "report.json").read_text())
    alone = [int((a & ~b).sum()) for a, b in (right, right[::-1])]
    assert min(alone) > 0, "a test of both signs"
    # Two means, their difference and its JSON text: four roundings.
    assert found["top1_difference"] == pytest.approx(right[0].mean() - right[1].mean(), abs=4 * 2.0**-53)
    # Sums of 40 terms of order one, and scipy's quantile, which is accurate to about 1e-13.
    assert found["top1_difference_interval"] == pytest.approx(list(expected.confidence_interval(0.95)), abs=1e-12)
    assert f"only the first is right: {alone[0]} images, only the second: {alone[1]}" in out
    assert f"{100 * found['top1_difference']:+.2f} points" in out
    same = vit("evaluate", tmp_path / "first", "--against", tmp_path / "first", "--data", images)
    assert "+0.00 points (no interval: the difference is the same for all images); only the first is right: 0" in same
    several = tmp_path / "table.csv"
    several.write_text("image,label\n" + "".join(f"{p},{p.parent.name}|{LABELS[0]}\n" for p in images.rglob("*.png")))
    text = refused("evaluate", tmp_path / "first", "--against", tmp_path / "second", "--data", several,
                   "--data.label-separator", "|")  # fmt: skip
    assert "images may have several classes; --against compares predictions of one each" in text
