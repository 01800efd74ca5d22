"""Every kind of source returns the bytes of the files with their labels, whatever the order of the file system."""

import json
import os
import pickle
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from vit_core.errors import InputError
from vit_train.config import Data
from vit_train.data.sources import Split, Which, folders, open_split
from vit_train.data.sources.prepared import PREPARED


def fill(folder: Path, *names: str) -> Path:
    """A folder of files that contain their own names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def folder_split(folder: Path, which: Which, **fields: Any) -> Split:
    return open_split(Data(name=str(folder), **fields), which)


def held(split: Split) -> list[tuple[str, int]]:
    return [(example["image"].decode(), example["label"]) for example in split.examples]


class Pets(tfds.core.GeneratorBasedBuilder):
    """A set with other names of its features, one feature more than needed, and several shards."""

    VERSION = tfds.core.Version("1.10.0")
    SPLITS = ("train", "validation", "extra")

    def _info(self) -> Any:
        features = {
            "portrait": tfds.features.Image(shape=(None, None, 3)),
            "kind": tfds.features.ClassLabel(names=["cat", "dog"]),
            "age": np.int64,
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> Any:
        return {split: self._generate_examples(split) for split in self.SPLITS}

    def _generate_examples(self, split: str) -> Iterator[Any]:
        for i in range(20):
            yield i, {"portrait": Image.new("RGB", (4, 4), (i, len(split), 0)), "kind": i % 2, "age": i}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pets in version 1.10.0; folders of version 1.9.0, without records, and of version 2.0.0, which is incomplete."""
    root = tmp_path_factory.mktemp("tfds")
    config = tfds.download.DownloadConfig(num_shards=3)
    Pets(data_dir=str(root), file_format="array_record").download_and_prepare(download_config=config)
    older = root / "pets/1.9.0"
    older.mkdir()
    for name in PREPARED:
        (older / name).write_text((root / "pets/1.10.0" / name).read_text().replace("1.10.0", "1.9.0"))
    (root / "pets/2.0.0").mkdir()
    (root / "pets/2.0.0/features.json").write_text((older / "features.json").read_text())
    (root / "downloads").mkdir(exist_ok=True)
    return root


def by_tfds(directory: Path, split: str) -> list[tuple[bytes, int]]:
    builder = tfds.builder_from_directory(str(directory / "pets/1.10.0"))
    source = builder.as_data_source(split, decoders={"portrait": tfds.decode.SkipDecoding()})
    return [(example["portrait"], example["kind"]) for example in source]


# Class folders


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
    assert "ignored, as no images that are read: 2 .txt, 1 .heic, 1 without extension; pip install" in note


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
    with pytest.raises(InputError, match=r"photos/b/up/b: a link back to a folder that it is in; remove it"):
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


