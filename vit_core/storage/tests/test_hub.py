"""Addresses in the Hugging Face Hub, against a stand-in on this machine."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from vit_core.errors import InputError
from vit_core.storage import (
    HubPath,
    StorageError,
    check_writable,
    local_copy,
    location,
    remove_tree,
    staged_files,
    writable_location,
)
from vit_core.storage.tests.hub_server import LARGE, TOKEN, Answer, Hub, Repository, Request, hub, use

__all__ = ["hub"]

BIG = bytes(range(256)) * 100
FILES = {"config.json": b"{}", "steps/7/x": b"7x", "steps/10/y/z": b"10yz", "big.bin": BIG}


def hub_path(address: str) -> HubPath:
    path = location(address)
    assert isinstance(path, HubPath)
    return path


def test_a_repository_is_a_folder(hub: Hub) -> None:
    hub.put("u/m", FILES)
    folder = hub_path("hf://u//m/")
    assert (str(folder), folder.name, folder.parent) == ("hf://u/m", "m", folder)
    inner = folder / "steps" / "10" / "y"
    assert (str(inner), inner.name, str(inner.parent), inner.parent.parent.parent) == (
        "hf://u/m/steps/10/y",
        "y",
        "hf://u/m/steps/10",
        folder,
    )
    assert [path.name for path in folder.iterdir()] == ["big.bin", "config.json", "steps"]
    assert [path.name for path in folder.glob("steps/[0-9]*")] == ["10", "7"]
    assert list(folder.glob("none/*")) == []
    assert {name: path.read_bytes() for name, path in folder.files().items()} == FILES
    assert sorted((folder / "steps").files()) == ["10/y/z", "7/x"]
    for path, kind in ((folder, "dir"), (folder / "steps", "dir"), (folder / "big.bin", "file"), (folder / "no", "")):
        assert (path.is_dir(), path.is_file(), path.exists()) == (kind == "dir", kind == "file", bool(kind))
    with pytest.raises(FileNotFoundError, match="hf://u/m/steps/9"):
        (folder / "steps" / "9").read_text()
    assert (folder / "big.bin").stat().st_size == len(BIG)
    assert (folder / "big.bin").read_head(300) == BIG[:300]
    with local_copy(folder / "big.bin") as copy:
        assert copy.read_bytes() == BIG


@pytest.mark.parametrize("spelled", ["v1", "refs/pr/1", "a%2Fb"])
def test_revisions(hub: Hub, spelled: str) -> None:
    hub.put("u/m", {"x": b"main"})
    number = hub.put("u/m", {"x": b"other", "inner/y": b"y"}, spelled.replace("%2F", "/"))
    for revision in (spelled, number):
        folder = hub_path(f"hf://u/m@{revision}")
        assert ((folder / "x").read_text(), folder.name, folder.parent) == ("other", "m", folder)
        assert list(folder.files()) == ["inner/y", "x"]
        assert [str(path) for path in folder.iterdir()] == [f"{folder}/inner", f"{folder}/x"]
        inner = location(f"hf://u/m@{revision}/inner/y")
        assert (inner.read_text(), inner.parent.parent) == ("y", folder)
    assert location("hf://u/m/x").read_text() == "main"


def test_all_that_is_read_through_an_address_is_of_one_commit(hub: Hub) -> None:
    hub.put("u/m", {"a": b"old", "b": b"old"})
    before = location("hf://u/m")
    assert (before / "a").read_text() == "old"
    hub.put("u/m", {"a": b"newer", "b": b"newer", "c": b""})
    assert ((before / "b").read_text(), (before / "c").exists()) == ("old", False)
    assert (location("hf://u/m") / "b").read_text() == "newer", "another address is looked up again"


WRITING: tuple[Callable[[HubPath, Path], object], ...] = (
    lambda path, file: path.mkdir(),
    lambda path, file: path.write_bytes(b""),
    lambda path, file: path.write_text(""),
    lambda path, file: path.upload(file),
    lambda path, file: path.rename(path),
    lambda path, file: path.unlink(missing_ok=True),
    lambda path, file: path.remove_tree(),
    lambda path, file: remove_tree(path, ignore_errors=True),
    lambda path, file: check_writable(path),
    lambda path, file: staged_files(path, ("a",)).__enter__(),
    lambda path, file: writable_location(str(path)),
)


@pytest.mark.parametrize("write", WRITING)
def test_nothing_can_be_written(hub: Hub, tmp_path: Path, write: Callable[[HubPath, Path], object]) -> None:
    (tmp_path / "file").write_bytes(b"")
    line = "^hf://u/m@main/x: hf:// can only be read; to upload a checkpoint, run vit push CHECKPOINT u/m$"
    with pytest.raises(InputError, match=line):
        write(hub_path("hf://u/m@main/x"), tmp_path / "file")
    assert hub.log == [], "refused before anything is asked"


@pytest.mark.parametrize(
    ("address", "line"),
    [
        ("hf://none/m", r"^hf://none/m: no such repository, or it is private; check the name, and log in \(hf auth"),
        ("hf://u/private", r"^hf://u/private: no such repository, or it is private"),
        ("hf://u/m@none", r"^hf://u/m@none: no such revision; give a branch, a tag or a commit"),
        ("hf://u/gated/x", r"^hf://u/gated/x: the owner has to grant access: ask for it on the model's page, and log"),
        ("hf://datasets/u/m", r"^hf://datasets/u/m: is a dataset; expected a model: hf://USER/MODEL"),
        ("hf://gpt2", r"^hf://gpt2: expected hf://USER/MODEL\[@REVISION\]\[/PATH\] \(Repository id must be"),
        ("hf://", r"^hf://: expected hf://USER/MODEL"),
    ],
)
def test_what_cannot_be_had(hub: Hub, address: str, line: str) -> None:
    hub.repositories |= {"u/m": Repository(), "u/private": Repository(private=True), "u/gated": Repository(gated=True)}
    for repository in hub.repositories.values():
        repository.commit({"x": b"x"})
    with pytest.raises(InputError, match=line):
        location(address).read_text()


def test_a_private_repository_is_read_with_a_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.repositories["u/m"] = Repository(private=True, gated=True)
    hub.put("u/m", {"big": BIG})
    assert location("hf://u/m/big").read_bytes() == BIG
    with local_copy(location("hf://u/m/big")) as copy:
        assert copy.read_bytes() == BIG
    elsewhere = [request for request in hub.log if request.path.startswith("/stored/")]
    assert [request.headers.get("authorization") for request in elsewhere] == [None, None], "the token stays in the Hub"


def test_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    use("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(StorageError, match=r"^hf://u/m: cannot reach http://127.0.0.1:9 \(.*\); check the connection"):
        location("hf://u/m").exists()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()
    with pytest.raises(StorageError, match=r"^hf://u/m: HF_HUB_OFFLINE is set; remove it, or give a local copy$"):
        location("hf://u/m").exists()
    close_session()


def test_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vit_core.storage.hub.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"^hf://u/m: needs huggingface_hub: pip install 'vit-parity\[hub\]'$"):
        location("hf://u/m")


def test_a_connection_that_breaks_is_made_again(hub: Hub) -> None:
    hub.put("u/m", {"big": BIG})
    breaks = iter(range(3))

    def break_off(request: Request) -> Answer | None:
        if request.path.startswith("/stored/") and next(breaks, None) is not None:
            start = int(request.headers["range"].removeprefix("bytes=").split("-")[0])
            ends = {"Content-Range": f"bytes {start}-{len(BIG) - 1}/{len(BIG)}"}
            return Answer(206, BIG[start : start + 1000], ends, len(BIG) - start)
        return None

    hub.instead = break_off
    assert location("hf://u/m/big").read_bytes() == BIG
    starts = [start for start, _ in hub.fetched("big")]
    assert starts[0] == 0
    assert starts == sorted(set(starts)), "each goes on where the last one ended"


def sends(
    status: int, body: bytes = b"", length: int | None = None, **headers: str
) -> Callable[[Request], Answer | None]:
    """Answers so to every request for a file's contents."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda request: (
        Answer(status, body, named, length) if request.method == "GET" and "/resolve/" in request.path else None
    )


