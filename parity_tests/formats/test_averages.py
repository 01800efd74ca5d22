"""Files with trained weights beside their averages: the average is taken, under whatever key a library keeps it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from parity_tests.formats.foreign import other_notes, randomized
from parity_tests.formats.test_found_in_trees import HEADS, Classifier, assert_is, in_file, prefixed, vit
from parity_tests.formats.test_mmpretrain import mmpretrain, model_of
from parity_tests.formats.test_training_files import Logits, hf_vit
from vit_core.checkpoints import open_checkpoint


def swapped(average: dict[str, Any], trained: dict[str, Any]) -> dict[str, Any]:
    """As mmengine's EMAHook saves: `_swap_ema_state_dict` puts the average under "state_dict"."""
    wrapped = {"steps": torch.tensor(7), **prefixed("module.", trained)}
    return {"meta": {"mmengine_version": "0.10.4"}, "state_dict": average, "ema_state_dict": wrapped}


def test_mmengine_keeps_the_average_in_state_dict(tmp_path: Path) -> None:
    average, trained = model_of(), randomized(model_of(), 1)
    path = in_file(tmp_path, swapped(mmpretrain(average.state_dict()), mmpretrain(trained.state_dict())))
    found = open_checkpoint(path, fields=HEADS)
    assert_is(found, average)
    assert other_notes(found)[:2] == (
        "model found under 'state_dict/backbone'",
        "other models in the file: ema_state_dict/backbone (the weights before averaging: mmengine stores the average "
        "under state_dict); choose one with --part NAME",
    )
    assert_is(open_checkpoint(path, fields=HEADS, part="ema_state_dict/backbone"), trained)


def test_mmengine_with_names_of_timm(tmp_path: Path) -> None:
    """The count of its steps is no parameter."""
    path = in_file(tmp_path, swapped(vit(0).state_dict(), vit(1).state_dict()))
    assert_is(open_checkpoint(path, fields=HEADS), vit(0))
    trained = open_checkpoint(path, fields=HEADS, part="ema_state_dict")
    assert_is(trained, vit(1))
    assert any(note.startswith("left out: steps") for note in trained.notes)


KEYS = ("swa_model", "swa_state_dict", "model_swa", "averaged_model", "model_ema_v2", "ema_weights", "net_ema")


@pytest.mark.parametrize("key", KEYS)
def test_under_other_keys(key: str, tmp_path: Path) -> None:
    path = in_file(tmp_path, {"model": vit(0).state_dict(), key: AveragedModel(vit(1)).state_dict()})
    found = open_checkpoint(path, fields=HEADS)
    assert_is(found, vit(1))
    assert f"model found under '{key}'" in found.notes
    assert_is(open_checkpoint(path, fields=HEADS, part="model"), vit(0))


@pytest.mark.parametrize(("key", "seed"), [("dino_ema", 1), ("before_ema", 0), ("no_ema", 0)])
def test_keys_that_only_look_like_another(key: str, seed: int, tmp_path: Path) -> None:
    path = in_file(tmp_path, {"model": vit(0).state_dict(), key: vit(1).state_dict()})
    assert_is(open_checkpoint(path, fields=HEADS), vit(seed))


def test_steps_beside_an_average_without_a_state_dict(tmp_path: Path) -> None:
    """Not mmengine's, which exchanges the two."""
    average = {"steps": torch.tensor(7), **vit(1).state_dict()}
    path = in_file(tmp_path, {"model": vit(0).state_dict(), "ema_state_dict": average})
    assert_is(open_checkpoint(path, fields=HEADS), vit(1))


@pytest.mark.parametrize("prefixes", [("student_backbone.vit.", "teacher_backbone.vit."), ("student_net.", "net.")])
def test_a_student_under_a_longer_name(prefixes: tuple[str, str], tmp_path: Path) -> None:
    """As lightly's examples call them."""
    student, other = (prefixed(prefix, vit(seed).state_dict()) for seed, prefix in enumerate(prefixes))
    assert_is(open_checkpoint(in_file(tmp_path, {"state_dict": {**student, **other}}), fields=HEADS), vit(1))


def test_an_averaged_model_of_transformers(tmp_path: Path) -> None:
    model = randomized(hf_vit())
    found = open_checkpoint(in_file(tmp_path, AveragedModel(model).state_dict()), fields=HEADS)
    assert "left out: n_averaged" in found.notes
    assert_is(found, Logits(model))


def test_a_head_is_not_joined_to_the_average_of_a_backbone(tmp_path: Path) -> None:
    """In a mean teacher's module, the one classifier is trained with the student."""
    model = randomized(Classifier(vit(num_classes=0), nn.Linear(24, 7), ("backbone", "fc")))
    state = {**model.state_dict(), **prefixed("backbone_ema.", vit(1, num_classes=0).state_dict())}
    assert_is(open_checkpoint(in_file(tmp_path, {"state_dict": state}), fields=HEADS), model)


@pytest.mark.parametrize("average", ["teacher", "model_ema", "student_teacher.teacher"])
def test_a_head_that_may_be_another_models_is_left_out(average: str, tmp_path: Path) -> None:
    """If a file has a student, its average and one classifier, no array shows which of the two it was trained with."""
    model = randomized(Classifier(vit(num_classes=0), nn.Linear(24, 7), ("net", "fc")))
    state = {**model.state_dict(), **prefixed(f"{average}.", vit(1, num_classes=0).state_dict())}
    found = open_checkpoint(in_file(tmp_path, {"state_dict": state}), fields=HEADS)
    assert_is(found, vit(1, num_classes=0))
    left_out = "head: 'fc' is left out, because it may belong to another model in the file"
    assert f"{left_out}; --part NAME opens that model with it" in found.notes
    assert_is(open_checkpoint(in_file(tmp_path, {"state_dict": state}), fields=HEADS, part="state_dict/net"), model)
