"""What `vit prepare` packs, from every kind of source, and what is known of it without reading a record."""

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from vit_core.errors import InputError
from vit_train.config import Data
from vit_train.data import prepare as module
from vit_train.data.classes import Occurrences
from vit_train.data.sources import open_split
from vit_train.data.sources.prepared import Records
from vit_train.data.tests.test_prepare import by_tfds, fill, image, packed


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RECORDS", 8)


@pytest.mark.parametrize("name", ["train", "test", "train[3:20]", "train[90%:]+test"])
def test_labels_are_known_without_reading_records(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For class weights, balanced sampling and missing classes; also of slices, and where images were skipped."""
    files = {f"{label}/{i:02}.png": image(i + 15 * (label == "b")) for label in "ab" for i in range(15)}
    photos = fill(tmp_path / "photos", files | {"a/07.png": b"", "b/bad.png": b""})
    result = packed(photos, tmp_path / "out", held_out=0.2)
    split = open_split(Data(name="photos", directory=str(tmp_path / "out"), train_split=name), "train")
    expected = Occurrences.of(replace(split, examples=list(split.examples)))  # read from the records
    monkeypatch.setattr(Records, "__getitem__", None)
    found = Occurrences.of(split)
    np.testing.assert_array_equal(found.examples_P, expected.examples_P)
    np.testing.assert_array_equal(found.ends_G, expected.ends_G)
    assert found.counts_C.sum() == len(split) > 2
    (result.folder / "labels.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"labels\.npz: damaged .* remove it, so that the records are read instead"):
        Occurrences.of(open_split(Data(name="photos", directory=str(tmp_path / "out"), train_split=name), "train"))


@pytest.mark.parametrize("kind", ["labels.csv", "photos.parquet", "shards/*.tar"])
def test_every_kind_of_source(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same images and splits from each of them as from class folders."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # parquet is unpacked into a cache
    rows = [(split, label, i) for split, count in (("train", 9), ("test", 4)) for label in "ab" for i in range(count)]
    files = {f"{s}/{c}/{i}.png": image(i + 20 * (c == "b") + 50 * (s == "test")) for s, c, i in rows}
    folder = fill(tmp_path / "photos", files)
    if kind == "labels.csv":
        lines = ["file,animal,split", *(f"{name},{name.split('/')[1]},{name.split('/')[0]}" for name in files)]
        fill(folder, {kind: "\n".join(lines).encode()})
    elif kind == "photos.parquet":
        split, animal = zip(*(name.split("/")[:2] for name in files), strict=True)
        images = [{"bytes": content, "path": name} for name, content in files.items()]
        parquet.write_table(pyarrow.table({"image": images, "animal": animal, "split": split}), folder / kind)
    else:
        (folder / "shards").mkdir()
        for split in ("train", "test"):
            with tarfile.open(folder / f"shards/{split}-0.tar", "w") as archive:
                for name, content in files.items():
                    of, label, file = name.split("/")
                    members = {f"{label}{file}": content, f"{label}{file[0]}.cls": label.encode()}
                    for member, written in members.items() if of == split else ():
                        entry = tarfile.TarInfo(member)
                        entry.size = len(written)
                        archive.addfile(entry, io.BytesIO(written))
    columns = {} if "tar" in kind else {"label_column": "animal"}
    found = packed(folder / kind, tmp_path / "out", **columns)
    assert found.folder.parent.name == {"labels.csv": "labels", "photos.parquet": "photos"}.get(kind, "shards")
    assert packed(folder / kind, tmp_path / "out", **columns) == found, "the set is used again"
    expected = packed(fill(tmp_path / "anew", files), tmp_path / "expected")
    assert found.counts == expected.counts == {"train": 18, "test": 8}
    for split in found.counts:
        assert sorted(by_tfds(found.folder, split)) == sorted(by_tfds(expected.folder, split))
