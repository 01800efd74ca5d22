"""The training commands as a user types them: recipes, overrides, what they print, and the answer to bad input."""

import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vit_cli.tests.printed import Printing, Vit
from vit_cli.tests.small_recipe import SMALL
from vit_core import Checkpoint, CheckpointConfig, open_checkpoint, parity, save_checkpoint, variant
from vit_core.parameters import initial_value, parameters
from vit_train import recipes, step_folders
from vit_train.config import Data
from vit_train.data.sources import open_split
from vit_train.tests.small_run import folder_of_images, png


@pytest.mark.parametrize(("first", "second"), [("jax", "torch"), pytest.param("torch", "jax", marks=pytest.mark.slow)])
def test_pretrain_finetune_evaluate(vit: Vit, recipe: str, first: str, second: str, tmp_path: Path) -> None:
    """From new weights in one framework to fine-tuned ones of another size in the other, both evaluated."""
    begun, tuned = tmp_path / "begun", tmp_path / "tuned"
    out = vit("pretrain", recipe, "--framework", first, "--out", begun, "--ema", "0.9")
    assert f"pretrain ({first})" in out
    assert "moving average" in out
    assert {path.name for path in begun.iterdir()} >= {
        "run.json",
        "metrics.jsonl",
        "curves.png",
        "checkpoint",
        "tensorboard",
    }
    out = vit("finetune", recipe, "--init", begun, "--framework", second, "--out", tuned, "--image-size", "16")
    assert "image size 8 x 8 -> 16 x 16, position embeddings by bilinear_antialias" in out
    opened = open_checkpoint(tuned / "checkpoint").config
    assert opened.model.image_size == opened.preprocessing.image_size == (16, 16)
    (done,) = opened.provenance.position_resampling
    assert (done.source, done.target, done.trained_since) == ((2, 2), (4, 4), True)
    images = json.loads((tuned / "run.json").read_text())["config"]["data"]["name"]
    final = [json.loads(line) for line in (tuned / "metrics.jsonl").read_text().splitlines()][-1]
    for framework, data in (("jax", []), ("torch", []), ("torch", ["--data", images, "--held-out", "0.1"])):
        out = vit("evaluate", tuned, *data, "--framework", framework)
        assert f"{final['top1']:.2%}" in out
        assert " 8 \n" in out
        assert "warning" not in out
    assert " 64 \n" in vit("evaluate", tuned, "--data", images), "a folder is all evaluated"


def test_a_resized_model_evaluated_untuned_is_warned_of(vit: Vit, recipe: str, tmp_path: Path) -> None:
    vit("pretrain", recipe, "--framework", "torch", "--out", tmp_path / "run")
    images = json.loads((tmp_path / "run" / "run.json").read_text())["config"]["data"]["name"]
    warning = "positions resampled from a 2 x 2 grid to 3 x 3 and not trained since"
    assert warning in vit("evaluate", tmp_path / "run", "--data", images, "--image-size", "12")
    vit("convert", tmp_path / "run", tmp_path / "resized", "--image-size", "12")
    assert warning in vit("evaluate", tmp_path / "resized", "--data", images)


def test_a_run_goes_on_or_says_what_differs(vit: Vit, recipe: str, tmp_path: Path) -> None:
    words = ["pretrain", recipe, "--out", tmp_path, "--framework", "torch"]
    vit(*words)
    lines = (tmp_path / "metrics.jsonl").read_text()
    assert "this run is finished; its checkpoint is" in vit(*words)
    assert (tmp_path / "metrics.jsonl").read_text() == lines
    shutil.rmtree(tmp_path / "checkpoint")  # as if killed after the last step was saved
    assert "resuming after step 8 of 8" in vit(*words)
    assert open_checkpoint(tmp_path / "checkpoint").config.provenance.step == 8
    out = vit(*words, "--steps", "9", "--seed", "4", status=2)
    assert "has a run of another config: steps is 8 there and 9 here; seed is 0 there and 4 here" in out


