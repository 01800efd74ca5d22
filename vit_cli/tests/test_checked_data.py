"""What the commands say of a person's data before they train on it, and of what they score."""

import os
import re
from pathlib import Path

import numpy as np
import pytest

from vit_cli.tests.printed import Printing, Vit
from vit_core import parity
from vit_train.config import Data
from vit_train.data.sources import open_split
from vit_train.tests.small_run import folder_of_images


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return folder_of_images(tmp_path / "photos")


def pretrain(recipe: str, data: object, out: object, framework: str = "torch") -> list[object]:
    return ["pretrain", recipe, "--framework", framework, "--data.name", data, "--out", out]


@pytest.mark.parametrize("data", [".", "./", "../photos", "../link/"])
@pytest.mark.parametrize("out", ["runs/x", "../photos/runs", "../link/a/b", "."])
def test_an_output_folder_inside_the_data_is_refused(
    vit: Vit, recipe: str, images: Path, data: str, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (images.parent / "link").symlink_to(images)
    monkeypatch.chdir(images)
    before = sorted(images.rglob("*"))
    line = vit(*pretrain(recipe, data, out), status=2)
    assert "this output folder is inside the data folder" in line
    assert f"choose another, such as --out {images.parent}/runs/" in line
    assert sorted(images.rglob("*")) == before, "nothing was written"


def test_a_set_is_not_packed_into_the_images(vit: Vit, images: Path) -> None:
    assert "inside the data folder" in vit("prepare", images, "--out", images / "set", status=2)


def test_what_was_prepared_is_said_in_lines(vit: Vit, images: Path, tmp_path: Path) -> None:
    text = vit("prepare", images, "--out", tmp_path / "sets", "--workers", "1")
    assert text.splitlines()[-2:] == [
        f"{tmp_path}/sets/photos/1.0.0: 56 train, 8 test; 4 classes",
        f"to train on it: --data.name photos --data.directory {tmp_path}/sets",
    ]


@pytest.mark.slow
def test_training_in_the_folder_of_images(
    vit: Vit, recipe: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--data.name .` trains on the images that ./photos names: the batches are equal."""
    monkeypatch.chdir(images)
    for data, out in ((".", "here"), ("../photos", "there")):
        text = vit(*pretrain(recipe, data, tmp_path / out), "--fingerprints")
        assert "checked photos: pixels all 56 images; photos (held out): pixels all 8 images" in text
    assert "batches with equal fingerprints" in vit(
        "compare", tmp_path / "here", tmp_path / "there", "--out", tmp_path / "a.png"
    )


def test_what_is_found_is_said_once(vit: Vit, recipe: str, images: Path, tmp_path: Path) -> None:
    held_out = open_split(Data(name=f"{images}/"), "eval")
    training = open_split(Data(name=f"{images}/"), "train")
    Path(held_out.name(5)).write_bytes(Path(training.name(9)).read_bytes())
    Path(training.name(3)).write_bytes(b"no image")
    Path(training.name(20)).write_bytes(Path(training.name(19)).read_bytes())
    (images / "northeast/notes.txt").write_text("mine")
    text = vit(*pretrain(recipe, images, tmp_path / "run"))
    assert "files that are not read as images: 1 .txt" in text
    assert f"1 image of photos cannot be read: {training.name(3)}: cannot decode" in text
    assert "1 of the 56 images of photos is a copy of another, byte for byte" in text
    assert "1 of the 8 images of photos (held out) are in photos too, byte for byte" in text
    assert f"({held_out.name(5)} is {training.name(9)})" in text
    assert "checked" not in vit(*pretrain(recipe, images, tmp_path / "run")), "a run that goes on is not checked again"


def test_scores_of_training_images_are_named_as_that(vit: Vit, recipe: str, images: Path, tmp_path: Path) -> None:
    vit(*pretrain(recipe, images, tmp_path / "run"))
    for checkpoint in ("run", "run/checkpoint", "run/steps/000008"):
        text = " ".join(vit("evaluate", tmp_path / checkpoint, "--data", f"{images}/").split())
        assert "the run was trained on 56 of these 64 images" in text
        assert "photos (all images) (56 of 64 trained on)" in text
    new = folder_of_images(tmp_path / "new", seed=1)
    for data in ([], ["--data", f"{new}/"], ["--data", f"{images}/", "--held-out", "0.1"]):
        assert "trained on" not in vit("evaluate", tmp_path / "run", *data)
    os.rename(images, tmp_path / "moved")
    text = vit("evaluate", tmp_path / "run", "--data", f"{tmp_path}/moved/")
    assert "whether these are images that the run was trained on is not known" in " ".join(text.split())


def test_training_images_in_a_test_split_are_named(vit: Vit, recipe: str, tmp_path: Path) -> None:
    """Training compares its images with those of val only, so `vit evaluate` compares those of test."""
    for seed, split in enumerate(("train", "val", "test")):
        folder_of_images(tmp_path / "photos" / split, 16, seed)
    trained = tmp_path / "photos/train/northeast/0000.png"
    (tmp_path / "photos/val/northeast/0000.png").write_bytes(trained.read_bytes())
    assert "1 of the 16 images of photos/val are in photos/train too" in vit(
        *pretrain(recipe, tmp_path / "photos", tmp_path / "run")
    )
    assert "trained on" not in vit("evaluate", tmp_path / "run")
    (tmp_path / "photos/test/northeast/0000.png").write_bytes(trained.read_bytes())
    text = " ".join(vit("evaluate", tmp_path / "run").split())
    assert "the run was trained on 1 of these 16 images: on new images its accuracy can be lower" in text
    assert "photos/test (1 of 16 trained on)" in text
    (tmp_path / "photos/test").rename(tmp_path / "photos/others")
    assert "trained on" not in vit("evaluate", tmp_path / "run"), "the images of val, which training compared"


def test_unreadable_images_of_an_evaluation_are_counted(vit: Vit, recipe: str, images: Path, tmp_path: Path) -> None:
    vit(*pretrain(recipe, images, tmp_path / "run"))
    held_out = open_split(Data(name=f"{images}/"), "eval")
    for i in (2, 5):
        Path(held_out.name(i)).write_bytes(b"no image")
    text = " ".join(vit("evaluate", tmp_path / "run", status=2).split())
    assert f"2 images of photos (held out) cannot be read: {held_out.name(2)}: cannot decode" in text
    assert "fix or remove them, or add --allow-undecodable" in text
    assert "2 of 8 images" in vit("evaluate", tmp_path / "run", "--allow-undecodable")


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_a_mesh_of_too_many_devices_is_refused_before_images_are_read(
    vit: Vit, recipe: str, images: Path, framework: str, tmp_path: Path
) -> None:
    Path(open_split(Data(name=f"{images}/"), "eval").name(0)).write_bytes(b"no image")
    text = vit(*pretrain(recipe, images, tmp_path / "run", framework), "--mesh.fsdp", 97, status=2)
    assert "mesh: data -1 x fsdp 97 x tensor 1 needs a multiple of 97 devices" in text


def test_runs_of_other_seeds_and_their_features(vit: Vit, recipe: str, images: Path, tmp_path: Path) -> None:
    """`vit compare` names the command that compares them; `vit probe` uses the data of the run."""
    for seed in (0, 1):
        vit(*pretrain(recipe, images, tmp_path / f"run{seed}"), "--seed", seed)
    runs = [tmp_path / "run0", tmp_path / "run1"]
    assert f"vit runs {runs[0]} {runs[1]} compares the accuracy of other runs" in vit("compare", *runs, status=2)
    words = ["--framework", "torch", "--neighbours", 3]
    text = " ".join(vit("probe", runs[0], *words).split())
    assert "fitted to 56 images of 4 classes (photos), tested on 8" in text
    share = ["--held-out", Data(name="x").held_out]
    other = " ".join(vit("probe", runs[0], "--data", f"{images}/", *share, *words).split())
    assert text.partition("nearest neighbours")[2] == other.partition("nearest neighbours")[2] != ""


def test_a_prepared_set_that_was_moved_is_the_set_of_the_run(
    vit: Vit, recipe: str, images: Path, tmp_path: Path
) -> None:
    vit("prepare", images, "--out", tmp_path / "sets", "--held-out", "0.125")
    vit(*pretrain(recipe, "photos", tmp_path / "run"), "--data.directory", tmp_path / "sets")
    os.rename(tmp_path / "sets", tmp_path / "moved")
    words = ["evaluate", tmp_path / "run", "--data", "photos", "--data-dir", tmp_path / "moved", "--split"]
    assert "the run was trained on 56 of these 56 images" in " ".join(vit(*words, "train").split())
    assert "trained on" not in vit(*words, "test")


def test_no_room_for_a_saved_step(
    vit: Vit, recipe: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vit_train import preflight

    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    line = vit(*pretrain(recipe, images, tmp_path / "run"), status=2)
    assert "0.0 MiB free, and a saved step takes 0.1; free some space, or choose another --out" in line


def test_a_file_for_decoded_images_is_refused_at_the_start(
    printed: Printing, recipe: str, images: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    words = pretrain(recipe, images, tmp_path / "run")
    shown = printed(*words, "--image-cache-folder", tmp_path / "file", status=2)
    assert f"--image-cache-folder {tmp_path}/file: {tmp_path}/file is a file; expected a folder" in shown.err
    assert "checked" not in shown.out
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_sixteen_bits_in_five_channels(vit: Vit, recipe: str, tmp_path: Path) -> None:
    """From NumPy files to an accuracy that both engines agree on; the class is in the last channel's lowest bits."""
    rng = np.random.default_rng(0)
    for i in range(64):
        pixels = rng.integers(30_000, 30_100, (8, 8, 5), np.uint16)
        pixels[(i % 4) // 2 * 4 :, i % 2 * 4 :, 4] += 4000
        file = tmp_path / f"photos/{i % 4}/{i:02}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, pixels)
    channels = ["--model.channels", "5", "--preprocessing.bit-depth", "16", "--fingerprints"]
    for framework in ("torch", "jax"):
        vit(*pretrain(recipe, tmp_path / "photos", tmp_path / framework, framework), *channels)
    text = vit("compare", tmp_path / "torch", tmp_path / "jax", "--out", tmp_path / "a.png")
    assert "batches with equal fingerprints: 2 of 2" in text
    differences = [float(value) for value in re.findall(r"\d\.\d{6} +\d\.\d{6} +(\S+) ", text)]
    assert len(differences) == 2
    assert max(differences) < parity.FLOAT32_BOUND, "eight small steps increase no loss's rounding"
