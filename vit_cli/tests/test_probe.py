"""`vit probe`: of files of features, and of a checkpoint with class folders."""

import re
from pathlib import Path

import numpy as np
from PIL import Image

from vit_cli.tests.printed import Printing, Vit
from vit_cli.tests.random_checkpoints import save_random
from vit_core.feature_files import read_features
from vit_train.classification import wilson_interval
from vit_train.probing import Labelled, probe


def class_folders(folder: Path, count: int) -> Path:
    """Dark and bright images with noise."""
    rng = np.random.default_rng(count)
    for i in range(count):
        level, name = ((20, "dark"), (230, "bright"))[i % 2]
        pixels_HWC = rng.integers(level - 20, level + 20, (9, 11, 3)).astype(np.uint8)
        path = folder / name / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels_HWC).save(path)
    return folder


def accuracies(text: str) -> list[tuple[str, ...]]:
    """Accuracy and interval of each row of the table."""
    return re.findall(r"([\d.]+%) +([\d.]+%) - ([\d.]+%)", text)


def test_files_and_a_checkpoint_with_folders_give_the_same(printed: Printing, tmp_path: Path) -> None:
    model, photos = save_random(tmp_path / "model"), tmp_path / "photos"
    for name, count in (("train", 24), ("val", 10)):
        class_folders(photos / name, count)
        printed("features", model, photos / name, "--out", tmp_path / f"{name}.parquet")
    words = ["--neighbours", 3, "--c", 0.5]
    of_files = printed("probe", tmp_path / "train.parquet", tmp_path / "val.parquet", *words).out
    of_images = printed("probe", model, "--data", photos, "--framework", "torch", *words).out
    parts = [read_features(tmp_path / f"{name}.parquet") for name in ("train", "val")]
    data = [Labelled.of(each.values_N, each.labels, "x") for each in parts]
    expected = [(each.accuracy, *wilson_interval(each.correct, 10)) for each in probe(*data, neighbours=3, c=0.5)]
    assert accuracies(of_files) == [tuple(f"{value:.2%}" for value in row) for row in expected]
    assert accuracies(of_images) == accuracies(of_files)
    assert "fitted to 24 images of 2 classes" in of_files
    assert "fitted to 24 images of 2 classes (photos/train), tested on 10" in of_images


def test_one_file_is_divided(vit: Vit, tmp_path: Path) -> None:
    photos = class_folders(tmp_path / "photos", 20)
    vit("features", save_random(tmp_path / "model"), photos, "--out", tmp_path / "x.npy")
    shown = vit("probe", tmp_path / "x.npy", "--neighbours", 3, "--held-out", 0.5)
    assert "fitted to 10 images of 2 classes (50% of " in shown


def test_an_unreadable_image_is_named(printed: Printing, refused: Vit, tmp_path: Path) -> None:
    model, photos = save_random(tmp_path / "model"), class_folders(tmp_path / "photos", 20)
    (photos / "dark/0.png").write_bytes(b"no image")
    words = ["probe", model, "--data", photos, "--neighbours", 3]
    shown = printed(*words).out
    assert re.search(r"skipped: .*dark/0.png: cannot decode image bytes: its 8 bytes begin no image format", shown)
    assert "dark/0.png: cannot decode image" in refused(*words, "--unreadable", "error")
    (photos / "dark/0.png").unlink()
    (photos / "dark/0.png").symlink_to(tmp_path / "moved.png")
    assert f"skipped: cannot read image '{photos}/dark/0.png': No such file or directory\n" in printed(*words).out


def test_bad_input_is_one_line(refused: Vit, tmp_path: Path) -> None:
    out = tmp_path / "x.npy"
    for words, why in (
        ([out], f"{out}: no such file of features; vit features writes one"),
        ([out, "--held-out", 1], "--held-out 1: expected more than 0 and less than 1"),
        ([out, "--c", 0], "--c 0: expected more than 0"),
        ([out, "--neighbours", 0], "--neighbours 0: expected 1 or more"),
        (
            [out, out, "--data", "./photos"],
            f"{out}: with --data the images are those of ./photos",
        ),
        ([out, "--data", f"{tmp_path}/none/"], f"{tmp_path}/none"),
    ):
        assert why in refused("probe", *words)
