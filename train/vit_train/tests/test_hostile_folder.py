"""A folder in which a user has files named like parts of this project, and recipes of earlier versions."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vit_core import InputError, open_checkpoint
from vit_train import recipes
from vit_train.tests.small_run import folder_of_images

RECIPE = """
from vit_train.config import Data
from vit_train.tests.small_run import CONFIG

def pretrain():
    return CONFIG.replace(steps=3, schedule=CONFIG.schedule.replace(warmup_steps=1), data=Data(name={folder!r}))
"""


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder with `train.py`, `train/`, `data/` and `vit.py`: importing any of them ends the process."""
    folder = tmp_path / "project"
    for name in ("train.py", "train/__init__.py", "train/config.py", "data/__init__.py", "vit.py", "config.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"raise SystemExit('{name} was imported')\n")
    (folder / "mine.py").write_text(RECIPE.format(folder=str(folder_of_images(tmp_path / "images"))))
    return folder


@pytest.mark.release
@pytest.mark.parametrize("launcher", [[], ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"]])
def test_training_imports_nothing_from_the_working_directory(hostile: Path, launcher: list[str]) -> None:
    """By `python -m vit_cli`, and by torchrun, which starts the same module."""
    command = [
        sys.executable,
        *launcher,
        "-m",
        "vit_cli",
        "pretrain",
        "mine.py",
        "--framework",
        "torch",
        "--out",
        "run",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=hostile, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "was imported" not in done.stdout + done.stderr
    assert open_checkpoint(hostile / "run/checkpoint").config.provenance.step == 3


@pytest.mark.parametrize("imports", ["Augmentation, Data, TrainConfig", "*"])
def test_a_recipe_of_an_earlier_version_gets_one_line(
    imports: str, hostile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not executed: the user's own `train` would be imported."""
    monkeypatch.syspath_prepend(str(hostile))
    monkeypatch.chdir(hostile)
    (hostile / "old.py").write_text(f"x = 1\nfrom train.config import {imports}\n\ndef pretrain(): ...\n")
    with pytest.raises(InputError) as error:
        recipes.load("old.py", "pretrain")
    expected = f"old.py, line 2: train.config is now vit_train.config; write: from vit_train.config import {imports}"
    assert str(error.value) == expected


def test_other_modules_of_an_earlier_version_are_named_too(tmp_path: Path) -> None:
    (tmp_path / "old.py").write_text("from train.recipes.digits import pretrain\n")
    with pytest.raises(InputError, match=r"old.py, line 1: .*; the package train of earlier versions is now vit_train"):
        recipes.load(str(tmp_path / "old.py"), "pretrain")


def test_a_users_own_train_may_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe may use modules of the user's that have the same name."""
    for name in ("train", "train.config"):  # an earlier test may have imported this repository's folder of the name
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "train").mkdir()
    (tmp_path / "train/__init__.py").touch()
    (tmp_path / "train/config.py").write_text("STEPS = 7\n")
    (tmp_path / "mine.py").write_text(
        "from train.config import STEPS\nfrom vit_train.recipes import digits\n\n"
        "def pretrain():\n    return digits.pretrain().replace(steps=STEPS, schedule={'warmup_steps': 1})\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert recipes.load(str(tmp_path / "mine.py"), "pretrain").steps == 7
