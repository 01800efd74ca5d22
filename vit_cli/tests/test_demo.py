"""The demo as a user runs it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import vit_jax
import vit_torch
from vit_cli.demonstration import demonstrate
from vit_core import CheckpointConfig, open_checkpoint
from vit_train.config import TrainConfig
from vit_train.recipes import digits

FIGURES = ("training_curves", "position_similarity", "patch_filters")


@pytest.mark.slow
def test_demo_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """All of its path, with a smaller model and few steps."""
    pretrain, finetune = digits.pretrain, digits.finetune

    def small() -> TrainConfig:
        recipe = pretrain()
        return recipe.replace(model=recipe.model.replace(width=24, depth=1, mlp_dim=48), steps=120)

    def short(init: CheckpointConfig) -> TrainConfig:
        return finetune(init).replace(steps=50)

    monkeypatch.setattr(digits, "pretrain", small)
    monkeypatch.setattr(digits, "finetune", short)
    assert demonstrate(tmp_path), "the twins are not one model"
    printed = capsys.readouterr().out
    assert top1(printed).keys() == {"pretrain", "fine-tune"}
    assert_written(tmp_path)


@pytest.mark.release
def test_demo(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vit_cli", "demo", "--out", tmp_path, "--seed", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "something leaked"
    print(done.stdout)
    assert "OUT" not in done.stdout
    accuracies = top1(done.stdout)
    assert accuracies.keys() == {"pretrain", "fine-tune"}
    assert min(accuracies.values()) >= 98
    assert_written(tmp_path)


def top1(printed: str) -> dict[str, float]:
    """Stage -> top-1 accuracy in %, of the last table."""
    return {stage: float(value) for stage, value in re.findall(r"^ *(pretrain|fine-tune) .* ([\d.]+)% ", printed, re.M)}


def assert_written(folder: Path) -> None:
    """The fine-tuned checkpoint of either twin, and the figures."""
    path = folder / "finetune" / "checkpoint"
    tuned = open_checkpoint(path).config
    assert tuned.provenance.position_resampling[0].target == (6, 6)
    assert tuned.labels == tuple("0123456789")
    assert vit_jax.load(path).config == vit_torch.load(path).config
    for name in FIGURES:
        assert Image.open(folder / f"{name}.png").size > (500, 300)
