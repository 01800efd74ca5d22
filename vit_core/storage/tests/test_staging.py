"""Files appear complete or not at all, whatever other processes do in the same folder and whenever one is killed."""

import os
import threading
from pathlib import Path

import pytest

from vit_core.errors import InputError
from vit_core.storage import StorePath, location, staged_files


def contents(folder: Path) -> dict[str, str]:
    """Every file in a folder, hidden ones and subfolders too."""
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_files_are_replaced_together_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with staged_files(tmp_path, ("a", "b")) as stage:
        (stage / "a").write_text("new")
        assert (tmp_path / "a").read_text() == "old"
        (stage / "b").write_text("more")
    assert contents(tmp_path) == {"a": "new", "b": "more"}


def test_an_exception_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")

    def write_and_fail(stage: Path) -> None:
        (stage / "a").write_text("new")
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"), staged_files(tmp_path, ("a",)) as stage:
        write_and_fail(stage)
    assert contents(tmp_path) == {"a": "old"}


def test_permissions_are_those_of_a_new_file(tmp_path: Path) -> None:
    """Libraries that write through temporary files leave them readable for their owner only."""
    (tmp_path / "created").write_text("")
    with staged_files(tmp_path, ("a",)) as stage:
        (stage / "a").write_text("")
        (stage / "a").chmod(0o600)
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "created").stat().st_mode


def test_the_umask_of_other_threads_is_never_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def umask(mask: int) -> int:
        raise AssertionError("os.umask changes the whole process")

    monkeypatch.setattr(os, "umask", umask)
    with staged_files(tmp_path, ("a",)) as stage:
        (stage / "a").write_text("")
    assert contents(tmp_path) == {"a": ""}


def test_stages_of_living_writers_stay_and_those_of_dead_ones_go(tmp_path: Path) -> None:
    dead = tmp_path / ".saving-dead"
    dead.mkdir()
    (dead / "a").write_text("half")
    with staged_files(tmp_path, ("a",)) as first:
        (first / "a").write_text("first")
        with staged_files(tmp_path, ("b",)) as second:  # removes what dead processes left
            assert not dead.exists()
            assert first.is_dir()
            (second / "b").write_text("second")
    assert contents(tmp_path) == {"a": "first", "b": "second"}


def test_a_stage_is_held_until_its_last_file_is_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second writer that begins while the first one replaces its files does not remove the first one's stage."""
    replace = os.replace

    def replace_beside_another_writer(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "replace", replace)
        with staged_files(tmp_path, ("b",)) as second:
            (second / "b").write_text("second")
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_beside_another_writer)
    with staged_files(tmp_path, ("a", "c")) as first:
        (first / "a").write_text("first")
        (first / "c").write_text("third")
    assert contents(tmp_path) == {"a": "first", "b": "second", "c": "third"}


def test_parallel_writers_into_one_folder(tmp_path: Path) -> None:
    def write(name: str) -> None:
        for _ in range(20):
            with staged_files(tmp_path, (name,)) as stage:
                (stage / name).write_text(name)

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert contents(tmp_path) == {name: name for name in "abcd"}


def test_a_folder_in_the_way_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match=r"a is a directory.*choose a writable folder"), staged_files(tmp_path, ("a",)):
        pass


def test_a_store_gets_every_file_whole() -> None:
    folder = location("memory://staging/run")
    assert isinstance(folder, StorePath)
    with staged_files(folder, ("a", "b")) as stage:
        (stage / "a").write_text("1")
        (stage / "b").write_text("2")
        assert not folder.exists()
    assert {name: path.read_text() for name, path in folder.files().items()} == {"a": "1", "b": "2"}