def test_a_new_head_fits_the_classes(vit: Vit, recipe: str, tmp_path: Path) -> None:
    vit("pretrain", recipe, "--framework", "torch", "--out", tmp_path / "run")
    rng = np.random.default_rng(0)
    for i in range(40):
        path = tmp_path / "others" / "abc"[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i % 3, rng))
    words = [
        "finetune",
        recipe,
        "--init",
        tmp_path / "run",
        "--data.name",
        tmp_path / "others",
        "--out",
        tmp_path / "tuned",
    ]
    frozen = ["--optimizer.frozen", "patch_embed.*", "cls_token", "pos_embed", "blocks.*", "norm.*"]
    assert "a new head, zero-initialized: 4 classes before, 3 now" in vit(*words, "--model.image-size", "8", *frozen)
    before, after = (open_checkpoint(tmp_path / run / "checkpoint") for run in ("run", "tuned"))
    assert after.config.labels == ("a", "b", "c")
    assert after.arrays["head.weight"].any()
    for name, array in after.arrays.items():
        if not name.startswith("head."):
            np.testing.assert_array_equal(array, before.arrays[name])


def test_explain_shows_what_will_run(vit: Vit, recipe: str, tmp_path: Path) -> None:
    out = vit(
        "explain",
        recipe,
        "--optimizer.layer-decay",
        "0.5",
        "--optimizer.weight-decay",
        "0.1",
        "--model.image-size",
        "16x8",
    )
    assert re.search(r"^ model.image_size +16 8 $", out, re.M)
    assert re.search(r"^ 1 +1.500e-03 +0.29 $", out, re.M), "half the peak; 16 of 56 images"
    assert re.search(r"^ embeddings +yes +1 +768 +3.750e-04 +3.8e-05 $", out, re.M)
    assert re.search(r"^ head +yes +1 +64 +3.000e-03 +3.0e-04 $", out, re.M)
    config = recipes.load(recipe, "pretrain").model.replace(image_size=(16, 8))
    assert f"{sum(row.size for row in parameters(config).values()):,} parameters, 9 tokens per image" in out
    assert not (tmp_path / "runs").exists()


def test_bad_words_are_answered_in_one_line(vit: Vit, recipe: str, tmp_path: Path) -> None:
    def refused(*words: object) -> str:
        return vit(*words, status=2)

    assert "did you mean 'pretrain'?" in refused("pretrian", recipe)
    assert "name a recipe: a Python file, or one of augreg_imagenet1k" in refused("pretrain")
    assert "unknown recipe 'cifar'; did you mean 'cifar10'?" in refused("pretrain", "cifar")
    assert "nowhere.py: no such file" in refused("pretrain", "nowhere.py")
    line = refused("pretrain", recipe, "--optimizer.learning-rat", "1e-3")
    assert "unknown option '--optimizer.learning-rat'; did you mean '--optimizer.learning-rate'?" in line
    line = refused("pretrain", recipe, "--optimizer.beta1", "1.5")
    assert line == "vit: error: --optimizer.beta1: expected less than 1, found 1.5\n"
    line = refused("pretrain", recipe, "--steps", "1", "--schedule.warmup-steps", "2")
    assert line.startswith("vit: error: schedule: 2 steps of warm-up"), line
    assert "set --model.image-size" in refused("pretrain", recipe, "--preprocessing.image_size", "8")
    line = refused("pretrain", recipe, "--model.image-size", "9")
    assert "--model.image-size: height 9 is not a multiple of patch_size 4; the nearest is 8" in line
    assert "image size 'big': expected pixels" in refused("explain", recipe, "--model.image-size", "big")
    assert "the option --init is missing" in refused("finetune", recipe)
    assert "no such checkpoint" in refused("finetune", recipe, "--init", tmp_path / "none")
    assert "transfer_pets: has no function pretrain; it has finetune" in refused("explain", "transfer_pets")
    out = tmp_path / "run"
    assert "set --model.num-classes 4" in refused("pretrain", recipe, "--model.num-classes", "3", "--out", out)
    assert "batch_size: 500 is more than the 56 examples" in refused(
        "pretrain", recipe, "--batch-size", "500", "--out", out
    )
    assert not (out / "run.json").exists(), "a refused run leaves no run behind"
    (tmp_path / "file").touch()
    assert "cannot write there" in refused("pretrain", recipe, "--out", tmp_path / "file" / "run")
    assert "--batch-size 0: expected 1 or more" in refused("evaluate", out, "--data", "digits", "--batch-size", "0")


