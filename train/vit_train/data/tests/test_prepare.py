"""What `vit prepare` packs is read by tensorflow-datasets; killed and started again, it ends with the same bytes."""

import fcntl
import io
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from vit_core.errors import InputError
from vit_train.config import Data
from vit_train.data import prepare as module
from vit_train.data.prepare import Prepared, prepare
from vit_train.data.sources import open_split
from vit_train.tests.small_run import assert_ended, children


def image(i: int, format: str = "PNG", mode: str = "RGB", side: int = 6) -> bytes:
    """The bytes of an image file of noise; a different one for each i."""
    pixels = np.random.default_rng(i).integers(0, 256, (side, side, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, format)
    return file.getvalue()


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of 2 x 15 images."""
    return fill(
        tmp_path / "photos",
        {f"{label}/{i:02}.png": image(i + 15 * (label == "b")) for label in "ab" for i in range(15)},
    )


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RECORDS", 8)


def by_tfds(folder: Path, split: str) -> list[tuple[bytes, str]]:
    """(bytes of the image, name of the class) of each example, in order."""
    builder = tfds.builder_from_directory(str(folder))
    examples = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    return [(example["image"], builder.info.features["label"].int2str(example["label"])) for example in examples]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def packed(folder: Path, out: Path, **options: Any) -> Prepared:
    return prepare(folder, out, workers=1, **options)


def test_splits_are_packed_unchanged(tmp_path: Path) -> None:
    files = {
        "train/cat/1.jpg": image(1, "JPEG"),
        "train/cat/2.png": image(2, "PNG", "L"),
        "train/dog/deep/3.webp": image(3, "WEBP"),
        "train/dog/4.gif": image(4, "GIF", "P"),
        "val/dog/5.jpg": image(5, "JPEG", "CMYK"),
        "test/cat/6.tif": image(6, "TIFF"),
    }
    folder = fill(tmp_path / "My Pets-2", {**files, "train/cat/.hidden.jpg": b"", "train/dog/notes.txt": b"no image"})
    result = packed(folder, tmp_path / "out")
    assert result.folder == tmp_path / "out/my_pets_2/1.0.0"
    assert result.counts == {"train": 4, "test": 1, "val": 1}
    assert (result.classes, result.unreadable) == (2, ())
    for split in result.counts:
        expected = [(content, name.split("/")[1]) for name, content in files.items() if name.startswith(f"{split}/")]
        assert sorted(by_tfds(result.folder, split)) == sorted(expected)
    info = tfds.builder_from_directory(str(result.folder)).info
    assert (info.full_name, info.supervised_keys) == ("my_pets_2/1.0.0", ("image", "label"))
    assert info.features["label"].names == ["cat", "dog"]
    decoded = tfds.data_source("my_pets_2", split="train", data_dir=tmp_path / "out")
    assert sorted(example["image"].shape for example in decoded)[-1] == (6, 6, 3)
    assert "tensorflow" not in sys.modules


def test_a_drawn_split_equals_that_of_the_folder(photos: Path, tmp_path: Path) -> None:
    drawn = {"held_out": 0.3, "split_seed": 7}
    result = packed(photos, tmp_path / "out", **drawn)
    assert result.counts == {"train": 22, "test": 8}
    for which, split in (("train", "train"), ("eval", "test")):
        direct = open_split(Data(name=str(photos), **drawn), which)
        packed_split = open_split(Data(name="photos", directory=str(tmp_path / "out")), which)
        assert packed_split.title == f"photos {split}"
        assert packed_split.labels == direct.labels
        expected, found = (sorted((e["image"], e["label"]) for e in s.examples) for s in (direct, packed_split))
        assert found == expected
    assert packed(photos, tmp_path / "all", held_out=0.0).counts == {"train": 30}


def test_shards_are_mixed_and_even(photos: Path, tmp_path: Path) -> None:
    result = packed(photos, tmp_path / "out", held_out=0.0)
    assert tfds.builder_from_directory(str(result.folder)).info.splits["train"].shard_lengths == [8, 8, 7, 7]
    labels = [label for _, label in by_tfds(result.folder, "train")]
    assert {"a", "b"} == set(labels[:8]) == set(labels[-7:])
    assert labels != [
        label for _, label in by_tfds(packed(photos, tmp_path / "x", held_out=0.0, split_seed=1).folder, "train")
    ]


def test_shards_by_size(tmp_path: Path) -> None:
    folder = fill(tmp_path / "big", {f"{label}/{i}.png": image(i, side=300) for label in "ab" for i in range(6)})
    result = packed(folder, tmp_path / "out", held_out=0.0, shard_size_mib=1)  # 12 x 270,000 bytes
    assert tfds.builder_from_directory(str(result.folder)).info.splits["train"].shard_lengths == [3, 3, 3, 3]


def test_unreadable_images_are_skipped_and_listed(photos: Path, tmp_path: Path) -> None:
    whole = image(99, side=40)
    fill(photos, {"a/cut.png": whole[: len(whole) // 2], "b/empty.jpg": b"", "b/text\t.jpg": b"hello"})
    (photos / "a/gone.png").symlink_to(tmp_path / "nothing")
    result = packed(photos, tmp_path / "out", held_out=0.0)
    assert result.counts == {"train": 30}
    names = [name for name, _ in result.unreadable]
    assert names == ["a/cut.png", "a/gone.png", "b/empty.jpg", "b/text .jpg"]
    for (_, reason), expected in zip(
        result.unreadable, ["truncated", "No such file", "empty", "no image"], strict=True
    ):
        assert expected in reason
    lines = (result.folder / "unreadable.txt").read_text().splitlines()
    assert [tuple(line.split("\t")) for line in lines] == list(result.unreadable)
    assert result.summary == (
        f"{result.folder}: 30 train; 2 classes",
        f"4 unreadable, skipped: reasons are in {result.folder}/unreadable.txt",
        f"to train on it: --data.name photos --data.directory {tmp_path}/out",
    )


def test_shards_without_readable_images(photos: Path, tmp_path: Path) -> None:
    fill(photos, {f"a/{i:02}.png": b"" for i in range(15)} | {f"b/{i:02}.png": b"" for i in range(14)})
    result = packed(photos, tmp_path / "out", held_out=0.0)
    assert by_tfds(result.folder, "train") == [(image(29), "b")]
    fill(photos, {"b/14.png": b""})
    with pytest.raises(
        InputError, match=r"split train: none of its images can be read \(the first is ./..\.png: .*empty"
    ):
        packed(photos, tmp_path / "none", held_out=0.0)
    assert not (tmp_path / "none/photos/1.0.0").exists()


# Continuing after a kill


@pytest.mark.slow
def test_killed_and_started_again(tmp_path: Path) -> None:
    folder = fill(tmp_path / "photos", {f"{label}/{i}.png": image(i, side=100) for label in "ab" for i in range(120)})
    expected = contents(packed(folder, tmp_path / "whole").folder)
    code = "import sys; from pathlib import Path; from vit_train.data import prepare as p; p.MAX_RECORDS = 8; "
    code += "p.prepare(Path(sys.argv[1]), Path(sys.argv[2]), workers=2)"
    process = subprocess.Popen([sys.executable, "-c", code, folder, tmp_path / "out"], stdout=subprocess.DEVNULL)
    work = tmp_path / "out/photos/1.0.0.incomplete"
    deadline = time.monotonic() + 60
    while len(finished := set(work.glob("*/result.json"))) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    workers = children(process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out/photos/1.0.0").exists()
    assert len(finished) < 30
    with pytest.raises(InputError, match="none is prepared"):
        open_split(Data(name="photos", directory=str(tmp_path / "out")), "train")
    assert_ended(workers)

    kept = {path.stat().st_ino for shard in finished for path in shard.parent.glob("*.array_record-*")}
    result = packed(folder, tmp_path / "out")
    assert contents(result.folder) == expected
    assert kept <= {path.stat().st_ino for path in result.folder.iterdir()}
    assert os.listdir(tmp_path / "out/photos") == ["1.0.0"]


@contextmanager
def stopped_at_rename(count: int) -> Iterator[None]:
    """Raises KeyboardInterrupt instead of the rename of a file or folder for the count-th time."""
    with pytest.MonkeyPatch.context() as patch:
        calls = iter(range(count))

        def counting(rename: Any) -> Any:
            def renamed(*args: Any) -> Any:
                if next(calls, None) is None:
                    raise KeyboardInterrupt
                return rename(*args)

            return renamed

        patch.setattr(os, "replace", counting(os.replace))
        patch.setattr(Path, "rename", counting(Path.rename))
        yield


def test_interrupted_at_any_rename(tmp_path: Path) -> None:
    folder = fill(
        tmp_path / "photos", {f"{label}/{i}.png": image(i) for label in "ab" for i in range(6)} | {"a/x.png": b""}
    )
    expected = contents(packed(folder, tmp_path / "whole", held_out=0.0).folder)
    # 4 stages; the plan; 2 x (shard, result); 2 shards moved into the set; 6 other files of the set; the set.
    for step in range(18):
        with stopped_at_rename(step), pytest.raises(KeyboardInterrupt):
            packed(folder, tmp_path / f"{step}", held_out=0.0)
        assert not (tmp_path / f"{step}/photos/1.0.0").exists()
        assert contents(packed(folder, tmp_path / f"{step}", held_out=0.0).folder) == expected
        assert os.listdir(tmp_path / f"{step}/photos") == ["1.0.0"]
    with stopped_at_rename(18):
        packed(folder, tmp_path / "last", held_out=0.0)


@pytest.mark.parametrize("change", ["added", "removed", "renamed", "edited", "seed"])
def test_shards_of_other_inputs_are_not_reused(photos: Path, tmp_path: Path, change: str) -> None:
    with stopped_at_rename(10), pytest.raises(KeyboardInterrupt):
        packed(photos, tmp_path / "out", held_out=0.0)
    assert (tmp_path / "out/photos/1.0.0.incomplete/train-0/result.json").exists()
    if change == "added":
        fill(photos, {"a/new.png": image(77)})
    elif change == "removed":
        (photos / "a/03.png").unlink()
    elif change == "renamed":
        (photos / "a/14.png").rename(photos / "b/!.png")  # at the same position of the order
    elif change == "edited":
        fill(photos, {f"{label}/{i:02}.png": image(50 + i) for label in "ab" for i in range(15)})
    seed = 1 if change == "seed" else 0
    result = packed(photos, tmp_path / "out", held_out=0.0, split_seed=seed)
    assert contents(result.folder) == contents(packed(photos, tmp_path / "anew", held_out=0.0, split_seed=seed).folder)
    expected = [(path.read_bytes(), path.parent.name) for path in photos.rglob("*.png")]
    assert sorted(by_tfds(result.folder, "train")) == sorted(expected)


def test_a_finished_set_is_not_changed(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(photos, {"a/bad.png": b""})
    first = packed(photos, tmp_path / "out")
    stray = tmp_path / "out/photos/1.0.0.incomplete"  # killed after the set was moved and before this was removed
    stray.mkdir()
    monkeypatch.setattr(module, "pack", None)
    assert packed(photos, tmp_path / "out") == first
    assert not stray.exists()
    with pytest.raises(
        InputError, match=r"out/photos/1\.0\.0: another set exists there; delete it, or choose another --out"
    ):
        packed(photos, tmp_path / "out", split_seed=1)
    (first.folder / "metadata.json").unlink()
    with pytest.raises(InputError, match="another set exists there"):
        packed(photos, tmp_path / "out")


# Errors


def test_a_full_disk(tmp_path: Path) -> None:
    folder = fill(tmp_path / "photos", {f"{label}/{i}.png": image(i, side=300) for label in "ab" for i in range(4)})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))  # files of 1 MiB; the shard would have 2
    try:
        with pytest.raises(
            InputError, match=r"cannot write there \(.*File too large\); choose a writable folder with enough space"
        ):
            packed(folder, tmp_path / "out", held_out=0.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert packed(folder, tmp_path / "out", held_out=0.0).counts == {"train": 8}


def test_a_folder_that_cannot_be_written(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/photos: cannot write there \(Not a directory\); set --out to"):
        packed(photos, tmp_path / "file")
    (tmp_path / "out/photos").mkdir(parents=True)
    descriptor = os.open(tmp_path / "out/photos", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(InputError, match=r"out/photos: another process is using it; wait, or choose another --out"):
        packed(photos, tmp_path / "out")
    os.close(descriptor)
    assert packed(photos, tmp_path / "out").counts == {"train": 26, "test": 4}


def test_a_worker_that_is_killed(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_start_worker", partial(os._exit, 1))
    with pytest.raises(
        InputError, match=r"a worker was killed .* start again with fewer --workers: finished shards are kept"
    ):
        prepare(photos, tmp_path / "out", workers=2)


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("photos", "photos"),
        ("My Photos-2", "my_photos_2"),
        ("2024", "set_2024"),
        ("CamelCase", "camel_case"),
        ("日本", "set"),
    ],
)
def test_names(folder: str, name: str) -> None:
    assert module.valid_name(Path(folder), None) == name
    assert module.valid_name(Path("x"), name) == name
    assert tfds.core.naming.is_valid_dataset_name(name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "My Photos"}, "--name 'My Photos': expected lower-case letters, digits and _, as 'my_photos'"),
        ({"held_out": 1.5}, "held_out: expected at most 1, found 1.5"),
        ({"held_out": 1.0}, "leaves nothing to train on"),
    ],
)
def test_options_that_are_refused(photos: Path, tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare(photos, tmp_path / "out", **{"workers": 1, **options})
    assert not (tmp_path / "out").exists()


def test_folders_that_are_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nix: No such file or directory; expected a readable folder"):
        packed(tmp_path / "nix", tmp_path / "out")
    with pytest.raises(InputError, match=re.escape("1.0.0: is a prepared set already; expected class folders")):
        packed(packed(photos, tmp_path / "out").folder, tmp_path / "again")
    for name in ("c ", "c\n", "c\nd", os.fsdecode(b"c\xff")):
        folder = fill(tmp_path / name.encode(errors="replace").hex(), {"a/1.png": image(1), f"{name}/1.png": image(1)})
        with pytest.raises(
            InputError, match=r"class 'c.*': expected a name of printable characters, without spaces at"
        ):
            packed(folder, tmp_path / "out", held_out=0.0)


def test_a_prepared_set_keeps_groups_together_and_stores_them(tmp_path: Path) -> None:
    """Both splits equal those drawn from the table, and each record has its image's group."""
    rows = [(f"{i}.png", "ab"[i % 2], f"p{i // 3}") for i in range(30)]
    fill(tmp_path, {name: image(i) for i, (name, _, _) in enumerate(rows)})
    table = tmp_path / "t.csv"
    table.write_text("path,label,patient\n" + "".join(f"{','.join(row)}\n" for row in rows))
    patient_of = {image(i): patient for i, (_, _, patient) in enumerate(rows)}
    result = packed(table, tmp_path / "out", held_out=0.3, group="patient")
    assert result.counts == {"train": 21, "test": 9}
    found = []
    for which in ("train", "eval"):
        split = open_split(Data(name="t", directory=str(tmp_path / "out"), group="patient"), which)
        assert split.groups is not None
        patients = [split.groups.names[i] for i in split.groups.group_N]
        assert patients == [patient_of[example["image"]] for example in split.examples]
        direct = open_split(Data(name=str(table), held_out=0.3, group="patient"), which)
        assert sorted(e["image"] for e in direct.examples) == sorted(e["image"] for e in split.examples)
        found.append(set(patients))
    assert found[0].isdisjoint(found[1])
    other = open_split(Data(name="t", directory=str(tmp_path / "out"), group="site"), "train")
    assert other.groups is None
    assert "data.group: the set was prepared with the groups of 'patient', so its images count as" in other.notes[0]
    with pytest.raises(InputError, match="another set exists there"):
        packed(table, tmp_path / "out", held_out=0.3)
