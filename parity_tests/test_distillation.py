"""Distillation in both engines: one training, with the losses of timm's own distillation and of torch's functions."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.task.distillation import DistillationTeacher, LogitDistillationTask
from timm.task.token_distillation import TokenDistillationTask
from torch import nn

import vit_torch
from parity_tests.test_training import ADAMW, MODEL, assert_trained_alike, batches, config
from parity_tests.twins import checkpoint
from vit_core import ViTConfig, flops, parity
from vit_core.checkpoints import Checkpoint
from vit_core.preprocess import Preprocessing, normalize
from vit_train.config import Augmentation, TrainConfig
from vit_train.engines.jax.engine import JaxEngine
from vit_train.engines.torch.engine import TorchEngine

TEACHER = MODEL.replace(depth=2, heads=2, pooling="gap", layer_scale=None, stochastic_depth=0.0, patch_size=2)
DEIT = MODEL.replace(distillation="head")
RUNS: dict[str, dict[str, Any]] = {
    "hard, distillation token": {"model": DEIT, "distillation": {"kind": "hard"}},
    "logits": {"distillation": {"kind": "logits", "temperature": 3.0, "weight": 0.7}, "accumulation": 2},
    "logits, distillation token": {"model": DEIT, "distillation": {"kind": "logits", "temperature": 2.0}},
    "features": {"distillation": {"kind": "features", "weight": 0.8}, "ema": 0.8},
    "features, sigmoid": {"distillation": {"kind": "features"}, "loss": "sigmoid"},
    "hard, adapters": {"distillation": {"kind": "hard"}, "lora": {"rank": 2}, "scan": False},
}
RUNS["logits, flexible patches"] = {"distillation": {"kind": "logits"}, "patch_sizes": (2, 8)}
ONE_OF_EACH_KIND = ("hard, distillation token", "features")
"""Targets of the teacher's for a head, and for the tokens; the others are run before a release."""

UNUSED = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
"""Mean and standard deviation with which timm would normalize the teacher's images."""


def run_of(name: str, **fields: Any) -> TrainConfig:
    given = RUNS[name]
    distillation = {**given["distillation"], "teacher": "in memory"}
    return config(**{"optimizer": ADAMW, **given, "distillation": distillation, **fields})


def teacher_of(model: ViTConfig = TEACHER) -> Checkpoint:
    """One that was trained on images made otherwise than the student's."""
    own = Preprocessing(image_size=8, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    found = checkpoint(model, seed=7)
    return found.with_config(found.config.replace(preprocessing=own))


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in ONE_OF_EACH_KIND else pytest.mark.release) for name in RUNS],
)
def test_twenty_steps_are_the_same(name: str) -> None:
    run = run_of(name)
    weights, teacher = checkpoint(run.model), teacher_of()
    engines = [make(run, weights, teacher=teacher) for make in (JaxEngine, TorchEngine)]
    assert {engine.teacher_flops for engine in engines} == {sum(flops.forward(TEACHER).values())}
    assert_trained_alike(engines, batches(run))


class Distilled(nn.Module):
    """A student as timm's token distillation calls it: in training it returns the logits of both heads."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.pretrained_cfg = model, UNUSED

    def forward(self, x_BCHW: torch.Tensor) -> Any:
        (_, logits_BC), (_, token_logits_BC) = self.model(x_BCHW, return_heads=True)
        return logits_BC, token_logits_BC

    def set_distilled_training(self, enable: bool = True) -> None:
        assert enable


def expected_loss(run: TrainConfig, weights: Checkpoint, teacher: Checkpoint, batch: Any) -> float:
    """By timm's tasks, which normalize images for the teacher by themselves; by torch's cosine for features."""
    student, other = (vit_torch.load(each, dtype="float64").eval() for each in (weights, teacher))

    def pixels(preprocessing: Preprocessing) -> torch.Tensor:
        x_BHWC = normalize(batch.images_BHWC, preprocessing).astype(np.float64)
        return torch.from_numpy(x_BHWC).permute(0, 3, 1, 2)

    ours, theirs = pixels(run.preprocessing), pixels(teacher.config.preparation()[0])
    targets = torch.from_numpy(batch.targets_BC.astype(np.float64))
    distillation = run.distillation
    shares = {"distill_loss_weight": distillation.weight, "task_loss_weight": 1 - distillation.weight}
    with torch.no_grad():
        if distillation.kind == "features":
            cosine_B = F.cosine_similarity(
                student.forward_head(student.forward_features(ours), pre_logits=True),
                other.forward_head(other.forward_features(theirs), pre_logits=True),
            )
            own = F.cross_entropy(student(ours), targets)
            return float((1 - distillation.weight) * own + distillation.weight * (1 - cosine_B).mean())

        class Teacher(DistillationTeacher):
            """Its images are normalized from bytes, once, as the engines do it."""

            def normalize_input(self, *_: Any) -> torch.Tensor:
                return theirs

        options: dict[str, Any] = {"criterion": nn.CrossEntropyLoss(), "verbose": False, **shares}
        if run.model.distillation == "head":
            kind = {"hard": "hard", "logits": "soft"}[distillation.kind]
            task: Any = TokenDistillationTask(
                Distilled(student), Teacher(other), distill_type=kind, temperature=distillation.temperature, **options
            )
        else:
            student.pretrained_cfg = UNUSED
            task = LogitDistillationTask(student, Teacher(other), temperature=distillation.temperature, **options)
        return float(task(ours, targets)["loss"])


@pytest.mark.parametrize("name", ["hard, distillation token", "logits", "logits, distillation token", "features"])
def test_losses_are_those_of_others(name: str) -> None:
    model = RUNS[name].get("model", MODEL).replace(stochastic_depth=0.0)
    run = run_of(name, model=model, augmentation=Augmentation(), accumulation=1)
    weights, teacher = checkpoint(run.model), teacher_of()
    batch = batches(run)[0]
    batch = batch._replace(weights_B=np.ones_like(batch.weights_B))
    expected = expected_loss(run, weights, teacher, batch)
    found = float(TorchEngine(run, weights, teacher=teacher).train_step(batch, 0).loss)
    # The engine scales pixels in float32 as the reference here does; all else is float64.
    assert abs(found - expected) <= parity.FLOAT64_BOUND * expected
