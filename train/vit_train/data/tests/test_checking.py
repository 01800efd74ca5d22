"""What is checked of the data before a run: every unreadable image, missing classes, copies in both splits."""

import io
import re
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import ExifTags, Image, features

from vit_core.preprocess import Preprocessing, decode_image
from vit_train.config import Data
from vit_train.data import checking
from vit_train.data.sources import Split, open_split

PREPROCESSING = Preprocessing(image_size=8)


def image(seed: int, format: str = "JPEG", side: int = 40) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)).save(file, format)
    return file.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """train and val of two classes, 20 and 6 images each."""
    for split, count, first in (("train", 20, 0), ("val", 6, 1000)):
        for number, label in enumerate("ab"):
            (tmp_path / split / label).mkdir(parents=True)
            for i in range(count):
                (tmp_path / split / label / f"{i:02}.jpg").write_bytes(image(first + 2 * i + number))
    return tmp_path


def splits(folder: Path) -> tuple[Split, Split]:
    data = Data(name=f"{folder}/")
    return open_split(data, "train"), open_split(data, "eval")


@pytest.mark.parametrize("decoded", [10_000, 12, 0])
def test_damaged_files_are_found(photos: Path, decoded: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their headers in any case; by their pixels, among those that are decoded."""
    monkeypatch.setattr(checking, "DECODED", decoded)
    (photos / "train/a/03.jpg").write_bytes(b"no image")
    (photos / "train/b/00.jpg").write_bytes(b"")
    (photos / "train/b/05.jpg").unlink()
    (photos / "train/b/05.jpg").symlink_to("nowhere")
    (photos / "train/b/07.jpg").write_bytes(image(3)[:-200])
    train, _ = splits(photos)
    checked = checking.check_split(train, PREPROCESSING)
    broken = {"train/a/03.jpg", "train/b/00.jpg", "train/b/05.jpg"}
    found = {str(Path(train.name(i)).relative_to(photos)) for i in checked.unreadable}
    assert found - {"train/b/07.jpg"} == broken
    assert (checked.decoded, checked.headers) == (min(decoded, 40), 40 - min(decoded, 40))
    if decoded > 40:
        assert "train/b/07.jpg" in found
        assert checked.summary == f"{photos.name}/train: pixels all 40 images"
        line = checking.unreadable_line(checked)
        assert line.startswith(
            f"4 images of {photos.name}/train cannot be read: {photos}/train/a/03.jpg: cannot decode"
        )
        assert line.endswith(" and 1 more")


def test_a_file_that_cannot_be_opened_is_named_once(photos: Path) -> None:
    """Its error names it already."""
    (photos / "train/b/05.jpg").unlink()
    (photos / "train/b/05.jpg").symlink_to("nowhere")
    line = checking.unreadable_line(checking.check_split(splits(photos)[0], PREPROCESSING))
    name = f"{photos}/train/b/05.jpg"
    assert line == (
        f"1 image of {photos.name}/train cannot be read: cannot read image '{name}': No such file or directory"
    )


def test_a_header_at_the_end_of_a_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TIFF's directory is after the pixels: the first bytes of the file do not suffice."""
    monkeypatch.setattr(checking, "DECODED", 0)
    for label in "ab":
        (tmp_path / label).mkdir()
        (tmp_path / label / "1.tif").write_bytes(image(0, "TIFF", side=200))
    split = open_split(Data(name=f"{tmp_path}/", held_out=0.0), "train")
    assert checking.check_split(split, PREPROCESSING).unreadable == {}


@pytest.mark.parametrize("decoded", [10_000, 0])
def test_images_that_their_exif_data_turn_are_counted(
    photos: Path, decoded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "DECODED", decoded)
    for i, orientation in enumerate((1, 3, 6)):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        Image.new("RGB", (8, 9)).save(photos / f"train/a/{i:02}.jpg", exif=exif)
        Image.new("RGB", (8, 9)).save(photos / f"train/b/{i}.tif", exif=exif)  # Pillow turns TIFFs itself
    assert checking.check_split(splits(photos)[0], PREPROCESSING).turned == 2


def test_processes_share_the_work(photos: Path) -> None:
    train, _ = splits(photos)
    whole = checking.check_split(train, PREPROCESSING)
    parts = [checking.check_split(train, PREPROCESSING, share=(i, 3)) for i in range(3)]
    assert sum(part.decoded for part in parts) == 40
    np.testing.assert_array_equal(sum(part.digests_N for part in parts), whole.digests_N)


def test_copies_in_both_splits_are_found(photos: Path) -> None:
    big = image(5, "PNG", side=200)
    assert len(big) > checking.HEAD
    (photos / "train/a/big.png").write_bytes(big)
    (photos / "val/b/same.png").write_bytes(big)
    (photos / "val/b/other.png").write_bytes(big[:-20] + bytes(20))  # it differs after the bytes that are hashed
    (photos / "val/b/copy.jpg").write_bytes((photos / "train/b/02.jpg").read_bytes())
    train, val = splits(photos)
    pairs = checking.duplicates(*(checking.check_split(split, PREPROCESSING) for split in (train, val)))
    names = {(Path(train.name(a)).name, Path(val.name(b)).name) for a, b in pairs}
    assert names == {("02.jpg", "copy.jpg"), ("big.png", "same.png")}


def test_copies_in_a_split_are_counted(photos: Path) -> None:
    def line() -> str | None:
        return checking.copies_line(checking.check_split(splits(photos)[0], PREPROCESSING))

    assert line() is None
    first = (photos / "train/b/02.jpg").read_bytes()
    for name in ("a/junk 1.jpg", "a/junk 2.jpg"):
        (photos / "train" / name).write_bytes(b"no image")
    assert line() is None, "files that are no images are no copies"
    (photos / "train/b/again.jpg").write_bytes(first)
    assert re.fullmatch(
        r"1 of the 43 images of \S+ is a copy of another, byte for byte \(\S+/b/again.jpg is \S+/b/02.jpg\)",
        line() or "",
    )
    (photos / "train/a/99.jpg").write_bytes(first)
    assert (line() or "").startswith("2 of the 44 images of ")
    assert re.search(r", 2 of them with another class \(\S+/a/99.jpg: a, \S+/b/02.jpg: b\)$", line() or "")


def test_copies_are_told_from_images_with_the_same_beginning(photos: Path) -> None:
    big = image(5, "PNG", side=200)
    for i in range(3):  # bytes after the image, and after those that are hashed
        (photos / f"train/a/begins {i}.png").write_bytes(big + bytes([i]))
    (photos / "train/b/copy of 1.png").write_bytes((photos / "train/a/begins 1.png").read_bytes())
    (photos / "val/b/copy of 2.png").write_bytes((photos / "train/a/begins 2.png").read_bytes())
    train, val = (checking.check_split(split, PREPROCESSING) for split in splits(photos))
    names = [[Path(train.split.name(i)).name for i in pair] for pair in checking.copies(train)]
    assert names == [["begins 1.png", "copy of 1.png"]]
    ((a, b),) = checking.duplicates(train, val)
    assert (Path(train.split.name(a)).name, Path(val.split.name(b)).name) == ("begins 2.png", "copy of 2.png")


def test_the_order_of_several_classes_is_no_difference() -> None:
    same = image(1, "PNG")
    examples = [{"image": same, "label": (0, 1)}, {"image": same, "label": (1, 0)}, {"image": same, "label": ()}]
    split = Split(examples, ("cat", "dog"), "pets", multilabel=True)
    line = checking.copies_line(checking.check_split(split, PREPROCESSING))
    assert line == (
        "2 of the 3 images of pets are copies of others, byte for byte, 1 of them with another class (pets[0]: cat and "
        "dog, pets[2]: none)"
    )


def test_copies_are_counted_among_the_images_that_were_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "DECODED", 3)
    split = Split([{"image": image(1, "PNG"), "label": 0}] * 5, ("cat",), "pets")
    line = checking.copies_line(checking.check_split(split, PREPROCESSING)) or ""
    assert line.startswith("2 of the 3 images of pets that were opened are copies of others, byte for byte (pets[")


