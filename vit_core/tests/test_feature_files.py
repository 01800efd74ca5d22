"""Files of features: what other libraries read in them, in bounded memory, complete or not there at all."""

import tracemalloc
from pathlib import Path

import numpy as np
import pandas
import pytest
from safetensors.numpy import load_file

from vit_core import InputError, feature_files
from vit_core.feature_files import check_target, feature_file, read_features

IMAGES = ["a/1.png", 'a/with, "quotes"\nand lines.png', "b/ü.png"]
LABELS = ["a", "a", "b"]
KINDS = pytest.mark.parametrize("suffix", feature_files.SUFFIXES)


def write(
    path: Path, values_N: np.ndarray, labels: list[str | None] | None = None, shape: tuple[int, ...] | None = None
) -> Path:
    with feature_file(path, shape or values_N.shape[1:], "float32" if shape else values_N.dtype.name) as add:
        for image, label, values in zip(IMAGES, labels or LABELS, values_N, strict=False):
            add(image, label, values)
    return path


def values_of(dtype: str, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


@KINDS
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(3, 5), (3, 4, 5), (0, 5)], ids=str)
def test_what_was_written_is_read_to_the_last_bit(
    suffix: str, dtype: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    values_N = values_of(dtype, *shape)
    path = write(tmp_path / f"features{suffix}", values_N)
    found = read_features(path)
    np.testing.assert_array_equal(found.values_N, values_N)
    assert found.values_N.dtype == values_N.dtype
    assert found.images == tuple(IMAGES[: len(values_N)])
    assert found.labels == tuple(LABELS[: len(values_N)])


def test_other_libraries_read_it(tmp_path: Path) -> None:
    values_N = values_of("float32", 3, 4, 5)
    for suffix in feature_files.SUFFIXES:
        write(tmp_path / f"x{suffix}", values_N)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert isinstance(mapped, np.memmap)
    np.testing.assert_array_equal(mapped, values_N)
    np.testing.assert_array_equal(load_file(tmp_path / "x.safetensors")["features"], values_N)
    frame, table = pandas.read_parquet(tmp_path / "x.parquet"), pandas.read_csv(tmp_path / "x.csv")
    np.testing.assert_array_equal(np.stack(frame["features"].to_list()).reshape(3, 4, 5), values_N)
    assert table.to_dict("list") == frame[["image", "label"]].to_dict("list") == {"image": IMAGES, "label": LABELS}


@KINDS
def test_images_without_a_class_have_no_labels(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"x{suffix}", values_of("float32", 3, 2), ["a", None, "b"])
    assert read_features(path).labels is None


@KINDS
def test_what_fails_leaves_what_was_there(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"x{suffix}", values_of("float32", 3, 2))
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    with pytest.raises(AssertionError, match="a row of"):
        write(path, np.array([np.zeros(2), np.zeros(3)], object), shape=(2,))
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == before


@KINDS
def test_memory_does_not_grow_with_the_rows(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """32 MB of rows of 32 KB; what is held at a time may be 2 MB and a copy of it."""
    monkeypatch.setattr(feature_files, "_PARQUET_BYTES", 2**21)
    row = values_of("float32", 2**13)
    with feature_file(tmp_path / f"x{suffix}", row.shape, "float32") as add:
        add("first.png", None, row)  # what libraries hold from their first use on does not count
        tracemalloc.start()
        for i in range(1000):
            add(f"{i}.png", None, row)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2**23
    assert len(read_features(tmp_path / f"x{suffix}").values_N) == 1001


def test_a_target_that_would_lose_something_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a name that ends in .npy, .safetensors or .parquet"):
        check_target(tmp_path / "x.txt")
    with pytest.raises(InputError, match="its folder is missing; give a file in"):
        check_target(tmp_path / "no/x.npy")
    (tmp_path / "x.csv").write_text("name,age\n")
    with pytest.raises(InputError, match=r"its table of images would replace .*x.csv, another file"):
        check_target(tmp_path / "x.npy")
    check_target(tmp_path / "x.parquet")
    check_target(write(tmp_path / "y.npy", values_of("float32", 3, 2)))


@KINDS
def test_damaged_files_are_one_line(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"x{suffix}", values_of("float32", 3, 2))
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(InputError, match="no whole file of features"):
        read_features(path)
    path.unlink()
    with pytest.raises(InputError, match="no such file of features; vit features writes one"):
        read_features(path)


def test_a_table_of_other_features_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.npy", values_of("float32", 3, 2))
    (tmp_path / "x.csv").write_text("image,label\na,b\n")
    with pytest.raises(InputError, match=r"x.csv: 1 images, x.npy has 3; they belong to other features"):
        read_features(path)
    (tmp_path / "x.csv").unlink()
    with pytest.raises(InputError, match=r"x.csv: missing; it has the names of the images in x.npy"):
        read_features(path)
