"""The teacher of a run: opened, brought to the order of the run's classes, held to its digest, refused in one line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vit_core import CheckpointConfig, ViTConfig, open_checkpoint, save_checkpoint
from vit_core.checkpoints import Checkpoint
from vit_core.errors import InputError
from vit_core.parity import randomized
from vit_core.preprocess import Preprocessing
from vit_train.config import Distillation, TrainConfig
from vit_train.stages import Launch, pretrain, resume
from vit_train.teachers import open_teacher
from vit_train.tests.small_run import CONFIG, LABELS, MODEL, folder_of_images

TEACHER = MODEL.replace(depth=1, stochastic_depth=0.0)
TORCH = Launch("torch")


def teacher_in(
    folder: Path, model: ViTConfig = TEACHER, labels: tuple[str, ...] | None = LABELS, seed: int = 0
) -> Checkpoint:
    """A teacher of random weights, saved."""
    made = Preprocessing(image_size=model.image_size, channels=model.channels)
    config = CheckpointConfig(model=model, labels=labels, preprocessing=made)
    arrays = {name: array.astype(np.float32) for name, array in randomized(model, seed).items()}
    save_checkpoint(folder, Checkpoint.of(config, arrays))
    return open_checkpoint(folder)


def run_with(teacher: object, **fields: Any) -> TrainConfig:
    return CONFIG.replace(distillation=Distillation(teacher=str(teacher), **fields), ema=None, steps=4, save_every=2)


def test_outputs_follow_the_names_of_the_classes(tmp_path: Path) -> None:
    mixed = (LABELS[2], LABELS[0], "north", LABELS[3], LABELS[1])
    there = teacher_in(tmp_path / "teacher", TEACHER.replace(num_classes=5), mixed)
    found, notes = open_teacher(run_with(tmp_path / "teacher"), LABELS)
    assert found is not None
    np.testing.assert_array_equal(found.arrays["head.weight"], there.arrays["head.weight"][[1, 4, 0, 3]])
    assert "in the order of the data set's classes, by name" in notes[-1]
    teacher_in(tmp_path / "unnamed", labels=None)
    assert "its output i is taken as class i" in open_teacher(run_with(tmp_path / "unnamed"), LABELS)[1][-1]


@pytest.mark.parametrize(
    ("model", "labels", "fields", "message"),
    [
        (TEACHER.replace(image_size=16), LABELS, {}, r"takes image_size \(16, 16\), the student \(8, 8\); vit convert"),
        (TEACHER.replace(channels=3), LABELS, {}, "takes channels 3, the student 1"),
        (TEACHER, ("north", *LABELS[1:]), {}, "does not know the classes northeast; fine-tune it"),
        (TEACHER.replace(num_classes=3), None, {}, "has 3 outputs for 4 classes"),
        (TEACHER.replace(width=32), LABELS, {"kind": "features"}, "have 32 values and the student's 16"),
    ],
)
def test_what_is_refused(
    tmp_path: Path, model: ViTConfig, labels: tuple[str, ...] | None, fields: dict[str, Any], message: str
) -> None:
    teacher_in(tmp_path / "teacher", model, labels)
    with pytest.raises(InputError, match=message) as error:
        open_teacher(run_with(tmp_path / "teacher", **fields), LABELS)
    assert "\n" not in str(error.value)
    assert not [each for each in tmp_path.iterdir() if each.name != "teacher"]


def test_a_plan_needs_no_names(tmp_path: Path) -> None:
    teacher_in(tmp_path / "teacher", TEACHER.replace(num_classes=7), None)
    found, _ = open_teacher(run_with(tmp_path / "teacher"), None)
    assert found is not None
    assert found.config.model.num_classes == 4


def test_a_teacher_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^distillation.teacher: .*no such checkpoint"):
        open_teacher(run_with(tmp_path / "nothing"), LABELS)


@pytest.mark.slow
def test_a_run_keeps_its_teacher(tmp_path: Path) -> None:
    """Its address may change, its weights may not; the run ends as one that was not interrupted, bit for bit."""
    teacher_in(tmp_path / "teacher", seed=1)
    images = str(folder_of_images(tmp_path / "images"))
    config = run_with(tmp_path / "teacher", kind="logits", temperature=2.0)
    config = config.replace(data=config.data.replace(name=images))
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for folder in (whole, stopped):
        pretrain(config, folder, TORCH)
    digest = json.loads((whole / "run.json").read_text())["teacher"]
    assert len(digest) == 32
    # As after a kill between the second step and the end.
    for name in ("checkpoint", "steps/000004"):
        for file in (stopped / name).iterdir():
            file.unlink()
        (stopped / name).rmdir()
    (tmp_path / "teacher").rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"distillation.teacher: .*no such checkpoint"):
        resume(stopped, {}, TORCH)
    teacher_in(tmp_path / "other", seed=2)
    with pytest.raises(InputError, match=f"teacher is {digest} there"):
        resume(stopped, {"distillation.teacher": str(tmp_path / "other")}, TORCH)
    assert resume(stopped, {"distillation.teacher": str(tmp_path / "moved")}, TORCH).fit.step == 4
    found, expected = (open_checkpoint(run / "checkpoint").arrays for run in (stopped, whole))
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    plain = config.replace(distillation=Distillation())
    pretrain(plain, tmp_path / "plain", TORCH)
    alone = open_checkpoint(tmp_path / "plain" / "checkpoint").arrays
    assert not np.array_equal(alone["head.weight"], expected["head.weight"])