def test_files_that_are_no_images_are_not_in_both_splits(photos: Path) -> None:
    for name in ("train/a/junk.jpg", "val/a/junk.jpg"):
        (photos / name).write_bytes(b"no image")
    train, val = splits(photos)
    assert checking.duplicates(*(checking.check_split(split, PREPROCESSING) for split in (train, val))) == []


def test_uneven_classes(photos: Path) -> None:
    train, val = splits(photos)
    assert checking.imbalance_line(train, val) is None
    for path in sorted(photos.glob("train/b/*.jpg"))[2:]:
        path.unlink()
    for path in sorted(photos.glob("val/b/*.jpg"))[2:]:
        path.unlink()
    assert checking.imbalance_line(*splits(photos)) == (
        f"{photos.name}/train: 20 images of a, 2 of b; always predicting a is right for 75.0% of {photos.name}/val; "
        "--class-weights balanced and --sampling balanced count rare classes more"
    )


def test_missing_classes(photos: Path) -> None:
    for file in (photos / "val/a").iterdir():
        file.unlink()
    (photos / "val/a").rmdir()
    train, val = splits(photos)
    assert (checking.missing_classes(train), checking.missing_classes(val)) == ((), ("a",))


def test_training_images_among_others_are_counted(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    train, val = splits(photos)
    assert checking.images_in_common(train, val) == 0
    assert checking.images_in_common(train, train) == 40
    whole = open_split(Data(name=f"{photos}/train", held_out=1.0), "test")
    assert whole.title == "train (all images)"
    assert checking.images_in_common(train, whole) == 40, "by their places"
    elsewhere = tmp_path_factory.mktemp("copy")
    for label in "ab":
        (elsewhere / label).mkdir()
        for i in range(5):
            (elsewhere / label / f"{i}.jpg").write_bytes((photos / f"train/{label}/{i:02}.jpg").read_bytes())
        (elsewhere / label / "new.jpg").write_bytes(image(5000 + ord(label)))
    copied = open_split(Data(name=f"{elsewhere}/", held_out=1.0), "test")
    assert checking.images_in_common(train, copied) == 10, "by their bytes"


def test_avif_and_heic_are_read() -> None:
    """AVIF by Pillow itself, HEIC by pillow-heif, to the pixels that these libraries decode."""
    assert features.check("avif")
    pixels = np.full((32, 32, 3), (200, 90, 30), np.uint8)
    avif, heic = io.BytesIO(), io.BytesIO()
    Image.fromarray(pixels).save(avif, "AVIF")
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(heic)
    np.testing.assert_array_equal(decode_image(avif.getvalue()), Image.open(avif).convert("RGB"))
    expected = pillow_heif.open_heif(heic).to_pillow().convert("RGB")
    np.testing.assert_array_equal(decode_image(heic.getvalue()), expected)