def test_torchrun_is_for_torch(vit: Vit, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    line = vit("pretrain", recipe, "--framework", "jax", "--out", tmp_path / "run", status=2)
    assert "add --framework torch" in line
    assert not (tmp_path / "run").exists()


def test_unreadable_images_in_evaluation(vit: Vit, recipe: str, tmp_path: Path) -> None:
    """An error before anything is trained, unless allowed."""
    images = folder_of_images(tmp_path / "images")
    words = ["pretrain", recipe, "--framework", "torch", "--data.name", images, "--out", tmp_path / "run"]
    held_out = open_split(Data(name=f"{images}/"), "eval")
    Path(held_out.name(0)).write_bytes(b"no image")
    line = vit(*words, status=2)
    assert f"1 image of images (held out) cannot be read: {held_out.name(0)}: cannot decode" in line
    assert "fix or remove them, or set --allow-undecodable to skip them" in line
    assert not (tmp_path / "run").exists()
    assert "they will be skipped" in vit(*words, "--allow-undecodable")
    assert "the like; fix or remove them, or add --allow-undecodable" in vit("evaluate", tmp_path / "run", status=2)
    out = vit("evaluate", tmp_path / "run", "--allow-undecodable")
    assert "skipped, because they cannot be read: 1 of 8 images" in out


def test_a_broken_recipe_is_one_line(vit: Vit, tmp_path: Path) -> None:
    def refused(text: str) -> str:
        (tmp_path / "mine.py").write_text(text)
        return vit("explain", tmp_path / "mine.py", status=2)

    assert "mine.py, line 2: SyntaxError" in refused("x = 1\ndef pretrain(:")
    assert "mine.py, line 3: ZeroDivisionError: division by zero" in refused("\ndef pretrain():\n    return 1 / 0")
    assert "has no function pretrain; it has finetune, which begins from a checkpoint: --init" in refused(
        "def finetune(init): ..."
    )
    assert "has no function pretrain; a recipe has pretrain or finetune, or both\n" in refused("")
    assert "Error: source code string cannot contain null bytes" in refused("\0")  # a ValueError in Python 3.11.2
    assert "pretrain returns dict; expected a vit_train.config.TrainConfig" in refused("def pretrain(): return {}")
    text = SMALL.format(folder="./x").replace("width=16", "widht=16")
    assert "unknown key 'widht'; did you mean 'width'?" in refused(text)


@pytest.mark.slow
def test_runs_of_one_config_are_compared(vit: Vit, recipe: str, tmp_path: Path) -> None:
    for framework in ("jax", "torch"):
        vit(
            "pretrain",
            recipe,
            "--out",
            tmp_path / framework,
            "--framework",
            framework,
            "--fingerprints",
            "--log-every",
            "2",
        )
    out = vit("compare", tmp_path / "jax", tmp_path / "torch", "--out", tmp_path / "both.png")
    assert "batches with equal fingerprints: 4 of 4" in out
    differences = [float(value) for value in re.findall(r"\d\.\d{6} +\d\.\d{6} +(\S+) ", out)]
    assert len(differences) == 4
    assert max(differences) < parity.FLOAT32_BOUND, "eight small steps increase no loss's rounding"
    assert (tmp_path / "both.png").stat().st_size > 10_000
    assert "weights after step 8" in out
    vit("pretrain", recipe, "--out", tmp_path / "other", "--framework", "torch", "--seed", "1")
    assert "are runs of different configs: seed is 1 there and 0 here; expected runs" in vit(
        "compare", tmp_path / "jax", tmp_path / "other", status=2
    )


def test_a_full_disk_is_one_line(vit: Vit, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vit_core.checkpoints.formats.vit import folder

    def full(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    words = ["pretrain", recipe, "--framework", "torch", "--out", tmp_path, "--save-every", "4"]
    original, calls = folder.write_safetensors, []

    def filling(*args: object, **options: object) -> None:
        calls.append(1)
        (original if len(calls) < 2 else full)(*args, **options)

    monkeypatch.setattr(folder, "write_safetensors", filling)
    line = vit(*words, status=2)
    assert "No space left on device" in line
    assert "000008" in line
    assert [path.name for path in (tmp_path / "steps").iterdir()] == ["000004"], "nothing half-written"
    assert open_checkpoint(tmp_path / "steps" / "000004").config.provenance.step == 4
    monkeypatch.setattr(folder, "write_safetensors", original)
    assert "resuming after step 4 of 8" in vit(*words)


def test_an_optimizer_state_that_cannot_be_written_is_one_line(
    vit: Vit, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first file of a step; safetensors has an error of its own where the file system refuses."""
    original, calls = step_folders.save_file, []

    def refusing(arrays: dict[str, np.ndarray], path: Path) -> None:
        calls.append(1)
        original(arrays, path if len(calls) < 2 else path / "missing/folder")

    monkeypatch.setattr(step_folders, "save_file", refusing)
    line = vit("pretrain", recipe, "--framework", "torch", "--out", tmp_path, "--save-every", "4", status=2)
    assert "000008: cannot write there (Error while serializing: I/O error: " in line
    assert [path.name for path in (tmp_path / "steps").iterdir()] == ["000004"], "nothing half-written"


def test_a_mesh_that_does_not_fit_is_refused_before_anything_is_made(vit: Vit, recipe: str, tmp_path: Path) -> None:
    """In both engines; pytest has one device."""
    for framework, what in (("jax", "needs 2 devices, there are 1"), ("torch", "needs 2 devices, there are 1")):
        words = ("--framework", framework, "--mesh.data", "2", "--out", tmp_path / "run")
        assert what in vit("pretrain", recipe, *words, status=2)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_preflight_trains_nothing(vit: Vit, recipe: str, framework: str, tmp_path: Path) -> None:
    out = vit("pretrain", recipe, "--framework", framework, "--preflight", "--out", tmp_path / "run")
    assert f"preflight: {framework}, 1 process\n" in out
    assert "data 1 x fsdp 1 x tensor 1" in out
    assert not (tmp_path / "run").exists()


def test_assumptions_about_a_checkpoint_are_printed(vit: Vit, recipe: str, tmp_path: Path) -> None:
    """By the commands that begin from one, with the options that say otherwise."""
    model = variant("mu/4", 8, 4, mlp_dim=64, activation="gelu")
    arrays = {row.name: initial_value(row, 0).astype(np.float32) for row in parameters(model).values()}
    timm = tmp_path / "timm.safetensors"
    save_checkpoint(timm, Checkpoint.of(CheckpointConfig(model=model), arrays), format="timm")
    images = folder_of_images(tmp_path / "images")
    commands = (
        ["finetune", recipe, "--init", timm, "--steps", "4", "--image-size", "8", "--out", tmp_path / "run"],
        ["evaluate", timm, "--data", f"{images}/"],
        ["explain", recipe, "--init", timm],
    )
    for words in commands:
        out = vit(*words, "--set", "heads=2", "--from", "timm")
        assert f"{timm}: timm" in out
        assert "heads:" not in out, "it was given"
    assert open_checkpoint(tmp_path / "run" / "checkpoint").config.model.heads == 2
    assert "heads: 1, one for each 64 of the width" in vit("explain", recipe, "--init", timm)


@pytest.mark.slow
def test_options_for_other_projects_are_refused_for_a_step(vit: Vit, recipe: str, tmp_path: Path) -> None:
    """A step that Orbax wrote, and the folder of a run."""
    vit("pretrain", recipe, "--framework", "jax", "--out", tmp_path / "run")
    step = tmp_path / "run" / "steps" / "000008"
    assert (step / "step.json").exists()
    for source in (step, tmp_path / "run"):
        for words in (
            ("inspect", source),
            ("convert", source, tmp_path / "new"),
            ("evaluate", source, "--data", "digits"),
        ):
            assert "leave out --from timm" in vit(*words, "--from", "timm", status=2)
            assert "instead of --set" in vit(*words, "--set", "heads=2", status=2)
        assert "leave out --from timm" in vit("finetune", recipe, "--init", source, "--from", "timm", status=2)
    assert not (tmp_path / "new").exists()


def test_an_interrupt_during_evaluation(printed: Printing, recipe: str, tmp_path: Path, monkeypatch: Any) -> None:
    from vit_train.data.batches import EvaluationBatches

    vit_run = tmp_path / "run"
    printed("pretrain", recipe, "--framework", "torch", "--out", vit_run)
    original = EvaluationBatches.make

    def interrupting(self: EvaluationBatches, i: int, threads: int) -> object:
        os.kill(os.getpid(), number)
        return original(self, i, threads)

    monkeypatch.setattr(EvaluationBatches, "make", interrupting)
    for number, line in ((signal.SIGINT, "vit: interrupted\n"), (signal.SIGTERM, "")):
        result = printed("evaluate", vit_run, status=128 + number)
        assert result.err == line
        assert "top-1" not in result.out