FAULTY_FOLDERS = [
    ([], {}, "train", "photos: No such file or directory; expected a readable folder of class folders, or a prepared"),
    (["1.jpg"], {}, "train", "photos: no class folders; expected .*photos/CLASS/image files"),
    (["a/1.jpg"], {"held_out": 0.0}, "train", "photos: classes: a; expected two or more"),
    (["a/1.jpg", "b/1.txt"], {}, "train", "photos/b: no images; expected files as .jpg or .png, or remove the folder"),
    (["a/1.jpg", "b/1.jpg"], {"train_split": "train"}, "train", "photos: no split 'train'; found: no splits"),
    (
        ["train/a/1.jpg", "val/a/1.jpg"],
        {"eval_split": "tset"},
        "eval",
        "photos: no split 'tset'; found: train, val$",
    ),
    (["train/a/1.jpg", "val/a/1.jpg"], {"eval_split": "tset"}, "train", "photos: no split 'tset'"),
    (["val/a/1.jpg", "more/b/1.jpg"], {}, "train", "photos: no split 'train'; found: more, val$"),
    (["train/a/1.jpg", "train/b/1.jpg", "val/c/1.jpg"], {}, "eval", "photos/val/c: no class of that name in training"),
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


# Prepared sets


@pytest.mark.parametrize("split", ["train", "train[:25%]", "train[13:]+validation[:-3]", "extra[6:8]", None])
def test_prepared_sets_equal_what_tfds_reads(directory: Path, split: str | None) -> None:
    data = Data(name="pets", directory=str(directory), train_split=split, eval_split=split)
    for which, default in (("train", "train"), ("eval", "validation")):
        opened = open_split(data, which)
        expected = by_tfds(directory, split or default)
        assert [(example["image"], example["label"]) for example in opened.examples] == expected
        assert (len(opened), opened.labels) == (len(expected), ("cat", "dog"))
        assert (opened.title, opened.name(3)) == (f"pets {split or default}", f"pets {split or default}[3]")
        assert opened.examples[-1] == opened.examples[len(opened) - 1]
        with pytest.raises(IndexError):
            opened.examples[len(opened)]


@pytest.mark.parametrize("name", ["pets", "pets:1.10.0", "./pets", "./pets/1.10.0"])
def test_a_set_by_name_version_or_folder(directory: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(directory)
    opened = open_split(Data(name=name, directory=None if "/" in name else "."), "train")
    assert opened.examples[0]["image"] == by_tfds(directory, "train")[0][0]


def test_nothing_is_printed_and_tensorflow_is_not_imported(directory: Path, capfd: pytest.CaptureFixture[str]) -> None:
    list(open_split(Data(name="pets", directory=str(directory)), "train").examples)
    open_split(Data(name="digits", directory=str(directory / "digits")), "train")
    assert capfd.readouterr() == ("", "")
    assert "tensorflow" not in sys.modules


def test_splits_are_read_in_other_processes_and_threads(directory: Path, tmp_path: Path) -> None:
    fill(tmp_path, *(f"{label}/{i}.jpg" for label in "ab" for i in range(50)))
    for split in (open_split(Data(name="pets", directory=str(directory)), "train"), folder_split(tmp_path, "train")):
        expected = list(split.examples)
        copy = pickle.loads(pickle.dumps(split))
        assert list(copy.examples) == expected
        assert (copy.labels, copy.title, copy.name(1)) == (split.labels, split.title, split.name(1))
        order = np.random.default_rng(0).integers(len(split), size=2000)
        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(copy.examples.__getitem__, order)) == [expected[i] for i in order]


FAULTY_NAMES = [
    (
        "pest",
        {},
        "unknown data set 'pest'; did you mean 'pets'\\?; prepared in {}: pets:1.9.0, pets:1.10.0; set --data",
    ),
    ("pets:1.10.1", {}, "unknown data set 'pets:1.10.1'; did you mean 'pets:1.10.0'\\?"),
    ("pets:2.0.0", {}, "unknown data set 'pets:2.0.0'"),
    ("", {}, "unknown data set ''; known: pets; prepared in"),
    (
        "pets",
        {"directory": "/nowhere"},
        "data set 'pets': none is prepared in /nowhere; set --data.directory, or",
    ),
    ("pets", {"train_split": "trian"}, "pets: no split 'trian'; found: train, validation, extra$"),
    ("pets", {"train_split": "train[:9"}, "pets: no split 'train\\[:9'; found: train, .*slices of them, as 'train"),
    ("pets", {"train_split": "train[99:]"}, "incompatible with 20 examples"),
    ("pets", {"train_split": "train[5:5]"}, "pets train\\[5:5\\]: has no examples; expected another split or slice"),
    ("pets:1.9.0", {}, "1.9.0/pets-train.*00000-of-00003: missing; expected every file of pets train; copy the set"),
]


@pytest.mark.parametrize(("name", "fields", "message"), FAULTY_NAMES)
def test_names_that_are_refused(directory: Path, name: str, fields: Any, message: str) -> None:
    with pytest.raises(InputError, match=message.format(directory)) as caught:
        open_split(Data(**{"name": name, "directory": str(directory), **fields}), "train")
    assert "\n" not in str(caught.value)


def altered(directory: Path, to: Path, file: str, old: str, new: str) -> Path:
    """A copy of the set with another text in one of its files."""
    to.mkdir()
    for path in (directory / "pets/1.10.0").iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    text = (to / file).read_text()
    assert old in text
    (to / file).write_text(text.replace(old, new))
    return to


FAULTY_SETS = [
    (
        "dataset_info.json",
        "array_record",
        "tfrecord",
        r"cannot be opened \(.*tfrecord.*expected a complete set.*array_record",
    ),
    ("dataset_info.json", "{", "", r"cannot be opened \("),
    (
        "dataset_info.json",
        '"validation"',
        '"later"',
        "pets: no split validation, val, valid, dev, test, testing to evaluate on; found: train",
    ),
    (
        "features.json",
        "image_feature.Image",
        "text_feature.Text",
        "pets: 0 features of kind Image; expected one; found ",
    ),
    ("kind.labels.txt", "dog\n", "", "pets validation: classes: cat; expected two or more"),
]


@pytest.mark.parametrize(("file", "old", "new", "message"), FAULTY_SETS)
def test_sets_that_are_refused(directory: Path, tmp_path: Path, file: str, old: str, new: str, message: str) -> None:
    folder = altered(directory, tmp_path / "1.0.0", file, old, new)
    with pytest.raises(InputError, match=message) as caught:
        folder_split(folder, "eval")
    assert "\n" not in str(caught.value)


def test_a_set_with_two_images_per_example_is_refused(directory: Path, tmp_path: Path) -> None:
    folder = altered(directory, tmp_path / "1.0.0", "features.json", "}", "}")
    features = json.loads((folder / "features.json").read_text())
    inside = features["featuresDict"]["features"]
    inside["second"] = inside["portrait"]
    (folder / "features.json").write_text(json.dumps(features))
    with pytest.raises(InputError, match=r"2 features of kind Image; expected one; found .*kind \(ClassLabel\)"):
        folder_split(folder, "train")


def test_a_damaged_record_is_an_error_when_it_is_read(directory: Path, tmp_path: Path) -> None:
    folder = altered(directory, tmp_path / "1.0.0", "kind.labels.txt", "cat", "cat")
    shard = folder / "pets-train.array_record-00001-of-00003"
    shard.write_bytes(shard.read_bytes()[:100])
    split = folder_split(folder, "train")
    assert split.examples[0]["label"] in (0, 1)
    with pytest.raises(InputError, match=r"cannot read record 1 of .*00001-of-00003: ") as caught:
        split.examples[8]
    assert "\n" not in str(caught.value)
