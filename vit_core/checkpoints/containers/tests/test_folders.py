"""Which weights of a folder are opened, and what is said of files and folders that are not read."""

import gzip
import json
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import flax.serialization
import numpy as np
import pytest
import safetensors.numpy
import torch

from vit_core.checkpoints.containers import describe_kind, folders, open_container
from vit_core.checkpoints.run_folder import checkpoint_in
from vit_core.errors import InputError

WEIGHTS = {"w": np.arange(6.0).reshape(2, 3)}


def write(path: Path, value: float = 0.0) -> Path:
    """A file of weights of the kind that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {"w": WEIGHTS["w"] + value}
    if path.name.endswith(".safetensors"):
        safetensors.numpy.save_file(arrays, path)
    elif path.name.endswith(".msgpack"):
        path.write_bytes(flax.serialization.msgpack_serialize(dict(arrays)))
    elif path.name.endswith(".npz"):
        np.savez(path, **arrays)
    else:
        torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, path)
    return path


ORDER = [
    "model.safetensors",
    "pytorch_model.bin",
    "flax_model.msgpack",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
]


def test_the_usual_names_in_their_order(tmp_path: Path) -> None:
    for i, name in reversed(list(enumerate(ORDER))):
        write(tmp_path / name, i)
        opened = open_container(tmp_path)
        assert (opened.path, opened.arrays["w"][0, 0]) == (tmp_path / name, i)
        assert describe_kind(tmp_path) == f"a folder with {name}"


@pytest.mark.parametrize(
    "name",
    ["best.ckpt", "last.pth.tar", "w.pt", "w.pth", "w.bin", "w.npz", "vit.safetensors", "checkpoint.msgpack"],
)
def test_the_only_weights_whatever_stands_beside_them(tmp_path: Path, name: str) -> None:
    write(tmp_path / name)
    for other in ("training_args.bin", "optimizer.pt", "rng_state_0.pth", "scheduler.pt", ".hidden.pth"):
        write(tmp_path / other)
    (tmp_path / "args.yaml").write_text("a: 1")
    opened = open_container(tmp_path)
    assert (opened.path, opened.notes) == (tmp_path / name, ())
    assert describe_kind(tmp_path) == f"a folder with {name}"


def test_several_weights_are_named(tmp_path: Path) -> None:
    for name in ("last.ckpt", "epoch=3.ckpt"):
        write(tmp_path / name)
    with pytest.raises(InputError, match=r"not a checkpoint folder.*give one of its files: epoch=3.ckpt, last.ckpt"):
        open_container(tmp_path)


def test_weights_further_down_are_named(tmp_path: Path) -> None:
    for name in ("checkpoint-500", "checkpoint-1000"):
        write(tmp_path / name / "model.safetensors")
    (tmp_path / "runs").mkdir()
    with pytest.raises(InputError, match=r"give one of the folders in it: checkpoint-1000, checkpoint-500$"):
        open_container(tmp_path)


def test_runs_are_named_whose_checkpoints_are_further_down(tmp_path: Path) -> None:
    for name in ("first/checkpoint", "second/checkpoint"):
        write(tmp_path / name / "model.safetensors")
    write(tmp_path / "other" / "below" / "model.safetensors")
    with pytest.raises(InputError, match=r"give one of the folders in it: first, second$"):
        open_container(tmp_path)
    assert checkpoint_in(tmp_path / "first") == tmp_path / "first" / "checkpoint"


def test_a_folder_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other" / "private").mkdir(parents=True)
    write(tmp_path / "public" / "model.safetensors")
    real = folders._names

    def names(folder: Path) -> set[str]:
        if folder.name == "private":
            raise InputError(f"{folder}: cannot be read (Permission denied)")
        return real(folder)

    monkeypatch.setattr(folders, "_names", names)
    with pytest.raises(InputError, match=r"give one of the folders in it: public$"):
        open_container(tmp_path)


def test_hub_cache(tmp_path: Path) -> None:
    """As huggingface_hub lays it out: a link in the snapshot of a commit, and a file with the commit of a branch."""
    cache = tmp_path / "models--owner--vit"
    for commit, value in {"a" * 40: 1.0, "b" * 40: 2.0}.items():
        blob = write(cache / "blobs" / f"{commit[:4]}.safetensors", value)
        (cache / "snapshots" / commit).mkdir(parents=True)
        (cache / "snapshots" / commit / "model.safetensors").symlink_to(blob)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("b" * 40)
    opened = open_container(cache)
    assert opened.path == cache / "snapshots" / ("b" * 40) / "model.safetensors"
    assert opened.notes == ("read snapshot bbbbbbbbbbbb of a hub cache",)
    assert opened.arrays["w"][0, 0] == 2
    assert describe_kind(cache) == "a repository in a hub cache"
    with pytest.raises(InputError, match="give one of the folders in it: models--owner--vit"):
        open_container(tmp_path)
    for content in ("../../elsewhere", "c" * 40, "x" * 1000):
        (cache / "refs" / "main").write_text(content)
        with pytest.raises(InputError, match=r"without the snapshot of refs/main; give one of snapshots/aaa"):
            open_container(cache)
    (cache / "refs" / "main").unlink()
    (cache / "snapshots" / ("a" * 40) / "model.safetensors").unlink()
    (cache / "snapshots" / ("a" * 40)).rmdir()
    assert open_container(cache).arrays["w"][0, 0] == 2


@pytest.mark.parametrize("extension", ["bin", "msgpack", "safetensors"])
def test_shards_of_every_kind(tmp_path: Path, extension: str) -> None:
    stem = {"bin": "pytorch_model", "msgpack": "flax_model", "safetensors": "model"}[extension]
    weight_map = {}
    for i in range(2):
        shard = tmp_path / f"{stem}-0000{i + 1}-of-00002.{extension}"
        arrays = {f"layer{i}.w": np.full(2, i, np.float32), f"layer{i}.b": np.ones(1, np.float32)}
        names = [*arrays]
        if extension == "bin":
            torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, shard)
        elif extension == "msgpack":
            tree = {f"layer{i}": {"w": arrays[names[0]], "b": arrays[names[1]]}}
            shard.write_bytes(flax.serialization.msgpack_serialize(tree))
            names = [f"layer{i}/w", f"layer{i}/b"]
        else:
            safetensors.numpy.save_file(arrays, shard)
        weight_map |= dict.fromkeys(names, shard.name)
    (tmp_path / f"{stem}.{extension}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    opened = open_container(tmp_path)
    assert opened.kind == {"bin": "pth", "msgpack": "msgpack", "safetensors": "safetensors"}[extension] + " shards"
    assert set(opened.arrays) == set(weight_map)
    assert [opened.arrays[name].tolist() for name in weight_map] == [[0, 0], [1], [1, 1], [1]]
    (tmp_path / f"{stem}-00002-of-00002.{extension}").unlink()
    index = f"{stem}.{extension}.index.json"
    with pytest.raises(InputError, match=rf"00002-of-00002.* no such file; {index} names it as one of 2 shards"):
        open_container(tmp_path)


def test_an_index_that_names_what_a_shard_has_not(tmp_path: Path) -> None:
    write(tmp_path / "0.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    for weight_map in ({"w": "0.safetensors", "v": "0.safetensors"}, {"w": 5}, ["w"], {"w": ""}, {}):
        index.write_text(json.dumps({"weight_map": weight_map}))
        if weight_map == {}:
            assert dict(open_container(tmp_path).arrays) == {}
            continue
        with pytest.raises(InputError, match="not an index of shards"):
            open_container(tmp_path)


def test_shards_in_folders_below_their_index(tmp_path: Path) -> None:
    (tmp_path / "shards" / "b").mkdir(parents=True)
    safetensors.numpy.save_file({"u": np.ones(2)}, tmp_path / "shards" / "a.safetensors")
    safetensors.numpy.save_file({"v": np.zeros(1)}, tmp_path / "shards" / "b" / "c.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"u": "./shards/a.safetensors", "v": "shards\\b\\c.safetensors"}}))
    opened = open_container(tmp_path)
    assert {name: opened.arrays[name].tolist() for name in opened.arrays} == {"u": [1, 1], "v": [0]}
    for outside in ("../a.safetensors", "shards/../../a.safetensors", "/a.safetensors", "C:\\a.safetensors"):
        index.write_text(json.dumps({"weight_map": {"u": outside}}))
        with pytest.raises(InputError, match="which is outside of its folder; move the shards beside the index"):
            open_container(tmp_path)


def test_an_index_that_does_not_name_all_of_its_shards(tmp_path: Path) -> None:
    """Libraries read every array of the shards."""
    safetensors.numpy.save_file({"v": np.ones(2), "w": np.zeros(1)}, tmp_path / "0.safetensors")
    safetensors.numpy.save_file({"u": np.ones(3)}, tmp_path / "1.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"v": "0.safetensors", "u": "1.safetensors"}}))
    opened = open_container(tmp_path)
    assert (set(opened.arrays), opened.arrays["w"].tolist()) == ({"u", "v", "w"}, [0])
    assert opened.notes == ("arrays read although the index does not name them: w",)
    safetensors.numpy.save_file({"u": np.ones(3), "w": np.ones(1)}, tmp_path / "1.safetensors")
    opened = open_container(tmp_path)
    assert set(opened.arrays) == {"u", "v"}
    assert opened.notes == ("left out: in several shards and not in the index: w",)


def test_shards_without_their_index_are_named(tmp_path: Path) -> None:
    for i in (1, 2):
        write(tmp_path / f"model-0000{i}-of-00002.safetensors")
    with pytest.raises(
        InputError, match=r"has 2 shards without their index; add the file model.safetensors.index.json"
    ) as error:
        open_container(tmp_path)
    assert "\n" not in str(error.value)


def tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.add(write(path.with_name("inside.npz")), "w.npz")


def zipped(*names: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, b"x")

    return make


def holding(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


UNREAD: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "empty": ("w.pth", holding(b""), "an empty file"),
    "zeros": ("w.pth", holding(bytes(5000)), "a file of zeros, as an unfinished download is"),
    "LFS": ("w.pth", holding(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "a Git LFS pointer"),
    "HTML": ("w.pth", holding(b"\n<!DOCTYPE html><html><body>Not found"), "an HTML page"),
    "text": ("w.pth", holding("weights, öhm".encode()), "a text file"),
    "JSON": ("w.json", holding(b' {"a": 1}'), "a JSON file"),
    "zip": ("w.zip", zipped("folder/deep/data.pkl"), "a zip archive without weights at its top"),
    "cut zip": ("w.pth", lambda path: path.write_bytes(write(path).read_bytes()[:-90]) and None, "a damaged zip"),
    "tar": ("w.tar", tar, "a tar archive"),
    "gzip": ("w.gz", holding(gzip.compress(b"x")), "a gzip archive"),
    "GGUF": ("w.gguf", holding(b"GGUF\x03\0\0\0" + b"\1" * 20), "a GGUF file"),
    "ONNX": ("w.onnx", holding(b"\x08\x07\x12\x07pytorch\x1a\x051.0.0"), "an ONNX model"),
    "TensorFlow Lite": ("w.tflite", holding(b"\x1c\0\0\0TFL3" + bytes(40)), "a TensorFlow Lite model"),
    "TensorFlow index": (
        "w.index",
        holding(b"\0\0\x08\x08" * 20 + bytes.fromhex("57fb808b247547db")),
        "a TensorFlow checkpoint",
    ),
    "npy": ("w.npy", lambda path: np.save(path, np.ones(2)), "an .npy file"),
    "MATLAB": ("w.mat", holding(b"MATLAB 5.0 MAT-file, Platform: GLNXA64" + bytes(100)), "a MATLAB file"),
    "PNG": ("w.png", holding(b"\x89PNG\r\n\x1a\n" + bytes(20)), "a PNG image"),
    "noise": ("w.dat", holding(bytes(range(200, 256)) * 10), "a file of an unknown kind"),
}


@pytest.mark.parametrize("kind", UNREAD)
def test_files_that_are_not_read_are_named(tmp_path: Path, kind: str) -> None:
    name, make, text = UNREAD[kind]
    make(tmp_path / name)
    assert describe_kind(tmp_path / name).startswith(text)
    with pytest.raises(InputError) as caught:
        open_container(tmp_path / name)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / name}: {text}")
    assert ", expected safetensors, .npz, .pth, Flax's msgpack or Keras's .weights.h5; " in message
    assert "\n" not in message


READ = {
    "w.safetensors": "a safetensors file",
    "w.npz": "an .npz file of NumPy's",
    "w.pth": "a PyTorch file",
    "w.msgpack": "a msgpack file",
}


@pytest.mark.parametrize("name", READ)
def test_files_are_known_by_their_bytes(tmp_path: Path, name: str) -> None:
    write(tmp_path / name).rename(tmp_path / "w.dat")
    assert describe_kind(tmp_path / "w.dat") == READ[name]
    assert list(open_container(tmp_path / "w.dat").arrays) == ["w"]


FOLDERS = {
    "TensorFlow SavedModel": (["saved_model.pb", "variables"], "a TensorFlow SavedModel"),
    "TensorFlow": (["checkpoint", "m.ckpt-1.index", "m.ckpt-1.data-00000-of-00001"], "a TensorFlow checkpoint"),
    "DeepSpeed": (["zero_pp_rank_0_mp_rank_00_optim_states"], "a DeepSpeed ZeRO checkpoint in parts"),
    "empty": ([], "an empty folder"),
    "others": (["README.md"], "a folder without weights"),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_folders_that_are_not_read_are_named(tmp_path: Path, kind: str) -> None:
    names, text = FOLDERS[kind]
    for name in names:
        (tmp_path / name).write_text("model_checkpoint_path: x")
    assert describe_kind(tmp_path).startswith(text)
    with pytest.raises(InputError) as caught:
        open_container(tmp_path)
    assert (text if text[2] in "TD" else "not a checkpoint folder") in str(caught.value)


def test_what_is_missing(tmp_path: Path) -> None:
    for action in (open_container, describe_kind):
        with pytest.raises(InputError, match="no such file or folder"):
            action(tmp_path / "nowhere")


def test_large_files_are_described_at_once(tmp_path: Path) -> None:
    """64 GB of nothing, of which the first bytes are enough."""
    for name, start in {"w.safetensors": b"\x10\0\0\0\0\0\0\0{", "w.bin": b"\x80\x02", "w.dat": b"\xc8"}.items():
        with (tmp_path / name).open("wb") as file:
            file.write(start)
            file.truncate(2**36)
        begun = time.perf_counter()
        assert describe_kind(tmp_path / name)
        assert time.perf_counter() - begun < 0.5