@pytest.mark.parametrize(
    ("instead", "line"),
    [
        (sends(206, BIG, Content_Range=f"bytes 0-{len(BIG)}/{len(BIG) + 1}"), "sent other bytes than requested"),
        (sends(206, b"short", len(BIG), Content_Range=f"bytes 0-{len(BIG) - 1}/{len(BIG)}"), "sent other bytes"),
        (sends(206, BIG), "sent other bytes than requested"),
        (sends(200, b"short"), "sent other bytes than requested"),
        (sends(200, BIG, 10**15), None),
        (sends(302, b"", Location="/u/m/resolve/main/big"), "edirect"),
        (sends(403, b"", X_Error_Message="Forbidden"), r"access refused \(.*\); log in"),
        (sends(404, b"", X_Error_Code="EntryNotFound"), "no such file"),
    ],
)
def test_a_hub_that_sends_something_else(
    hub: Hub, instead: Callable[[Request], Answer | None], line: str | None
) -> None:
    hub.put("u/m", {"big": BIG})
    path, hub.instead = location("hf://u/m/big"), instead
    if line is None:  # more than there should be: the rest is not waited for
        assert path.read_bytes() == BIG
        return
    with pytest.raises((StorageError, FileNotFoundError), match=line) as caught:
        path.read_bytes()
    assert "signature" not in str(caught.value)


def test_a_download_of_another_size(hub: Hub, tmp_path: Path) -> None:
    hub.put("u/m", {"big": BIG})
    path = hub_path("hf://u/m/big")
    assert path.is_file()
    hub.instead = sends(200, BIG + b"more")
    with pytest.raises(StorageError):
        path.download(tmp_path / "file")


@pytest.mark.parametrize("name", ["../../evil", "/evil", "a\\..\\evil", "a/../../evil"])
def test_names_that_lie_elsewhere(hub: Hub, tmp_path: Path, name: str) -> None:
    hub.put("u/m", {"folder/" + name: b"evil", "folder/x": b""})
    with pytest.raises(InputError, match=r"^hf://u/m/folder: has an object with the name '.*evil'; rename it$"):
        hub_path("hf://u/m/folder").files()


def test_nothing_is_logged(hub: Hub, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    hub.put("u/m", {"x": b"x" * LARGE})
    failures = iter([Answer(503, headers={"Retry-After": "0"})])
    hub.instead = lambda request: next(failures, None) if "/resolve/" in request.path else None
    with caplog.at_level(logging.DEBUG, "httpx"):
        assert location("hf://u/m/x").read_text() == "x" * LARGE
    assert next(failures, None) is None, "it was asked again"
    assert [record.message for record in caplog.records if record.name.startswith("huggingface_hub")] == []
    assert "".join(capfd.readouterr()) == ""
