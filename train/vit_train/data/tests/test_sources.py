"""Prepared sets return what tensorflow-datasets reads; splits are read in other processes and threads."""

import json
import pickle
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from vit_core.errors import InputError
from vit_train.config import Data
from vit_train.data.sources import open_split
from vit_train.data.sources.prepared import PREPARED
from vit_train.data.tests.text_folders import fill, folder_split


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
