"""`vit runs`: the table, the prediction, the figure, and what is refused."""

from pathlib import Path

import pytest
from PIL import Image

from vit_cli.tests.conftest import Vit
from vit_train.tests.small_run import CONFIG
from vit_train.tests.test_run_groups import write_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two seeds of one config, one run of another, and longer runs of the first."""
    for seed, top1 in ((0, 0.30), (1, 0.40)):
        write_run(tmp_path / f"base-{seed}", CONFIG.replace(seed=seed), top1)
    write_run(tmp_path / "smooth", CONFIG.replace(label_smoothing=0.2), 0.41)
    for steps, top1 in ((24, 0.5), (48, 0.6)):
        write_run(tmp_path / f"steps-{steps}", CONFIG.replace(steps=steps), top1)
    return tmp_path


def test_a_line_for_each_config_and_a_prediction(vit: Vit, folder: Path) -> None:
    """Two seeds are one line; their spread, 7 points, is that of all lines; t of one degree of freedom is 12.7."""
    runs = [folder / name for name in ("base-0", "base-1", "steps-24", "steps-48")]
    flops = 3 * sum(CONFIG.forward_flops.values()) * CONFIG.batch_size * 96
    out = vit("runs", *runs, "--at", f"{flops:.6e}", "--png", folder / "cost.png")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert any(line.startswith("base-* 2 192 ") and "35.00% (0.0% - 98.5%)" in line for line in lines), out
    assert any("50.00%" in line and line.endswith("+15.00 ± 110.04") for line in lines), out
    assert "steps-24: steps 24" in lines
    assert "(if the law holds that far)" in out
    assert Image.open(folder / "cost.png").size[0] > 500


def test_a_folder_of_runs(vit: Vit, folder: Path) -> None:
    out = vit("runs", folder)
    assert "smooth: label_smoothing 0.2" in out
    assert "Student's t" in out


def test_accuracies_on_other_images_are_not_compared(vit: Vit, folder: Path) -> None:
    write_run(folder / "cats", CONFIG.replace(seed=0), 0.9, earlier=(0.8,), examples=("aa", "bb"))
    out = vit("runs", folder / "base-0", folder / "cats")
    (line,) = [line for line in out.splitlines() if line.startswith(" cats") and "e+" in line]
    assert line.endswith(" other images ")
    assert "cats: other images or labels" in out.splitlines()
    assert "+60.00" not in out


def test_a_run_that_is_not_finished_is_left_out_of_a_folder(vit: Vit, folder: Path) -> None:
    """But refused where it is named."""
    config = CONFIG.replace(label_smoothing=0.5, steps=12)
    write_run(folder / "begun", config, 0.5)
    (folder / "begun/metrics.jsonl").write_text("")
    out = vit("runs", folder)
    assert f"left out: {folder}/begun: no accuracy after its last step, 12" in out
    assert "smooth: label_smoothing 0.2" in out
    assert "no accuracy" in vit("runs", folder / "begun", status=2)
    (folder / "only").mkdir()
    (folder / "begun").rename(folder / "only/begun")
    assert f"{folder}/only: no finished run" in vit("runs", folder / "only", status=2)


def test_mean_average_precision_takes_the_place_of_accuracy(vit: Vit, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "sets", CONFIG.replace(loss="sigmoid"), 0.5)
    text = (folder / "metrics.jsonl").read_text().replace("top1", "mean_average_precision")
    (folder / "metrics.jsonl").write_text(text)
    out = vit("runs", folder)
    assert "mean AP (95 %)" in out
    assert " 50.00% " in out
    assert "no intervals: that of a mean AP needs runs of several seeds" in out


def test_averages_and_steps_to_the_first_lines_accuracy(vit: Vit, tmp_path: Path) -> None:
    """By hand. Averages are half of the accuracy: -15 and -20 points, twice -25, and -10; two degrees of freedom,
    a spread of sqrt((2.5^2 + 2.5^2) / 2), so 4.303 x 2.5 / sqrt(2). Steps: 2 and 4, 1 and 3: 4.303."""
    for seed, top1 in ((0, 0.30), (1, 0.40)):
        write_run(tmp_path / f"adamw-{seed}", CONFIG.replace(seed=seed), top1, earlier=(0.1, 0.3, 0.35, 0.41))
        other = CONFIG.replace(seed=seed, label_smoothing=0.2)
        write_run(tmp_path / f"muon-{seed}", other, 0.5, earlier=(0.3, 0.2, 0.4))
    write_run(tmp_path / "slow-0", CONFIG.replace(label_smoothing=0.3), 0.2, earlier=(0.1, 0.2))
    write_run(tmp_path / "unseen-0", CONFIG.replace(label_smoothing=0.4), 0.2)
    lines = [" ".join(line.split()) for line in vit("runs", tmp_path).splitlines()]
    assert "adamw-* 17.50% -17.50 ± 7.61" in lines
    assert "slow-0 10.00% -10.00 ± 10.76" in lines
    assert "runs seed 0 seed 1 mean (95 %)" in lines
    assert "adamw-* 2 4 3 ± 4" in lines
    assert "muon-* 1 3 2 ± 4" in lines
    assert "slow-0 never" in lines
    assert "unseen-0" not in lines
    assert "steps to" not in vit("runs", tmp_path / "adamw-0", tmp_path / "adamw-1")


def test_one_run_has_the_interval_of_its_images(vit: Vit, folder: Path) -> None:
    out = vit("runs", folder / "smooth")
    assert "41.00% (31.0% - 51.0%)" in " ".join(out.split())
    assert "from the number of images" in out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["."], "no training run, and no folder of training runs"),
        (["smooth", "base-0", "--at", "1e15"], "1 different costs: a power law is fitted to three or more"),
        (["smooth", "--at", "-1"], "--at -1.0: expected a number of FLOPs above 0"),
        (["smooth", "--at", "inf"], "--at inf: expected a number of FLOPs above 0"),
        (["smooth", "base-0", "--png", "/proc/a.png"], "--png /proc/a.png: cannot write there ("),
        (["smooth", "base-0", "--png", "a.txt"], "--png a.txt: expected a name that ends in .png, or in .pdf or .svg"),
        (["smooth", "base-0", "--png", "chart"], "--png chart: expected a name that ends in .png, or in .pdf or .svg"),
        ([], "FOLDERS"),
    ],
)
def test_bad_input(refused: Vit, folder: Path, words: list[str], expected: str) -> None:
    (folder / "empty").mkdir()
    named = [str(folder / ("empty" if word == "." else word)) if i < 2 and word[0] not in "-1" else word
             for i, word in enumerate(words)]  # fmt: skip
    line = refused("runs", *named)
    assert expected in line
    assert len(line.strip().splitlines()) == 1
