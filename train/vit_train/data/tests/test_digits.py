"""The embedded digits as a source."""

from pathlib import Path
from typing import Any

import pytest

from vit_core.errors import InputError
from vit_train.config import Data
from vit_train.data import digits
from vit_train.data.sources import open_split


def test_digits_are_prepared_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    train, test = (open_split(Data(name="digits"), which) for which in ("train", "eval"))
    assert (tmp_path / "vit-parity/digits/1.0.0/dataset_info.json").is_file()
    assert (len(train), len(test), train.labels) == (1437, 360, tuple("0123456789"))
    assert (train.title, test.title) == ("digits train", "digits test")
    sources_by_tfds = digits.prepare(tmp_path / "vit-parity")
    assert [dict(example) for example in test.examples] == list(sources_by_tfds[1])
    assert len(open_split(Data(name="digits", eval_split="test[:7]"), "eval")) == 7


def test_two_processes_prepare_digits_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = digits.Digits.download_and_prepare

    def too_late(self: Any) -> None:
        prepare(self)
        raise FileExistsError("tensorflow-datasets found the folder that it was to move its own to")

    monkeypatch.setattr(digits.Digits, "download_and_prepare", too_late)
    assert len(open_split(Data(name="digits", directory=str(tmp_path)), "train")) == 1437


def test_digits_in_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/x: cannot write there \(.*\); set --data\.directory to"):
        open_split(Data(name="digits", directory=str(tmp_path / "file/x")), "train")
