"""Tables as other programs and systems write them: Windows' paths, JSON lines, Hugging Face's metadata files."""

import json
from pathlib import Path

import datasets
import numpy as np
import pandas
import pytest

from vit_core import InputError
from vit_train.config import Data
from vit_train.data.sources import Split, Which, open_split
from vit_train.data.tests.test_kinds_of_sources import png
from vit_train.data.tests.text_folders import fill

ROWS = [(f"{label}{i}.png", label) for label in ("cat", "dog") for i in range(4)]


def opened(path: Path, which: Which = "train", **fields: object) -> Split:
    return open_split(Data(name=str(path), **{"held_out": 0.0, **fields}), which)  # type: ignore[arg-type]


def read(split: Split) -> list[tuple[bytes, str]]:
    return [(example["image"], split.labels[example["label"]]) for example in split.examples]


def expected(folder: str = "") -> list[tuple[bytes, str]]:
    return [(f"{folder}{name}".encode(), label) for name, label in ROWS]


def test_paths_that_windows_wrote(tmp_path: Path) -> None:
    fill(tmp_path, *(f"scans/{name}" for name, _ in ROWS))
    lines = "".join(f"scans\\{name},{label}\r\n" for name, label in ROWS)
    (tmp_path / "t.csv").write_text(f"path,label\r\n{lines}")
    assert read(opened(tmp_path / "t.csv")) == expected("scans/")


def test_one_image_beside_the_table_and_others_below(tmp_path: Path) -> None:
    fill(tmp_path, "0.png", "s/1.png")
    (tmp_path / "t.csv").write_text("path,label\n0.png,a\ns\\1.png,b\n")
    assert read(opened(tmp_path / "t.csv")) == [(b"0.png", "a"), (b"s/1.png", "b")]


def test_a_file_with_the_name_of_a_column(tmp_path: Path) -> None:
    fill(tmp_path, "0.png", "1.png", "label")
    (tmp_path / "t.csv").write_text("path,label\n0.png,a\n1.png,b\n")
    assert read(opened(tmp_path / "t.csv")) == [(b"0.png", "a"), (b"1.png", "b")]


def test_names_without_extensions(tmp_path: Path) -> None:
    """Each is the only image of this name; a file of exactly the name comes first, and whole names stay."""
    fill(tmp_path, "s/a.12.JPG", "s/b.png", "s/b.txt", "c", "c.png", "d.png")
    (tmp_path / "t.csv").write_text("image_id,label\ns/a.12,x\ns/b,y\nc,x\nd.png,y\n")
    split = opened(tmp_path / "t.csv")
    assert read(split) == [(b"c", "x"), (b"s/a.12.JPG", "x"), (b"d.png", "y"), (b"s/b.png", "y")]
    file = tmp_path / "t.csv"
    assert split.notes == (
        f"{file}: 2 names without extensions are those of the images beside them: s/a.12 is read as s/a.12.JPG",
    )


