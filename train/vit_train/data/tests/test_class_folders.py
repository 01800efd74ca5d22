"""Class folders: splits by name, drawn splits, links, names of any bytes, whatever the order of the file system."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vit_core.errors import InputError
from vit_train.config import Data
from vit_train.data.sources import folders, open_split
from vit_train.data.tests.text_folders import fill, folder_split, held


def test_folders_with_splits(tmp_path: Path) -> None:
    root = fill(
        tmp_path / "photos",
        "train/dog/2.jpg", "train/dog/deep/er/1.PNG", "train/cat/a.webp", "train/cat/.hidden.jpg",
        "train/cat/notes.txt", "train/cat/table.pdf", "train/.cache/x.jpg", "readme.jpg",
        "val/dog/3.jpg", "extra/cat/4.jpeg", "extra/dog/5.jpg",
    )  # fmt: skip
    train, evaluation = folder_split(root, "train"), folder_split(root, "eval")
    assert held(train) == [("train/cat/a.webp", 0), ("train/dog/2.jpg", 1), ("train/dog/deep/er/1.PNG", 1)]
    assert held(evaluation) == [("val/dog/3.jpg", 1)]
    assert train.labels == evaluation.labels == ("cat", "dog")
    assert (train.title, evaluation.title, len(train)) == ("photos/train", "photos/val", 3)
    assert evaluation.name(0) == str(root / "val/dog/3.jpg")
    named = folder_split(root, "eval", eval_split="extra")
    assert held(named) == [("extra/cat/4.jpeg", 0), ("extra/dog/5.jpg", 1)]
    assert folder_split(root, "train", train_split="extra").title == "photos/extra"


def test_accents_written_in_two_ways(tmp_path: Path) -> None:
    """Archives from macOS write a letter and its accent as two characters. Both folders of the class are one class."""
    fill(tmp_path, "train/K\u00e4fer/1.jpg", "train/Spinne/1.jpg", "val/Ka\u0308fer/2.jpg", "val/Spinne/2.jpg")
    assert held(folder_split(tmp_path, "eval")) == [("val/Ka\u0308fer/2.jpg", 0), ("val/Spinne/2.jpg", 1)]
    fill(tmp_path, "val/K\u00e4fer/3.jpg")
    numbers = [("val/Ka\u0308fer/2.jpg", 0), ("val/K\u00e4fer/3.jpg", 0), ("val/Spinne/2.jpg", 1)]
    assert held(folder_split(tmp_path, "eval")) == numbers
    fill(tmp_path, "train/Ka\u0308fer/1.jpg")  # now they are two classes
    assert held(folder_split(tmp_path, "eval")) == [(name, i) for i, (name, _) in enumerate(numbers)]


def test_training_evaluates_on_a_validation_split_and_a_finished_model_on_a_test_split(tmp_path: Path) -> None:
    fill(tmp_path, "train/a/1.jpg", "train/b/1.jpg")
    for folder, training, finished in (
        ("test", "test", "test"), ("val", "val", "test"), ("validation", "validation", "test"),
    ):  # fmt: skip
        fill(tmp_path, f"{folder}/a/1.jpg")
        assert folder_split(tmp_path, "eval").title == f"{tmp_path.name}/{training}"
        assert folder_split(tmp_path, "test").title == f"{tmp_path.name}/{finished}"


@pytest.mark.parametrize(
    ("train", "evaluation"),
    [("Train", "Val"), ("TRAIN", "Test"), ("training", "valid"), ("train", "dev"), ("Training", "Validation")],
)
def test_splits_in_any_case_and_spelling(tmp_path: Path, train: str, evaluation: str) -> None:
    fill(tmp_path, f"{train}/a/1.jpg", f"{train}/b/1.jpg", f"{evaluation}/a/2.jpg")
    for fields in ({}, {"train_split": train.lower(), "eval_split": evaluation.upper()}):
        training, evaluated = (folder_split(tmp_path, which, **fields) for which in ("train", "eval"))
        assert training.labels == evaluated.labels == ("a", "b")
        assert held(evaluated) == [(f"{evaluation}/a/2.jpg", 0)]


def test_two_spellings_of_a_split_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "Val/a/1.jpg", "VAL/b/1.jpg")
    with pytest.raises(InputError, match="split 'val': found as VAL and Val; keep one of them"):
        folder_split(tmp_path, "eval")
    assert folder_split(tmp_path, "eval", eval_split="Val").title == f"{tmp_path.name}/Val"


def test_split_folders_of_unknown_names_are_named(tmp_path: Path) -> None:
    fill(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "holdout/a/1.jpg", "holdout/b/1.jpg")
    (note,) = folder_split(tmp_path, "train").notes
    assert note.startswith(f"{tmp_path.name}: split 'holdout' not used; known names are train, training, validation")
    assert folder_split(tmp_path, "eval", eval_split="holdout").notes == ()


def test_files_that_are_no_images_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a/1.jpg", "b/1.avif", "b/2.txt", "b/3.TXT", "b/.DS_Store", "b/4.heic", "b/LICENCE")
    formats = folders.extensions()
    monkeypatch.setattr(folders, "extensions", lambda: formats - {b".heic"})
    split = folder_split(tmp_path, "train", held_out=0.0)
    assert [name for name, _ in held(split)] == ["a/1.jpg", "b/1.avif"]
    (note,) = split.notes
    assert "files that are not read as images: 2 .txt, 1 .heic, 1 without extension; pip install" in note


def test_files_beside_the_class_folders_are_named(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.jpg", "b/1.jpg", "stray.JPG", "cat.png", "classes.txt", ".hidden.png")
    split = folder_split(tmp_path, "train", held_out=0.0)
    assert [name for name, _ in held(split)] == ["a/1.jpg", "b/1.jpg"]
    assert split.notes == (
        f"{tmp_path}: ignored, because they are in no class folder: 2 images (cat.png, stray.JPG)",
        f"{tmp_path}: files that are not read as images: 1 .txt",
    )


def test_folders_that_archives_and_file_servers_leave_are_no_classes(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.jpg", "a/@eaDir/1.jpg/x", "b/1.jpg", "__MACOSX/a/._1.jpg", "@eaDir/x")
    assert folder_split(tmp_path, "train", held_out=0.0).labels == ("a", "b")


def test_a_training_run_inside_the_data_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.jpg", "b/1.jpg", "runs/folder/run.json", "runs/folder/curves.png")
    with pytest.raises(InputError, match=r"runs/folder: a training run is inside the data folder; move it elsewhere"):
        folder_split(tmp_path, "train")


@pytest.mark.parametrize("name", [".", "./", "../photos", "../photos/", "..//photos", "../link", "../link/."])
def test_every_spelling_of_a_folder_is_the_same_data(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = fill(tmp_path / "photos", *(f"{label}/{i}.jpg" for label in ("cat", "dog") for i in range(9)))
    (tmp_path / "link").symlink_to(root)
    expected = folder_split(root, "train")
    monkeypatch.chdir(root)
    split = open_split(Data(name=name), "train")
    assert held(split) == held(expected)
    assert split.fingerprint() == expected.fingerprint()
    assert Path(split.name(3)).read_text() == held(expected)[3][0]
    monkeypatch.chdir(root / "cat")
    assert held(open_split(Data(name=".."), "train")) == held(expected)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    fill(tmp_path, "train/1.jpg", "bus/1.jpg", "test/1.jpg")
    assert folder_split(tmp_path, "train", held_out=0.0).labels == ("bus", "test", "train")


@pytest.mark.parametrize("below", ["", "train/"])
def test_a_share_of_each_class_is_held_out(tmp_path: Path, below: str) -> None:
    sizes = {"a": 30, "b": 8, "c": 2, "d": 1}
    names = [f"{below}{label}/{i:02}.jpg" for label, size in sizes.items() for i in range(size)]
    fill(tmp_path, *names)

    def draw(**fields: Any) -> tuple[list[str], list[str]]:
        train, evaluation = (folder_split(tmp_path, which, **fields) for which in ("train", "eval"))
        assert evaluation.title == train.title + " (held out)"
        assert train.labels == evaluation.labels == tuple(sizes)
        for name, label in held(train) + held(evaluation):
            assert name.removeprefix(below).split("/")[0] == train.labels[label]
        return [name for name, _ in held(train)], [name for name, _ in held(evaluation)]

    train, evaluation = draw(held_out=0.2)
    assert sorted(train + evaluation) == names
    assert [sum(name.startswith(below + label) for name in evaluation) for label in sizes] == [6, 2, 1, 0]
    assert draw(held_out=0.2) == (train, evaluation)
    assert draw(held_out=0.2, split_seed=1) != (train, evaluation)
    assert [sum(name.startswith(below + label) for name in draw(held_out=0.99)[0]) for label in sizes] == [1, 1, 1, 1]
    fill(tmp_path, f"{below}aa/1.jpg", f"{below}aa/2.jpg")  # another class changes nothing in these
    sizes = {"a": 30, "aa": 2, "b": 8, "c": 2, "d": 1}
    assert [name for name in draw(held_out=0.2)[1] if "aa" not in name] == evaluation


def test_fractions_of_zero_and_one(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.jpg", "a/2.jpg", "b/1.jpg")
    assert len(folder_split(tmp_path, "train", held_out=0.0)) == len(folder_split(tmp_path, "eval", held_out=1.0)) == 3
    with pytest.raises(InputError, match=r"data\.held_out 0 leaves nothing to evaluate on; set another fraction"):
        folder_split(tmp_path, "eval", held_out=0.0)
    with pytest.raises(InputError, match=r"data\.held_out 1 leaves nothing to train on"):
        folder_split(tmp_path, "train", held_out=1.0)


def test_the_order_of_the_file_system_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, *(f"{label}/{i}.jpg" for label in "abc" for i in range(9)))
    expected = [held(folder_split(tmp_path, which)) for which in ("train", "eval")]
    scandir, backwards = os.scandir, []

    @contextmanager
    def reversed_scandir(path: Any) -> Iterator[Any]:
        with scandir(path) as entries:
            backwards.append(sorted(entries, key=lambda entry: entry.name, reverse=True))
            yield backwards[-1]

    monkeypatch.setattr(os, "scandir", reversed_scandir)
    assert [held(folder_split(tmp_path, which)) for which in ("train", "eval")] == expected
    assert len(backwards) >= 8


def test_links_are_followed_except_in_circles(tmp_path: Path) -> None:
    fill(tmp_path / "store", "x.jpg", "y.jpg")
    root = fill(tmp_path / "photos", "a/1.jpg", "b/1.jpg")
    (root / "a/2.jpg").symlink_to(tmp_path / "store/x.jpg")
    (root / "c").symlink_to(tmp_path / "store")
    assert [name for name, _ in held(folder_split(root, "train", held_out=0.0))] == [
        "a/1.jpg", "x.jpg", "b/1.jpg", "x.jpg", "y.jpg",
    ]  # fmt: skip
    (root / "b/up").symlink_to(root)
    with pytest.raises(InputError, match=r"photos/b/up: a link back to a folder that it is in; remove the link"):
        folder_split(root, "train")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    split = folder_split(fill(tmp_path, "a/1.jpg", "b/1.jpg"), "train", held_out=0.0)
    (tmp_path / "b/1.jpg").unlink()
    assert split.examples[0]["image"] == b"a/1.jpg"
    with pytest.raises(InputError, match=r"cannot read image '.*b/1\.jpg': No such file"):
        split.examples[1]


def test_names_of_any_bytes(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.jpg", "b/ü ñ.jpg")
    (tmp_path / "b" / os.fsdecode(b"\xff.jpg")).write_text("bytes")
    split = folder_split(tmp_path, "train", held_out=0.0)
    assert [name for name, _ in held(split)] == ["a/1.jpg", "b/ü ñ.jpg", "bytes"]


def test_a_model_is_evaluated_where_only_the_images_to_evaluate_on_are(tmp_path: Path) -> None:
    fill(tmp_path, "val/a/1.jpg", "val/b/2.jpg")
    split = folder_split(tmp_path, "test")
    assert (split.labels, len(split)) == (("a", "b"), 2)
    with pytest.raises(InputError, match="no split 'train'; found: val"):
        folder_split(tmp_path, "eval")  # of a run, whose classes are those that it is trained on


FAULTY_FOLDERS = [
    ([], {}, "train", "photos: No such file or directory; expected a readable folder of class folders, a table"),
    (["1.jpg"], {}, "train", "photos: no class folders; expected .*photos/CLASS/image files"),
    (["a/1.jpg"], {"held_out": 0.0}, "train", "photos: classes: a; expected two or more, one folder for each class"),
    (["p/a/1.jpg", "p/b/1.jpg", "__MACOSX/p/x"], {"held_out": 0.0}, "train", "classes: p; .*: --data .*photos/p$"),
    (["images/1.jpg", "metadata.csv"], {}, "train", "classes: images; .* use --data .*photos/metadata.csv"),
    (["a/1.jpg", "b/1.txt"], {}, "train", "photos/b: no images; add files such as .jpg or .png, or remove the folder"),
    (["a/1.jpg", "b/1.jpg"], {"train_split": "train"}, "train", "photos: no split 'train'; found: no splits"),
    (
        ["train/a/1.jpg", "val/a/1.jpg"],
        {"eval_split": "tset"},
        "eval",
        "photos: no split 'tset'; found: train, val$",
    ),
    (["train/a/1.jpg", "val/a/1.jpg"], {"eval_split": "tset"}, "train", "photos: no split 'tset'"),
    (["val/a/1.jpg", "more/b/1.jpg"], {}, "train", "photos: no split 'train'; found: more, val$"),
    (["train/a/1.jpg", "train/b/1.jpg", "val/c/1.jpg"], {}, "eval", "photos/val/c: training has no class of this name"),
]


@pytest.mark.parametrize(("names", "fields", "which", "message"), FAULTY_FOLDERS)
def test_folders_that_are_refused(tmp_path: Path, names: list[str], fields: Any, which: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        folder_split(fill(tmp_path / "photos", *names), which, **fields)
    assert "\n" not in str(caught.value)


def test_a_folder_without_permission_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Any) -> None:
        raise PermissionError(13, "Permission denied", path)

    fill(tmp_path, "a/1.jpg", "b/1.jpg")
    monkeypatch.setattr(os, "scandir", refuse)  # file modes do not bind root
    with pytest.raises(InputError, match=f"{tmp_path}: Permission denied; expected a readable folder"):
        folder_split(tmp_path, "train")


@pytest.mark.parametrize("address", ["gs://bucket/photos", "s3://bucket/photos", "memory://photos/"])
@pytest.mark.parametrize("field", ["name", "directory"])
def test_data_in_a_store_are_refused(address: str, field: str) -> None:
    with pytest.raises(InputError, match=rf"data\.{field}: {address} is in a store, .*copy them to a folder") as caught:
        open_split(Data(**{"name": "cifar10", field: address}), "train")
    assert "\n" not in str(caught.value)
