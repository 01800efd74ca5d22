"""Containers in an object store: copied to a temporary folder that lives as long as somebody may read from it."""

import gc
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.serialization
import fsspec
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
import torch
import torch.distributed.checkpoint as dcp

from vit_core.checkpoints.containers import describe_kind, open_container, open_safetensors, partial_copy
from vit_core.checkpoints.containers import safetensors as safetensors_reader
from vit_core.errors import InputError
from vit_core.storage import StorePath, location
from vit_core.storage.tests.hub_server import Hub, hub

__all__ = ["hub"]

ARRAYS = {"a": np.arange(6.0).reshape(2, 3), "b": np.ones(3, np.float32)}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StorePath]:
    """A bucket in memory; temporary folders are made in `tmp_path / "temporary"`."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    yield StorePath.parse("memory://bucket/checkpoints")
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


def upload(local: Path, target: StorePath) -> StorePath:
    """Every file below a folder, or a file."""
    if local.is_file():
        target.write_bytes(local.read_bytes())
    else:
        for file in local.rglob("*"):
            if file.is_file():
                (target / file.relative_to(local).as_posix()).write_bytes(file.read_bytes())
    return target


def temporary(tmp_path: Path) -> list[str]:
    gc.collect()
    return os.listdir(tmp_path / "temporary")


def tensors() -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array.copy()) for name, array in ARRAYS.items()}


def make(folder: Path, kind: str) -> Path:
    folder.mkdir()
    if kind == "safetensors":
        safetensors.numpy.save_file(ARRAYS, folder / "w.safetensors")
    elif kind == "npz":
        np.savez(folder / "w.npz", **ARRAYS)
    elif kind == "pth":
        torch.save(tensors(), folder / "w.pth")
    elif kind == "old pth":
        torch.save(tensors(), folder / "w.pth", _use_new_zipfile_serialization=False)
    elif kind == "msgpack":
        (folder / "w.msgpack").write_bytes(flax.serialization.msgpack_serialize(dict(ARRAYS)))
    elif kind == "orbax":
        ocp.PyTreeCheckpointer().save(folder / "w", ARRAYS)
    elif kind == "dcp":
        dcp.save(tensors(), checkpoint_id=folder / "w", no_dist=True)
    return next(iter(folder.iterdir()))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize(
    "kind",
    [
        "safetensors",
        "npz",
        "pth",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("old pth", "msgpack", "orbax", "dcp")),
    ],
)
def test_every_kind(tmp_path: Path, store: StorePath, kind: str) -> None:
    local = make(tmp_path / "local", kind)
    path = upload(local, store / local.name)
    opened: Any = open_container(path)
    assert opened.path == path
    assert opened.kind == open_container(local).kind
    assert describe_kind(path).split(",")[0] in describe_kind(local) or kind in ("npz", "pth")
    arrays = opened.arrays
    del opened
    assert len(temporary(tmp_path)) == 1
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array)
    del arrays
    assert temporary(tmp_path) == []


def test_folders(tmp_path: Path, store: StorePath) -> None:
    """Only the chosen file is copied; errors name the address."""
    path = store / "hub"
    upload(make(tmp_path / "local", "safetensors"), path / "model.safetensors")
    (path / "optimizer.pt").write_bytes(b"\x80\x02}.")
    opened = open_container(path)
    assert opened.path == path / "model.safetensors"
    assert describe_kind(path) == "a folder with model.safetensors"
    folder = tmp_path / "temporary" / temporary(tmp_path)[0]
    assert len(list(folder.iterdir())) == 1
    (path / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(InputError, match=r"^memory://bucket/checkpoints/hub/model.safetensors: not a complete"):
        open_container(path)
    with pytest.raises(InputError, match=r"^memory://bucket/checkpoints/none: no such file or folder"):
        open_container(store / "none")


def test_shards(tmp_path: Path, store: StorePath) -> None:
    for name, array in ARRAYS.items():
        safetensors.numpy.save_file({name: array}, tmp_path / f"{name}.safetensors")
        upload(tmp_path / f"{name}.safetensors", store / f"{name}.safetensors")
    index = {"weight_map": {name: f"{name}.safetensors" for name in ARRAYS}}
    (store / "model.safetensors.index.json").write_text(json.dumps(index))
    arrays = open_container(store).arrays
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array)
    del arrays
    assert temporary(tmp_path) == []


def test_hub_cache(tmp_path: Path, store: StorePath) -> None:
    commit = "a" * 40
    upload(make(tmp_path / "local", "safetensors"), store / "snapshots" / commit / "model.safetensors")
    (store / "refs" / "main").write_text(commit)
    opened = open_container(store)
    assert opened.notes == ("read snapshot aaaaaaaaaaaa of a hub cache",)
    np.testing.assert_array_equal(opened.arrays["a"], ARRAYS["a"])


def test_safetensors_whatever_it_is_called(tmp_path: Path, store: StorePath) -> None:
    path = upload(make(tmp_path / "local", "safetensors"), store / "w.bin")
    np.testing.assert_array_equal(open_safetensors(path).arrays["a"], ARRAYS["a"])
    path = upload(make(tmp_path / "other", "npz"), store / "w.npz")
    with pytest.raises(InputError, match=r"memory://.*w.npz: not a complete safetensors file"):
        open_safetensors(path)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> int:
    """What is fetched together is made small, and with it the files of the tests."""
    monkeypatch.setattr(partial_copy, "_BLOCK", 1000)
    monkeypatch.setattr(safetensors_reader, "AHEAD", 5000)
    return 1000


def test_safetensors_from_the_hub_in_parts(hub: Hub, small_blocks: int) -> None:
    """Opening fetches the header; an array its own bytes and some that follow; all arrays each byte once."""
    arrays = {f"{i:02}": np.random.default_rng(i).normal(size=(10, 100)) for i in range(20)}
    file = safetensors.numpy.save(arrays, {"a": "b"})
    hub.put("u/m", {"model.safetensors": file, "other.bin": b"\0" * 5000})
    opened = open_container(location("hf://u/m"))
    header = 8 + int.from_bytes(file[:8], "little")
    assert hub.fetched("model.safetensors") == [(0, 1000), (1000, -(-header // 1000) * 1000)]
    np.testing.assert_array_equal(opened.arrays["10"], arrays["10"])
    start, end = hub.fetched("model.safetensors")[2]
    assert start <= header + 10 * 8000
    assert header + 11 * 8000 <= end <= header + 11 * 8000 + 1000
    for name, array in arrays.items():
        np.testing.assert_array_equal(opened.arrays[name], array)
    ranges = sorted(hub.fetched("model.safetensors"))
    assert [start for start, _ in ranges] == [0, *(end for _, end in ranges[:-1])]
    assert ranges[-1][1] == len(file)
    assert hub.fetched("other.bin") == []


def test_small_arrays_are_fetched_together(hub: Hub, small_blocks: int) -> None:
    arrays = {f"{i:03}": np.full(50, i, np.float32) for i in range(200)}
    hub.put("u/m", {"model.safetensors": safetensors.numpy.save(arrays)})
    opened = open_container(location("hf://u/m"))
    before = len(hub.fetched("model.safetensors"))
    for name, array in arrays.items():
        np.testing.assert_array_equal(opened.arrays[name], array)
    assert len(hub.fetched("model.safetensors")) - before <= 200 * 200 / 5000 + 1


@pytest.mark.parametrize("kind", ["npz", "pth", "old pth", "msgpack", "orbax"])
def test_other_kinds_from_the_hub_whole(tmp_path: Path, hub: Hub, small_blocks: int, kind: str) -> None:
    local = make(tmp_path / "local", kind)
    files = [local] if local.is_file() else [file for file in local.rglob("*") if file.is_file()]
    hub.put("u/m", {file.relative_to(tmp_path / "local").as_posix(): file.read_bytes() for file in files})
    opened: Any = open_container(location(f"hf://u/m/{local.name}"))
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(opened.arrays[name], array)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file[: len(file) // 2],
        lambda file: (2**40).to_bytes(8, "little") + file[8:],
        lambda file: file[:8] + b"[" + file[9:],
        lambda file: file.replace(b'"data_offsets":[0,', b'"data_offsets":[9,'),
        lambda file: file[:8] + b'{"a":{"dtype":"F64","shape":[1],"data_offsets":[-8,0]}}' + file[62:],
    ],
)
def test_damaged_safetensors_in_the_hub(hub: Hub, damage: Any) -> None:
    hub.put("u/m", {"model.safetensors": damage(safetensors.numpy.save(ARRAYS))})
    with pytest.raises(InputError, match=r"^hf://u/m/model.safetensors: "):
        open_container(location("hf://u/m"))