def test_a_name_without_an_ending_of_two_images_or_none_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "b.jpg", "b.png")
    (tmp_path / "t.csv").write_text("path,label\na,x\nb,y\n")
    with pytest.raises(InputError, match=r"line 3: b is the name of several images; write one of b\.jpg, b\.png"):
        opened(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("path,label\nelsewhere/a,x\n")
    with pytest.raises(InputError, match=r"t\.csv, line 2: no file .*/elsewhere/a; paths are relative to"):
        opened(tmp_path / "t.csv")


def test_notes_of_the_tables_of_splits(tmp_path: Path) -> None:
    fill(tmp_path, "photos/train/a.png", "photos/train/b.png", "photos/val/a.png")
    for name, text in (("train", "a,x\nb,y\n"), ("val", "a.png,x\n")):
        (tmp_path / "photos" / name / "metadata.csv").write_text("file_name,label\n" + text)
    assert "metadata.csv: 2 names without extensions" in opened(tmp_path / "photos").notes[0]


def test_a_backslash_in_a_name_is_kept(tmp_path: Path) -> None:
    fill(tmp_path, "a\\b.png", "c.png")
    (tmp_path / "t.csv").write_text("path,label\na\\b.png,cat\nc.png,dog\n")
    assert read(opened(tmp_path / "t.csv")) == [(b"a\\b.png", "cat"), (b"c.png", "dog")]


def write_metadata(folder: Path, kind: str) -> None:
    fill(folder, *(name for name, _ in ROWS))
    if kind == "csv":
        pandas.DataFrame(ROWS, columns=["file_name", "label"]).to_csv(folder / "metadata.csv", index=False)
    else:
        lines = (json.dumps({"file_name": name, "label": label}) + "\n" for name, label in ROWS)
        (folder / "metadata.jsonl").write_text("".join(lines))


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_folders_with_metadata(tmp_path: Path, kind: str) -> None:
    for split in ("train", "test"):
        write_metadata(tmp_path / split, kind)
    assert read(opened(tmp_path)) == expected()
    assert read(opened(tmp_path, "eval")) == expected()
    assert opened(tmp_path, "eval").title == f"{tmp_path.name}/test"
    assert read(opened(tmp_path / "train")) == expected()
    assert read(opened(tmp_path / f"train/metadata.{kind}")) == expected()


def test_metadata_with_absolute_paths(tmp_path: Path) -> None:
    fill(tmp_path / "pool", *(name for name, _ in ROWS))
    rows = [(str(tmp_path / "pool" / name), label) for name, label in ROWS]
    for split in ("train", "test"):
        (tmp_path / "photos" / split).mkdir(parents=True)
        table = pandas.DataFrame(rows, columns=["file_name", "label"])
        table.to_csv(tmp_path / "photos" / split / "metadata.csv", index=False)
    assert read(opened(tmp_path / "photos")) == expected()


def test_metadata_of_some_splits_is_refused(tmp_path: Path) -> None:
    write_metadata(tmp_path / "train", "csv")
    fill(tmp_path, "test/1.png")
    with pytest.raises(
        InputError, match=r"/test: has no metadata\.csv, unlike .*/train; add it, or move the folder away"
    ):
        opened(tmp_path)
    (tmp_path / "train/metadata.csv").rename(tmp_path / "metadata.csv")
    with pytest.raises(
        InputError, match=r"metadata\.csv is not in the folders of its images; give the table: --data .*csv"
    ):
        opened(tmp_path)


def test_metadata_in_folders_that_are_no_splits(tmp_path: Path) -> None:
    for label in ("train", "car"):
        fill(tmp_path, f"{label}/1.png", f"{label}/2.png", f"{label}/metadata.csv")
    assert opened(tmp_path).labels == ("car", "train")


def test_metadata_equals_what_datasets_loads(tmp_path: Path) -> None:
    write_metadata(tmp_path / "photos/train", "jsonl")
    for name, _ in ROWS:
        (tmp_path / "photos/train" / name).write_bytes(png(np.random.default_rng(0)))
    loaded = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "photos"), cache_dir=str(tmp_path / "cache"))
    theirs = [(Path(row["image"].filename).name, row["label"]) for row in loaded["train"]]
    ours = opened(tmp_path / "photos")
    assert [(Path(ours.examples.name(i)).name, ours.labels[int(ours.examples[i]["label"])]) for i in range(8)] == theirs


def test_class_folders_count_more_than_a_table_beside_them(tmp_path: Path) -> None:
    fill(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val/a/2.jpg", "val/b/2.jpg", "metadata.csv", "train/metadata.csv")
    assert opened(tmp_path).labels == ("a", "b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "t.jsonl: no rows; expected a JSON object for each image"),
        ('{"path": "cat0.png"\n', "t.jsonl, line 1: .*; expected a JSON object in each line"),
        ("[1]\n", "t.jsonl, line 1: expected a JSON object"),
        ('{"path": "cat0.png", "label": "cat"}\n\n{"path": "cat1.png"}\n', "t.jsonl, line 3: nothing in column label"),
        (
            '{"path": "cat0.png", "label": {"name": "cat"}}\n',
            "t.jsonl, line 1: label is a list or an object; expected text or a number, or a list of these",
        ),
        ("[" * 100_000 + "\n", "t.jsonl, line 1: .*; expected a JSON object in each line"),
    ],
)
def test_json_lines_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    fill(tmp_path, "cat0.png", "cat1.png")
    (tmp_path / "t.jsonl").write_text(text)
    with pytest.raises(InputError, match=message):
        opened(tmp_path / "t.jsonl")


def test_labels_that_look_like_several_are_named(tmp_path: Path) -> None:
    fill(tmp_path, "1.png", "2.png", "3.png")
    (tmp_path / "t.csv").write_text("path,label\n1.png,cat|dark\n2.png,dog|dark\n3.png,cat\n")
    (note,) = opened(tmp_path / "t.csv").notes
    assert note.startswith(
        "t: 2 labels contain '|' and are used as single classes: 'cat|dark', 'dog|dark'; if it separates"
    )
    assert note.endswith("--data.label-separator '|'")
    assert opened(tmp_path / "t.csv", label_separator="|").notes == ()
    (tmp_path / "t.csv").write_text(
        'path,label\n1.png,"tench, Tinca tinca"\n2.png,"goldfish, Carassius"\n3.png,tench\n'
    )
    assert opened(tmp_path / "t.csv").notes == ()


def test_parquet_with_paths_is_refused(tmp_path: Path) -> None:
    pandas.DataFrame(ROWS, columns=["image", "label"]).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"t\.parquet: column image has text; expected the bytes of images"):
        opened(tmp_path / "t.parquet", image_column="image")


def test_an_archive_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, "photos.zip")
    with pytest.raises(
        InputError, match=r"photos\.zip: archives other than \.tar cannot be read; unpack it and give the"
    ):
        opened(tmp_path / "photos.zip")
