"""Class folders, tables, parquet files, saved `datasets` folders and shards: the same images give the same batches.

The files are written by pandas, Hugging Face `datasets` and webdataset, and read by them for comparison.
"""

import io
import os
import pickle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pyarrow.parquet
import pytest
import webdataset
from PIL import Image
from sklearn.model_selection import train_test_split

from vit_core import InputError, ViTConfig
from vit_train.config import Data, Schedule, TrainConfig
from vit_train.data.batches import Batches, EvaluationBatches
from vit_train.data.sources import Split, open_split, unpacked

CLASSES = ("cat", "dog", "eel")
CONFIG = TrainConfig(
    model=ViTConfig(image_size=8, patch_size=4, width=8, depth=1, heads=1, mlp_dim=8, num_classes=3),
    schedule=Schedule(warmup_steps=1),
    steps=20,
    batch_size=8,
)
Rows = list[tuple[str, str, str]]
"""(path below "photos", label, split)"""


def png(rng: np.random.Generator) -> bytes:
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (9, 11, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same images as photos/CLASS, labels.csv, labels.tsv, rows.parquet, saved/, shards/*.tar,
    json.tar and numbers.tar, each in another order."""
    root, rng = tmp_path_factory.mktemp("sources"), np.random.default_rng(0)
    paths = [f"photos/{label}/{i:02}.png" for label in CLASSES for i in range(11)]
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(png(rng))

    def shuffled() -> list[tuple[str, str]]:
        return [(paths[i], paths[i].split("/")[1]) for i in rng.permutation(len(paths))]

    pandas.DataFrame(shuffled(), columns=["path", "label"]).to_csv(root / "labels.csv", index=False)
    pandas.DataFrame(shuffled(), columns=["File_Name", "Class"]).to_csv(root / "labels.tsv", index=False, sep="\t")
    hugging_face(root, shuffled()).to_parquet(root / "rows.parquet", batch_size=5)
    hugging_face(root, shuffled()).save_to_disk(root / "saved", num_shards=3)
    (root / "shards").mkdir()
    with webdataset.ShardWriter(str(root / "shards/%03d.tar"), maxcount=10, verbose=0) as shards:
        for path, label in shuffled():
            shards.write({"__key__": path.removesuffix(".png"), "png": (root / path).read_bytes(), "cls": label})
    with webdataset.TarWriter(str(root / "json.tar")) as tar:
        for path, label in shuffled():
            content = {"__key__": path.removesuffix(".png"), "png": (root / path).read_bytes()}
            tar.write({**content, "json": {"label": label, "source": path}})
    with webdataset.TarWriter(str(root / "numbers.tar")) as tar:
        for path, label in shuffled():
            content = {"__key__": path.removesuffix(".png"), "png": (root / path).read_bytes()}
            tar.write({**content, "cls": CLASSES.index(label)})
    return root


def hugging_face(root: Path, rows: list[tuple[str, str]]) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    columns = {
        "image": [{"bytes": (root / path).read_bytes(), "path": path} for path, _ in rows],
        "label": [label for _, label in rows],
    }
    return datasets.Dataset.from_dict(columns, features=features)


KINDS = [
    "photos/",
    "labels.csv",
    "labels.tsv",
    "rows.parquet",
    "saved",
    "shards",
    "shards/*.tar",
    "json.tar",
    "numbers.tar",
]


def opened(root: Path, name: str, **fields: Any) -> tuple[Split, Split]:
    data = Data(name=f"{root}/{name}", **fields)
    return open_split(data, "train"), open_split(data, "eval")


@pytest.mark.parametrize("name", KINDS)
def test_the_same_images_give_the_same_batches(sources: Path, name: str) -> None:
    expected, found = opened(sources, "photos/", held_out=0.2), opened(sources, name, held_out=0.2)
    for ours, theirs in zip(found, expected, strict=True):
        assert [dict(example) for example in ours.examples] == [dict(example) for example in theirs.examples]
        assert ours.labels == CLASSES
        copy = pickle.loads(pickle.dumps(ours))
        assert copy.examples[3] == ours.examples[3]
        assert copy.fingerprint() == ours.fingerprint()
    batches, reference = Batches(found[0], CONFIG), Batches(expected[0], CONFIG)
    assert [batches[i].fingerprint() for i in (0, 7)] == [reference[i].fingerprint() for i in (0, 7)]
    evaluated, known = (EvaluationBatches(split, CONFIG.preprocessing, 4)[0] for split in (found[1], expected[1]))
    np.testing.assert_array_equal(evaluated.images_BHWC, known.images_BHWC)
    np.testing.assert_array_equal(evaluated.labels_B, known.labels_B)


# Tables


def test_tables_are_read_as_pandas_reads_them(tmp_path: Path) -> None:
    """Quoted names, another delimiter, a byte-order mark, other columns, labels that are numbers."""
    rng = np.random.default_rng(1)
    names = ['a, "b".png', "ü ñ.png", "sub folder/x.png", "y;z.png"] + [f"{i}.png" for i in range(20)]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(rng))
    frame = pandas.DataFrame({"id": range(24), "Photo": names, "kind": rng.integers(0, 12, 24), "note": "x"})
    for suffix, options in (("csv", {}), ("csv", {"sep": ";", "encoding": "utf-8-sig"}), ("tsv", {"sep": "\t"})):
        frame.to_csv(tmp_path / f"t.{suffix}", index=False, **options)
        train, _ = opened(tmp_path, f"t.{suffix}", image_column="Photo", label_column="kind", held_out=0.0001)
        assert train.labels == tuple(sorted(frame["kind"].astype(str).unique()))
        whole = open_split(
            Data(name=f"{tmp_path}/t.{suffix}", image_column="Photo", label_column="kind", held_out=0.0), "train"
        )
        found = {(example["image"], whole.labels[example["label"]]) for example in whole.examples}
        assert found == {((tmp_path / row.Photo).read_bytes(), str(row.kind)) for row in frame.itertuples()}


def test_a_column_of_splits(sources: Path, tmp_path: Path) -> None:
    frame = pandas.read_csv(sources / "labels.csv")
    frame["path"] = [str(sources / path) for path in frame["path"]]
    train, rest = train_test_split(frame, test_size=0.4, stratify=frame["label"], random_state=0)
    val, test = rest.iloc[:6], rest.iloc[6:]
    table = pandas.concat([train.assign(Split="Train"), val.assign(Split="dev"), test.assign(Split="TEST")])
    table.to_csv(tmp_path / "t.csv", index=False)
    data = Data(name=str(tmp_path / "t.csv"))
    for which, part in (("train", train), ("eval", val), ("test", test)):
        split = open_split(data, which)
        assert [split.name(i) for i in range(len(split))] == list(part.sort_values(["label", "path"])["path"])
        assert [split.labels[example["label"]] for example in split.examples] == sorted(part["label"])
    assert open_split(data.replace(eval_split="test"), "eval").title == "t/TEST"


@pytest.mark.parametrize("seed", range(5))
def test_no_group_is_on_both_sides(sources: Path, tmp_path: Path, seed: int) -> None:
    frame = pandas.read_csv(sources / "labels.csv")
    frame["path"] = [str(sources / path) for path in frame["path"]]
    frame["patient"] = np.random.default_rng(seed).choice(["p", "q", "r", "s", "t", "u"], len(frame))
    frame.to_csv(tmp_path / "t.csv", index=False)
    patient = dict(zip(frame["path"], frame["patient"], strict=True))
    drawn = []
    for split_seed in (0, 1, 2):
        splits = opened(tmp_path, "t.csv", group="patient", held_out=0.3, split_seed=split_seed)
        train, held = ([split.name(i) for i in range(len(split))] for split in splits)
        assert sorted(train + held) == sorted(frame["path"])
        assert not {patient[path] for path in train} & {patient[path] for path in held}
        # The nearest number that whole groups allow: half a group away from the fraction at most.
        assert abs(len(held) - 0.3 * len(frame)) <= frame["patient"].value_counts().max() / 2
        drawn.append(held)
    assert len({tuple(held) for held in drawn}) > 1
    again = opened(tmp_path, "t.csv", group="patient", held_out=0.3, split_seed=2)[1]
    assert [again.name(i) for i in range(len(again))] == drawn[-1]


def test_a_single_group_cannot_be_held_out(sources: Path, tmp_path: Path) -> None:
    frame = pandas.read_csv(sources / "labels.csv")
    frame["path"] = [str(sources / path) for path in frame["path"]]
    frame.assign(patient="p").to_csv(tmp_path / "t.csv", index=False)
    data = Data(name=str(tmp_path / "t.csv"), group="patient")
    for which in ("train", "eval"):
        with pytest.raises(InputError, match=r"t: data\.group 'patient' is 'p' for every image, and whole groups are"):
            open_split(data, which)
    assert len(open_split(data.replace(held_out=1), "eval")) == len(frame)


def test_groups_in_every_kind_of_source_are_drawn_alike(tmp_path: Path) -> None:
    """A column of a table or of a parquet file, a field of the JSON in shards."""
    rng = np.random.default_rng(0)
    rows = [(f"{i:02}.png", "ab"[i % 2], f"site {rng.integers(6)}", png(rng)) for i in range(40)]
    frame = pandas.DataFrame(rows, columns=["path", "label", "site", "bytes"])
    for name, content in zip(frame["path"], frame["bytes"], strict=True):
        (tmp_path / name).write_bytes(content)
    frame[["path", "label", "site"]].to_csv(tmp_path / "t.csv", index=False)
    images = [{"bytes": content, "path": name} for name, content in zip(frame["path"], frame["bytes"], strict=True)]
    table = pyarrow.table({"image": images, "label": list(frame["label"]), "site": list(frame["site"])})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    with webdataset.TarWriter(str(tmp_path / "t.tar")) as tar:
        for name, label, site, content in rows:
            tar.write({"__key__": name.removesuffix(".png"), "png": content, "json": {"label": label, "site": site}})
    drawn = [opened(tmp_path, f"t.{kind}", group="site", held_out=0.3)[1] for kind in ("csv", "parquet", "tar")]
    site_of = dict(zip(frame["bytes"], frame["site"], strict=True))
    held = {site_of[example["image"]] for example in drawn[0].examples}
    assert len(drawn[0]) == frame["site"].isin(held).sum(), "whole groups"
    assert list(drawn[0].examples) == list(drawn[1].examples) == list(drawn[2].examples)
    frame.assign(split=np.where(np.arange(40) < 30, "train", "val"))[["path", "label", "site", "split"]].to_csv(
        tmp_path / "s.csv", index=False
    )
    given = opened(tmp_path, "s.csv", group="site")[1]
    assert given.groups is not None
    assert [given.groups.names[i] for i in given.groups.group_N] == [site_of[e["image"]] for e in given.examples]
    both = set(frame["site"][:30]) & set(frame["site"][30:])
    assert (
        f"s: {len(both)} groups (site) have images in both train and val: {', '.join(sorted(both))}" in given.notes[0]
    )
    (tmp_path / "folders/a").mkdir(parents=True)
    with pytest.raises(InputError, match=r"data\.group: folders have no column 'site'; expected a table"):
        opened(tmp_path, "folders/", group="site")


FAULTY_TABLES = [
    ("", {}, "t.csv: no rows; expected a line of names, such as path,label, and a line for each image"),
    ("path,label\n", {}, "t.csv: no rows"),
    ("scan,label\na.png,cat\n", {}, "no column path or image or file; found: scan, label; set --data.image-column"),
    ("a.png,cat\nb.png,dog\n", {}, "t.csv: its first line is an image; expected the names of the columns: path,label"),
    ("path,kind\na.png,cat\n", {}, "no column label or labels or class; found: path, kind; set --data.label-column"),
    ("path,label\na.png,cat\n", {"label_column": "kind"}, "data.label_column: no column 'kind'; found: path, label"),
    ("path,label\na.png,cat\nb.png\n", {}, "t.csv, line 3: cells: 1; expected 2, as in the first line"),
    ("path,label\na.png,cat\npath,label\nb.png,dog\n", {}, "t.csv, line 3: has the names of the columns again"),
    ("path,label\na.png,cat\nb.png, \n", {}, "t.csv, line 3: nothing in column label; .*--data.label-separator"),
    ("path,label\na.png,cat\n./a.png,dog\n", {}, "t.csv, line 3: a.png is in line 2 too, with other values"),
    ("path,label\nhttps://x.org/c.png,cat\n", {}, "t.csv, line 2: https://x.org/c.png is an address; download"),
    ("path,label\nc\0.png,cat\n", {}, r"t.csv, line 2: the path 'c\\x00.png' contains a zero byte"),
    ("path,label\nc.png,cat\n", {}, "t.csv, line 2: no file .*c.png; paths are relative to the table's folder"),
    ("path,path,label\na.png,a.png,cat\n", {}, "two columns are named 'path'; rename one"),
    ('path,label\n"a.png,cat\n', {}, "t.csv: cannot be read as a table"),
    ("path,label\na.png,\udcff\n", {}, "t.csv: cannot be read as a table .*; expected UTF-8 text: save it again"),
    ("path,label\na.png,cat\nb.png,cat\n", {"held_out": 0.0}, "t: classes: cat; expected two or more"),
    ("path,label,split\na.png,cat,train\nb.png,dog,train\nc.png,eel,val\n", {}, "t/val: training has no .*: 'eel'"),
    ("path,label,split\na.png,cat,x\nb.png,dog,x\n", {}, "no split 'train'; found: x"),
    ("path,label\na.png,cat\nb.png,dog\n", {"train_split": "train"}, "t: no split 'train'; found: no splits"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "fields", "message"), FAULTY_TABLES)
def test_tables_that_are_refused(tmp_path: Path, text: str, fields: Any, message: str) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(png(np.random.default_rng(0)))
    (tmp_path / "t.csv").write_bytes(text.encode(errors="surrogateescape"))
    data = Data(name=str(tmp_path / "t.csv"), **fields)
    with pytest.raises(InputError, match=message) as caught:
        [open_split(data, which) for which in ("train", "eval")]
    assert "\n" not in str(caught.value)


# Columns


def test_a_saved_dataset_equals_what_datasets_loads(sources: Path, tmp_path: Path) -> None:
    whole = hugging_face(sources, [(f"photos/{label}/{i:02}.png", label) for label in CLASSES for i in range(11)])
    parts = whole.train_test_split(0.3, seed=0)
    datasets.DatasetDict({"train": parts["train"], "validation": parts["test"]}).save_to_disk(tmp_path / "saved")
    loaded = datasets.load_from_disk(tmp_path / "saved").cast_column("image", datasets.Image(decode=False))
    for which, name in (("train", "train"), ("eval", "validation")):
        split = open_split(Data(name=str(tmp_path / "saved")), which)  # type: ignore[arg-type]
        expected = [(row["label"], row["image"]["path"], row["image"]["bytes"]) for row in loaded[name]]
        assert [(e["label"], e["image"]) for e in split.examples] == [(a, c) for a, _, c in sorted(expected)]
        assert (split.title, split.labels) == (f"saved/{name}", CLASSES)


def test_parquet_files_of_splits_without_paths(sources: Path, tmp_path: Path) -> None:
    """As on the Hub: data/train-00000-of-00002.parquet. Without paths the order is that of the rows."""
    rng, rows = np.random.default_rng(0), {}
    (tmp_path / "data").mkdir()
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        rows[name] = [(int(label), png(rng)) for label in rng.integers(0, 3, 10)]
        labels, images = zip(*rows[name], strict=True)
        table = pyarrow.table({"fine_label": labels, "img": images})
        pyarrow.parquet.write_table(table, tmp_path / "data" / f"{name}.parquet", row_group_size=4)
    train, test = opened(tmp_path, "")
    first, second, last = rows.values()
    assert [(e["label"], e["image"]) for e in train.examples] == sorted(first + second, key=lambda row: row[0])
    assert [(e["label"], e["image"]) for e in test.examples] == sorted(last, key=lambda row: row[0])
    assert train.labels == ("0", "1", "2")


def test_parquet_is_unpacked_once_and_said(
    sources: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", "vit")
    (tmp_path / "rows.parquet").write_bytes((sources / "rows.parquet").read_bytes())
    data = Data(name=str(tmp_path / "rows.parquet"), directory=str(tmp_path / "cache"), held_out=0.0)
    split = open_split(data, "train")
    assert not (tmp_path / "cache").exists(), "what only looks at labels unpacks nothing"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            split.make_ready()
    assert list((tmp_path / "cache/unpacked").glob("*.array_record")) == []
    split.make_ready()
    assert f"unpacking 33 images once into {tmp_path}/cache/unpacked" in caplog.text
    (file,) = (tmp_path / "cache/unpacked").iterdir()
    written = file.stat().st_mtime_ns
    expected = [example["image"] for example in split.examples]
    (tmp_path / "moved").mkdir()
    (tmp_path / "rows.parquet").rename(tmp_path / "moved/rows.parquet")
    moved = open_split(data.replace(name=str(tmp_path / "moved/rows.parquet")), "train")
    assert [example["image"] for example in moved.examples] == expected
    assert [path.stat().st_mtime_ns for path in (tmp_path / "cache/unpacked").iterdir()] == [written]
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(unpacked.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"0\.0 GiB free, but the images of .* set --data.directory to another disk"):
        open_split(
            data.replace(name=str(sources / "rows.parquet"), directory=str(tmp_path / "full")), "train"
        ).make_ready()


def test_columns_that_are_refused(sources: Path, tmp_path: Path) -> None:
    def refused(table: Any, message: str, **fields: Any) -> None:
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.parquet"
        pyarrow.parquet.write_table(pyarrow.table(table), file)
        with pytest.raises(InputError, match=message):
            open_split(Data(name=str(file), **fields), "train")

    refused({"label": [1]}, "no column image or img or picture; found: label; set --data.image-column")
    refused({"image": [b"x", b"y"], "label": [1, None]}, r"row 1: label is None; expected all labels to be text")
    refused({"image": [b"x"], "label": [[1, 2]]}, r"row 0: label is \[1, 2\]")
    (tmp_path / "cut.parquet").write_bytes((sources / "rows.parquet").read_bytes()[:-9])
    with pytest.raises(InputError, match=r"cut\.parquet: cannot be read \(.*\); expected a complete file"):
        open_split(Data(name=str(tmp_path / "cut.parquet")), "train")


# Shards


def test_shards_equal_what_webdataset_reads(sources: Path) -> None:
    urls = sorted(map(str, (sources / "shards").glob("*.tar")))
    read = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)
    expected = sorted((sample["cls"].decode(), sample["__key__"], sample["png"]) for sample in read)
    split = open_split(Data(name=f"{sources}/shards", held_out=0.0), "train")
    assert [(split.labels[e["label"]], e["image"]) for e in split.examples] == [(a, c) for a, _, c in expected]
    assert split.name(0).endswith(f": {expected[0][1]}.png")


def test_shards_of_splits_with_numbers_as_labels(tmp_path: Path) -> None:
    rng, rows = np.random.default_rng(0), {}
    for name, count in (("pets-train-0", 12), ("pets-train-1", 13), ("pets-val-0", 4)):
        rows[name] = [(i % 12, f"{name}{i:03}", png(rng)) for i in range(count)]
        with webdataset.TarWriter(str(tmp_path / f"{name}.tar")) as tar:
            for label, key, image in rows[name]:
                tar.write({"__key__": key, "png": image, "cls": label, "json": {"camera": key[-1]}})
    train, val = opened(tmp_path, "")
    assert train.labels == tuple(map(str, range(12))), "in the order of the numbers"
    expected = sorted(rows["pets-train-0"] + rows["pets-train-1"])
    assert [(e["label"], e["image"]) for e in train.examples] == [(a, c) for a, _, c in expected]
    assert (len(val), val.title) == (4, f"{tmp_path.name}/val")


def test_shards_that_are_refused(sources: Path, tmp_path: Path) -> None:
    def refused(message: str, *samples: dict[str, Any], **fields: Any) -> None:
        with webdataset.TarWriter(str(tmp_path / "t.tar")) as tar:
            for sample in samples:
                tar.write(sample)
        with pytest.raises(InputError, match=message) as caught:
            open_split(Data(name=str(tmp_path / "t.tar"), **fields), "train")
        assert "\n" not in str(caught.value)

    refused("t.tar: k: no label; found png; expected .cls, or a field in .json", {"__key__": "k", "png": b"x"})
    refused("k: images jpg, png; choose one with --data.image-column jpg", {"__key__": "k", "png": b"", "jpg": b""})
    refused("t.tar: no images; expected members such as KEY.jpg with KEY.cls", {"__key__": "k", "cls": 1})
    refused(r"label \[1, 2\]; expected a whole number or text", {"__key__": "k", "png": b"", "json": {"label": [1, 2]}})
    refused("k.json: cannot be read", {"__key__": "k", "png": b"", "json": b"{"})
    content = (sources / "json.tar").read_bytes()
    for length in (len(content) // 1024 * 512, len(content) // 2 + 100, len(content) // 2 - 300, 700, 100, 0):
        (tmp_path / "cut.tar").write_bytes(content[:length])
        with pytest.raises(InputError, match=r"cut\.tar: cannot be read \(.*\); expected a complete, uncompressed tar"):
            open_split(Data(name=str(tmp_path / "cut.tar")), "train")
    with pytest.raises(InputError, match=r"none\*\.tar: no file matches"):
        open_split(Data(name=str(tmp_path / "none*.tar")), "train")


def test_an_archive_beside_class_folders_is_no_data_set(sources: Path, tmp_path: Path) -> None:
    for path in ("a/1.png", "b/1.png"):
        (tmp_path / path).parent.mkdir()
        (tmp_path / path).write_bytes(png(np.random.default_rng(0)))
    (tmp_path / "photos.tar").write_bytes((sources / "json.tar").read_bytes())
    assert open_split(Data(name=f"{tmp_path}/", held_out=0.0), "train").labels == ("a", "b")
