"""Local paths and store addresses: how they are told apart, what both can do, and what each error says."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vit_core.errors import InputError
from vit_core.storage import (
    StorageError,
    StorePath,
    absolute,
    exclusive,
    is_local,
    local_copy,
    location,
    remove_tree,
    require_local,
)
from vit_core.storage.tests.s3_server import s3_server


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture(params=["local", "memory", "s3"])
def folder(request: Any, tmp_path: Path) -> Any:
    """An empty folder of each kind."""
    if request.param == "local":
        return tmp_path / "folder"
    if request.param == "s3":
        request.getfixturevalue("s3")
    return location(f"{request.param}://bucket/{tmp_path.name}")


def test_every_kind_of_folder_does_the_same(folder: Any, tmp_path: Path) -> None:
    assert not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "b.txt").write_text("second")
    (folder / "a.txt").write_text("first")
    assert (folder / "a.txt").is_file()
    assert folder.is_dir()
    assert not (folder / "c.txt").exists()
    assert sorted(path.name for path in folder.iterdir()) == ["a.txt", "b.txt"]
    assert sorted(path.name for path in folder.glob("*.txt")) == ["a.txt", "b.txt"]
    assert (folder / "a.txt").read_text() == "first"
    assert (folder / "a.txt").stat().st_size == 5
    with local_copy(folder / "b.txt") as copy:
        assert copy.read_text() == "second"
    (folder / "a.txt").unlink()
    with pytest.raises(FileNotFoundError):
        (folder / "a.txt").read_text()
    (folder / "a.txt").unlink(missing_ok=True)
    remove_tree(folder)
    assert not folder.exists()
    remove_tree(folder, ignore_errors=True)


def test_md5_is_the_stores_own(s3: str) -> None:
    path = location("s3://bucket/md5")
    assert isinstance(path, StorePath)
    path.write_text("content")
    assert path.md5 == "mgNkuembtIDdJeHwKEyFVQ=="  # of "content", by RFC 1321


def test_renaming_a_folder_moves_every_object(s3: str) -> None:
    source, target = location("s3://bucket/old"), location("s3://bucket/new")
    assert isinstance(source, StorePath)
    assert isinstance(target, StorePath)
    (source / "a").write_text("1")
    (source / "b/c").write_text("2")
    source.rename(target)
    assert sorted(target.files()) == ["a", "b/c"]
    assert not source.exists()


def test_no_such_bucket(s3: str) -> None:
    path = location("s3://missing/x")
    assert not path.exists()
    with pytest.raises((FileNotFoundError, StorageError), match="missing"):
        path.write_text("")


def test_refused_credentials_say_what_to_set(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = location("s3://bucket/x")
    assert isinstance(path, StorePath)

    class Refusing:
        def info(self, key: str) -> None:
            raise PermissionError("Forbidden")

    monkeypatch.setattr("vit_core.storage.object_store._client", lambda protocol: Refusing())
    with pytest.raises(StorageError, match="Forbidden; set AWS_ACCESS_KEY_ID"):
        path.exists()


@pytest.mark.parametrize(
    ("address", "message"),
    [("ftp://host/x", r"expected a folder or one of gs://"), ("s3://", r"has no bucket; expected s3://BUCKET")],
)
def test_addresses_that_cannot_be_used(address: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        location(address)


def test_local_paths(tmp_path: Path) -> None:
    assert location("runs/a") == Path("runs/a")
    assert is_local(location("runs/a"))
    assert absolute(Path("a")) == Path.cwd() / "a"
    assert require_local(tmp_path, "--data") is tmp_path
    with pytest.raises(InputError, match=r"--data s3://b/x: expected a folder on this machine"):
        require_local(location("s3://b/x"), "--data")


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    refused = pytest.raises(InputError, match="another process is using it")
    with exclusive(tmp_path / "run"), refused, exclusive(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()  # it stayed empty


def test_without_file_locks_checkpoints_are_written_and_training_is_refused(tmp_path: Path) -> None:
    """As on Windows, where there is no module fcntl."""
    script = f"""
import sys
sys.modules["fcntl"] = None
import numpy as np
from pathlib import Path
from vit_core import CheckpointConfig, Checkpoint, ViTConfig, open_checkpoint, parity, save_checkpoint
from vit_core.storage import exclusive
model = ViTConfig(image_size=8, patch_size=4, width=8, depth=1, heads=1, mlp_dim=8, num_classes=2)
arrays = parity.randomized(model, 0)
save_checkpoint({str(tmp_path / "out")!r}, Checkpoint.of(CheckpointConfig(model=model), arrays))
opened = open_checkpoint({str(tmp_path / "out")!r})
np.testing.assert_array_equal(opened.arrays["cls_token"], arrays["cls_token"])
try:
    with exclusive(Path({str(tmp_path / "run")!r})):
        pass
except Exception as error:
    print(error)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert result.stdout == "training needs file locks, which this system lacks; train on Linux or macOS\n"
