"""The recipes of the package: their sources, values that are easily lost, and ten steps of each in both engines."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from vit_cli.reports.recipe import print_recipe
from vit_cli.tests.printed import Vit
from vit_core import Checkpoint, CheckpointConfig, flops, open_checkpoint, save_checkpoint, variant
from vit_core.parameters import count, initial_value, parameters
from vit_train import recipes
from vit_train.tests.small_run import LABELS, folder_of_images

STAGES = [
    (name, stage)
    for name in recipes.names()
    for stage in ("pretrain", "finetune")
    if f"def {stage}(" in (recipes.SHIPPED / f"{name}.py").read_text()
]


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_names_its_source_and_is_explained(name: str) -> None:
    """The published ones: paper, section or table, and what result is expected."""
    recipe = recipes.open_recipe(name)
    text = recipe.module.__doc__ or ""
    if name not in ("digits", "folder", "cifar10"):
        assert re.search(r"arXiv:\d{4}\.\d{5}", text)
        assert re.search(r"(table|figure|section) ", text)
        assert re.search(r"Expected|no table of these runs|is not public", text)
    for stage in (stage for each, stage in STAGES if each == name):
        init = CheckpointConfig(model=variant("B/8", 224, 1000)) if stage == "finetune" else None
        print_recipe(name, recipe.config(stage, init))


def test_fine_tuning_removes_the_hidden_layer_of_a_pretraining_head(vit: Vit, tmp_path: Path) -> None:
    model, begin = variant("mu/4", 8, 4, representation=24, head_bias_init=-10.0), tmp_path / "init"
    arrays = {row.name: initial_value(row, 0).astype(np.float32) for row in parameters(model).values()}
    save_checkpoint(begin, Checkpoint.of(CheckpointConfig(model=model, labels=LABELS), arrays))
    words = [
        "finetune",
        "transfer_pets",
        "--init",
        begin,
        "--model.image-size",
        "8",
        "--steps",
        "2",
        "--batch-size",
        "8",
    ]
    words += ["--schedule.warmup-steps", "0", "--lr", "0", "--data", folder_of_images(tmp_path / "images", 64)]
    words += ["--data.train-split", "None", "--data.eval-split", "None", "--out", tmp_path / "run"]
    assert "a new head, zero-initialized: 4 classes before, 4 now; its hidden layer is removed" in vit(*words)
    tuned = open_checkpoint(tmp_path / "run" / "checkpoint")
    assert tuned.config.model.representation is None
    assert tuned.arrays["head.weight"].shape == (4, 32)
    for name in ("head.weight", "head.bias"):
        assert not tuned.arrays[name].any()
    np.testing.assert_array_equal(tuned.arrays["blocks.0.mlp.fc1.weight"], arrays["blocks.0.mlp.fc1.weight"])


ONE_OF_EACH_KIND = {("folder", "pretrain"), ("deit3_s16", "pretrain"), ("cifar10", "pretrain"), ("cifar10", "finetune")}
ONE_OF_EACH_KIND |= {("deit_b16_distilled", "pretrain"), ("imagenet_mae", "pretrain"), ("mae_finetune", "finetune")}
ONE_OF_EACH_KIND |= {("transfer_cifar10", "finetune"), ("lora", "finetune")}
"""The other recipes are data over the same fields as these, so that they are left to the longest target."""
IN_JAX = {("deit3_s16", "pretrain"), ("imagenet_mae", "pretrain"), ("transfer_cifar10", "finetune")}
"""Those of them that JAX too runs before that: each is a program to compile."""


@pytest.mark.parametrize(
    ("framework", "name", "stage"),
    [
        pytest.param(framework, *each, marks=pytest.mark.slow if each in often else pytest.mark.release)
        for framework, often in {"jax": IN_JAX, "torch": ONE_OF_EACH_KIND}.items()
        for each in STAGES
    ],
)
def test_every_recipe_runs(vit: Vit, framework: str, name: str, stage: str, tmp_path: Path) -> None:
    """Ten steps, shrunk, on images made here; everything else as the recipe has it."""
    images = folder_of_images(tmp_path / "images", 320)
    begin = tmp_path / "init"
    hidden = {"representation": 24} if name.startswith("transfer") else {}
    model = variant("mu/4", 8, 4, channels=1 if name == "digits" else 3, **hidden)
    arrays = {row.name: initial_value(row, 0).astype(np.float32) for row in parameters(model).values()}
    save_checkpoint(begin, Checkpoint.of(CheckpointConfig(model=model, labels=LABELS), arrays))
    small = ["--model.image-size", "8", "--steps", "10", "--batch-size", "16", "--schedule.warmup-steps", "2"]
    small += ["--schedule.cooldown-steps", "0", "--mesh.fsdp", "1"]
    if stage == "pretrain":
        small += ["--model.width", "16", "--model.depth", "2", "--model.heads", "2", "--model.mlp-dim", "16"]
        small += ["--model.patch-size", "4"]
    masked = (name, stage) == ("imagenet_mae", "pretrain")
    if masked:
        small += ["--mae.decoder-width", "16", "--mae.decoder-depth", "1", "--mae.decoder-heads", "2"]
    elif stage == "pretrain":
        small += ["--model.num-classes", "4"]
    if name == "deit_b16_distilled":
        small += ["--distillation.teacher", begin]
    split = ["--data.name", images, "--data.train-split", "None", "--data.eval-split", "None"]
    words = [stage, name, *(["--init", begin] if stage == "finetune" else []), *small, *split]
    out = vit(*words, "--framework", framework, "--out", tmp_path / "run", "--log-every", "5")
    assert "10/10" in out
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [5, 10]
    assert all(np.isfinite(line["loss"]) for line in lines if "loss" in line)
    assert open_checkpoint(tmp_path / "run" / "checkpoint").config.labels == (None if masked else LABELS)


def test_recipes_say_what_papers_say() -> None:
    """Values that are easily lost, from the sources the recipes name."""
    plain = recipes.load("imagenet_s16", "pretrain")
    assert (plain.batch_size, plain.optimizer.decay, plain.optimizer.weight_decay) == (1024, "independent", 1e-4)
    assert plain.steps * plain.batch_size / 1_281_167 / 0.99 == pytest.approx(90, abs=1024 / 1_281_167)  # whole steps
    long = recipes.load("imagenet_s16_300", "pretrain")
    assert long == plain.replace(steps=long.steps)
    assert long.steps == pytest.approx(300 * 1_281_167 * 0.99 / 1024, abs=1)
    google = recipes.load("vit_imagenet1k", "pretrain"), recipes.load("vit_imagenet21k", "pretrain")
    assert [(each.loss, each.model.head_bias_init) for each in google] == [("sigmoid", -10.0)] * 2
    assert google[0].optimizer.weight_decay == 0.3
    assert google[1].schedule.fraction(google[1].steps, google[1].steps) == pytest.approx(0.01)  # 1e-5 of 1e-3
    medium2 = recipes.load("augreg_imagenet1k", "pretrain").augmentation
    assert (medium2.rand_augment.layers, medium2.rand_augment.magnitude, medium2.mixup) == (2, 15.0, 0.5)
    assert medium2.rand_augment.operations == "big_vision"
    revenge = recipes.load("deit3_s16", "pretrain")
    assert (revenge.optimizer.name, revenge.loss, revenge.augmentation.repeats) == ("lamb", "sigmoid", 3)
    assert (revenge.model.layer_scale, revenge.learning_rate(revenge.steps)) == (1e-4, pytest.approx(1e-5))
    tuned = recipes.load("mae_finetune", "finetune", CheckpointConfig(model=variant("B/16", 224, 1000)))
    assert (tuned.optimizer.layer_decay, tuned.optimizer.learning_rate) == (0.65, 2e-3)
    masked = recipes.load("imagenet_mae", "pretrain")
    assert (masked.optimizer.learning_rate, masked.optimizer.beta2, masked.mae.mask_ratio) == (2.4e-3, 0.95, 0.75)
    assert masked.mae.visible(masked.model) == 49
    deit = recipes.load("deit_b16_distilled", "pretrain")
    assert (deit.optimizer.learning_rate, deit.model.distillation, deit.distillation.kind) == (1e-3, "head", "hard")
    low_rank = recipes.load("lora", "finetune", CheckpointConfig(model=variant("B/16", 224, 1000)))
    assert (low_rank.lora.rank, low_rank.lora.scale, low_rank.schedule.warmup_steps) == (8, 1.0, 120)
    cifar = recipes.load("cifar10", "pretrain")
    assert cifar.steps * cifar.batch_size / 50_000 == pytest.approx(280, abs=100 * 128 / 50_000)  # hundreds of steps
    assert 3 * sum(flops.forward(cifar.model).values()) * cifar.steps * cifar.batch_size <= 16e15
    assert count(cifar.model) <= 4_000_000
