"""Folders of images without classes: what is found in them, whatever their order, and how they are divided."""

from pathlib import Path

import pytest

from vit_core.errors import InputError
from vit_train.config import Data
from vit_train.data.sources import open_split
from vit_train.tests.small_run import folder_of_images, quadrants


def unlabelled(folder: Path, **fields: object) -> Data:
    return Data(name=str(folder), labelled=False, **fields)


def found(data: Data, which: str) -> set[str]:
    split = open_split(data, which)  # type: ignore[arg-type]
    return {Path(split.name(i)).name for i in range(len(split))}


def test_all_images_below_a_folder_are_found_and_divided(tmp_path: Path) -> None:
    images = [example["image"] for example in quadrants(20).examples]
    for i, image in enumerate(images):
        path = tmp_path / ("" if i % 2 else "a/b c") / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    (tmp_path / "notes.txt").write_text("no image")
    training, evaluation = (found(unlabelled(tmp_path, held_out=0.2), which) for which in ("train", "eval"))
    assert (len(training), len(evaluation)) == (16, 4)
    assert training | evaluation == {f"{i:02d}.png" for i in range(20)}
    split = open_split(unlabelled(tmp_path), "train")
    by_name = {Path(split.name(i)).name: split.examples[i]["image"] for i in range(len(split))}
    assert all(by_name[name] == images[int(name[:2])] for name in by_name)
    assert "1 .txt" in split.notes[0]


def test_folders_of_splits_are_splits(tmp_path: Path) -> None:
    for name, count in (("train", 6), ("val", 3)):
        folder_of_images(tmp_path / name / "all", count)
    assert len(found(unlabelled(tmp_path), "train")) == 6
    assert len(found(unlabelled(tmp_path), "eval")) == 3


def test_class_folders_are_taken_together(tmp_path: Path) -> None:
    folder_of_images(tmp_path, 40)
    split = open_split(unlabelled(tmp_path), "train")
    assert (len(split), len(split.labels)) == (36, 1)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(InputError, match=r"no images; expected files such as \.jpg or \.png in it or below it"):
        open_split(unlabelled(tmp_path), "train")
    (tmp_path / "one.png").write_bytes(quadrants(1).examples[0]["image"])
    with pytest.raises(InputError, match="expected two or more"):
        open_split(Data(name=str(folder_of_images(tmp_path / "one class", 1))), "train")
