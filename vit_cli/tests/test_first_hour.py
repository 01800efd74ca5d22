"""The first hour with own images: a dirty folder, from the first command to a model of a higher resolution."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vit_cli.tests.printed import Vit
from vit_core import open_checkpoint
from vit_train.tests.small_run import LABELS, folder_of_images

CLASSES = ("Bäume", "cats and dogs", "ship")
TINY = ["--model", "mu/8", "--framework", "torch", "--no-tensorboard"]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """60 small images of three classes, with spaces and umlauts in names, one cut short, beside two text files."""
    rng = np.random.default_rng(0)
    for i in range(60):
        pixels = rng.integers(0, 80, (36, 40, 3), np.uint8)
        pixels[..., i % 3] += 120
        path = tmp_path / "photos" / CLASSES[i % 3] / (f"Grün {i}.jpg" if i % 2 else f"img {i}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    cut = tmp_path / "photos" / "ship" / "img 2.png"
    cut.with_name("cut.jpg").write_bytes(cut.read_bytes()[:60])
    cut.with_name("notes.txt").write_text("")
    (tmp_path / "photos" / "readme.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


def values(explained: str) -> dict[str, str]:
    """The fields that `vit explain` prints."""
    return dict(re.findall(r"^ (\S+) +(.*?) *$", explained.partition("schedule\n")[0], re.M))


def test_explain_shows_what_is_fitted(vit: Vit, photos: Path) -> None:
    out = vit("explain", "folder", "--data.name", "./photos")
    fitted = (
        "fitted to photos: 55 images of 3 classes: --model.num-classes 3 --model.patch-size 4 4 "
        "--model.image-size 36 36 --batch-size 8 --steps 2063 --schedule.warmup-steps 206 --evaluate-every 206 "
        "--save-every 206\n2063 steps of 8 images: 300 epochs\n"
    )
    assert out.startswith(fitted)
    assert (values(out)["steps"], values(out)["model.image_size"]) == ("2063", "36 36")
    (options,) = re.findall(r"classes: (.*)\n", out)
    typed_back = vit("explain", "folder", "--data.name", "./photos", *options.split())
    assert values(typed_back) == values(out)
    assert "fitted" not in typed_back, "everything was chosen"


def test_plan_fits_the_recipe_as_training_does(vit: Vit, refused: Vit, photos: Path) -> None:
    out = vit("plan", "folder", "--data", "./photos", "--model", "mu/8", "--steps", "9")
    assert out.startswith("fitted to photos: 55 images of 3 classes: ")
    assert re.search(r"^ batch +8: 8 on a device *$", out, re.M)
    assert vit("plan", "folder", "--model", "mu/8").startswith(
        "the recipe's own sizes and classes: vit plan folder --data"
    )
    assert "nothing: No such file or directory" in refused("plan", "folder", "--data", "./nothing")


def test_nothing_is_fitted_to_the_evaluation_split(vit: Vit, photos: Path) -> None:
    split = photos.parent / "split"
    shutil.copytree(photos, split / "train")
    shutil.copytree(photos, split / "val")
    before = vit("explain", "folder", "--data", "./split")
    for path in split.glob("val/*/*.*"):
        Image.new("RGB", (999, 999)).save(path.with_suffix(".png"))
    for i in range(500):
        shutil.copy(path.with_suffix(".png"), path.with_name(f"more {i}.png"))
    assert vit("explain", "folder", "--data", "./split") == before


def test_a_run_keeps_what_was_fitted_when_it_began(vit: Vit, photos: Path) -> None:
    """Also where the rules of another version would fit something else."""
    words = ["pretrain", "folder", "--data", "./photos", *TINY]
    vit(*words, "--epochs", "1", "--schedule.warmup-steps", "2", "--save-every", "0", "--evaluate-every", "0")
    shutil.rmtree("runs/folder/checkpoint")
    fields = json.loads(Path("runs/folder/run.json").read_text())
    assert (fields["config"]["steps"], fields["config"]["batch_size"]) == (7, 8)
    assert "resuming after step 7 of 7" in vit(*words)
    assert "runs/folder: has a run of 7 steps, and --steps is 2; " in vit(*words, "--steps", "2", status=2)
    assert "another config: steps is 7 there and 90 here; vit resume" in vit(*words, "--steps", "90", status=2)


@pytest.mark.slow
def test_the_whole_walk(vit: Vit, refused: Vit, photos: Path) -> None:
    out = vit("pretrain", "folder", "--data", "./photos", *TINY, "--epochs", "4")
    assert "28 steps of 8 images: 4.07 epochs" in out
    assert "cannot read" in out
    assert "cut.jpg; skipped (weight 0)" in out
    assert open_checkpoint("runs/folder").config.labels == CLASSES

    assert "steps: 20, but the run is finished: 28 steps are done" in refused("resume", "runs/folder", "--steps", "20")
    assert "seed: cannot change in a run" in refused("resume", "runs/folder", "--seed", "3")
    assert "--epochs: is only for a new run" in refused("pretrain", "runs/folder", "--epochs", "3")
    assert "this run is finished" in vit("resume", "runs/folder")
    out = vit("resume", "runs/folder", "--steps", "40", "--batch-size", "4")
    assert "from step 28 on, after 224 examples: batch_size 8 -> 4, steps 28 -> 40" in out
    assert "pretrain (torch)" in out, "as it was trained before"
    shutil.rmtree("runs/folder/checkpoint")
    assert "resuming after step 40 of 40" in vit("pretrain", "runs/folder", "--framework", "torch")

    accuracy = vit("evaluate", "runs/folder")
    assert float(re.findall(r"weights +(\S+)%", accuracy)[0]) > 50, "the classes have other colors"
    out = vit(
        "finetune",
        "folder",
        "--init",
        "runs/folder",
        "--data",
        "./photos",
        "--image-size",
        "96",
        *TINY[2:],
        "--epochs",
        "1",
    )
    assert "image size 64 x 64 -> 96 x 96, position embeddings by" in out
    assert open_checkpoint("runs/folder_finetune").config.model.image_size == (96, 96)
    assert "the option --init is missing" in refused("finetune", "folder", "--data", "./photos")


def test_a_folder_that_is_no_run(refused: Vit, photos: Path) -> None:
    assert "photos: no training run (no run.json in it)" in refused("resume", "photos")
    assert "nowhere: no training run" in refused("resume", "nowhere", "--steps", "3")


def test_other_recipes_count_the_classes_too(vit: Vit, recipe: str, tmp_path: Path) -> None:
    """A recipe of four classes, for images of three."""
    images = folder_of_images(tmp_path / "images", 48)
    shutil.rmtree(images / LABELS[0])
    out = vit("pretrain", recipe, "--data", f"{images}/", "--framework", "torch", "--out", tmp_path / "run")
    assert "36 images of 3 classes" not in out
    assert "images of 3 classes: --model.num-classes 3\n" in out
    assert open_checkpoint(tmp_path / "run").config.labels == LABELS[1:]
