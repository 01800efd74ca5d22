"""Paths and files in Google Cloud Storage, against a stand-in on this machine."""

import time
from pathlib import Path

import pytest

from vit_core.storage import StorePath, local_copy, location, object_store, remove_tree, staged_files
from vit_core.storage.tests.fake_gcs import Store
from vit_core.storage.tests.gcs_server import gcs_server, store

__all__ = ["gcs_server", "store"]


def test_paths_in_google_cloud_storage(store: Store) -> None:
    folder = location("gs://bucket//a/b/")
    assert (str(folder), folder.name, str(folder.parent), str(folder / "c")) == (
        "gs://bucket/a/b",
        "b",
        "gs://bucket/a",
        "gs://bucket/a/b/c",
    )
    assert location(folder) == folder
    assert isinstance(location("/a/b"), Path)
    for name in ("steps/7/x", "steps/7/y/z", "steps/10/x", "steps.txt"):
        (folder / name).write_text(name)
    assert [path.name for path in folder.iterdir()] == ["steps", "steps.txt"]
    assert [path.name for path in folder.glob("steps/[0-9]*")] == ["10", "7"]
    assert list(folder.glob("nothing/*")) == []
    assert isinstance(folder, StorePath)
    assert sorted((folder / "steps" / "7").files()) == ["x", "y/z"]
    assert ((folder / "steps").is_dir(), (folder / "steps").is_file(), (folder / "step").exists()) == (
        True,
        False,
        False,
    )
    with pytest.raises(FileNotFoundError, match="gs://bucket/a/b/steps/9"):
        (folder / "steps" / "9").read_text()
    store.put("bucket", "a/b/steps/11/x", b"", {})
    assert [path.name for path in folder.glob("steps/*")] == ["10", "11", "7"], "whichever client wrote it"
    remove_tree(folder / "steps" / "11")
    (folder / "steps" / "7").rename(folder / "steps" / "8")
    assert store.names("a/b/steps/") == ["a/b/steps/10/x", "a/b/steps/8/x", "a/b/steps/8/y/z"]
    remove_tree(folder / "steps" / "8")
    remove_tree(folder / "steps" / "8", ignore_errors=True)
    (folder / "steps" / "10" / "x").unlink(missing_ok=True)
    (folder / "steps" / "10" / "x").unlink(missing_ok=True)
    assert store.names("a/b") == ["a/b/steps.txt"]
    big = bytes(range(256)) * 2**12 * 60
    with staged_files(folder, ("big",)) as stage:
        (stage / "big").write_bytes(big)
    with local_copy(folder / "big") as copy:
        assert copy.read_bytes() == big
    assert not copy.exists()


def test_a_slow_response_is_warned_about(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "SLOW_RESPONSE_SECONDS", 0.05)
    store.before = lambda verb, name: time.sleep(0.3)
    with pytest.warns(UserWarning, match="gs://bucket/a: no response from the store yet"):
        location("gs://bucket/a").write_text("a")
