"""Files of named arrays: what their own libraries write is read here, what is written here they read."""

import json
import mmap
import os
import tracemalloc
import zipfile
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch

from vit_core import InputError
from vit_core.arrays import LazyArray, LazyArrays, contiguous
from vit_core.checkpoints.containers import open_container, write_npz, write_pth, write_safetensors

RNG = np.random.default_rng(0)
ARRAYS = {
    "matrix": RNG.standard_normal((3, 5)).astype(np.float32),
    "half": RNG.standard_normal((7,)).astype(ml_dtypes.bfloat16),
    "scalar": np.array(3.5),
    "a/b.c": RNG.standard_normal((2, 1, 2)).astype(np.float16),
}


def same(found: LazyArrays, expected: dict[str, np.ndarray]) -> None:
    assert set(found) == set(expected)
    for name, array in expected.items():
        entry = found.entries[name]
        assert (entry.shape, entry.dtype) == (array.shape, array.dtype.name)
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
        found[name][...] = 0  # each reading is one's own
        np.testing.assert_array_equal(found[name], array)


def error(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        list(open_container(path).arrays.values())
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_safetensors_both_ways(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "ours", LazyArrays.of(ARRAYS), {"key": "value"})
    theirs = safetensors.numpy.load_file(tmp_path / "ours")
    same(LazyArrays.of(theirs), ARRAYS)
    with safetensors.safe_open(tmp_path / "ours", "np") as file:
        assert file.metadata() == {"key": "value"}
    safetensors.numpy.save_file(ARRAYS, tmp_path / "theirs")
    same(open_container(tmp_path / "theirs").arrays, ARRAYS)
    same(open_container(tmp_path / "ours").arrays, ARRAYS)


def test_npz_both_ways(tmp_path: Path) -> None:
    write_npz(tmp_path / "ours.npz", LazyArrays.of(ARRAYS))
    with np.load(tmp_path / "ours.npz", allow_pickle=False) as theirs:
        assert theirs["half"].dtype == "V2", "as NumPy writes bfloat16"
        same(LazyArrays.of({**theirs, "half": theirs["half"].view(ml_dtypes.bfloat16)}), ARRAYS)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "theirs.npz", **ARRAYS)
        same(open_container(tmp_path / "theirs.npz").arrays, ARRAYS)
    write_npz(tmp_path / "again.npz", LazyArrays.of(ARRAYS))
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "ours.npz").read_bytes()


def test_npz_in_fortran_order(tmp_path: Path) -> None:
    matrix = np.asfortranarray(ARRAYS["matrix"])
    np.savez(tmp_path / "f.npz", matrix=matrix)
    same(open_container(tmp_path / "f.npz").arrays, {"matrix": ARRAYS["matrix"]})


def test_npz_from_a_machine_of_the_other_byte_order(tmp_path: Path) -> None:
    np.savez(tmp_path / "big.npz", matrix=ARRAYS["matrix"].astype(">f4"), half=ARRAYS["a/b.c"].astype(">f2"))
    same(open_container(tmp_path / "big.npz").arrays, {"matrix": ARRAYS["matrix"], "half": ARRAYS["a/b.c"]})


def test_one_layer_of_a_stack_reads_no_more_of_a_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "stack.npz", kernel=np.zeros((4, 2**17), np.float32))
    array = open_container(tmp_path / "stack.npz").arrays["kernel"]
    assert not array.flags.owndata, "mapped"
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    assert isinstance(base.obj, mmap.mmap)


@pytest.mark.parametrize("name", ["w.npz", "w.pth", "w.safetensors"])
def test_many_arrays_keep_few_files_open(tmp_path: Path, name: str) -> None:
    arrays = LazyArrays.of({f"w{i}": np.full(3, i, np.float32) for i in range(1500)})
    writers = {"w.npz": write_npz, "w.pth": write_pth, "w.safetensors": partial(write_safetensors, metadata={})}
    writers[name](tmp_path / name, arrays)  # type: ignore[operator]
    before = len(os.listdir("/proc/self/fd"))
    opened = open_container(tmp_path / name).arrays
    kept = {array: opened[array] for array in opened}
    assert len(os.listdir("/proc/self/fd")) < before + 10
    assert sum(array.sum() for array in kept.values()) == 3 * 1499 * 1500 / 2


@pytest.mark.parametrize("name", ["w.npz", "w.pth", "w.safetensors"])
def test_writing_holds_one_array_at_a_time(tmp_path: Path, name: str) -> None:
    size = 2**20
    entry = LazyArray((size,), "float32", lambda: np.ones(size, np.float32))
    arrays = LazyArrays({f"w{i}": entry for i in range(12)})
    writers = {"w.npz": write_npz, "w.pth": write_pth, "w.safetensors": partial(write_safetensors, metadata={})}
    tracemalloc.start()
    try:
        writers[name](tmp_path / name, arrays)  # type: ignore[operator]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2.5 * 4 * size
    assert (tmp_path / name).stat().st_size > 12 * 4 * size


@pytest.mark.parametrize("legacy", [False, True])
def test_pth_both_ways(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "w.pth"
    if legacy:
        tensors = {n: torch.from_numpy(np.asarray(a, np.float32)) for n, a in ARRAYS.items()}
        torch.save(tensors, path, _use_new_zipfile_serialization=False)
        same(open_container(path).arrays, {name: array.astype(np.float32) for name, array in ARRAYS.items()})
        return
    write_pth(path, LazyArrays.of(ARRAYS))
    theirs = torch.load(path, weights_only=True)
    assert theirs["half"].dtype == torch.bfloat16
    torch.testing.assert_close(theirs["matrix"], torch.from_numpy(ARRAYS["matrix"]), rtol=0, atol=0)
    same(open_container(path).arrays, ARRAYS)


def test_pth_of_training_scripts(tmp_path: Path) -> None:
    """Nested, with settings and an optimizer beside the weights."""
    weights = {"w": torch.ones(2)}
    saved = {"student": {"w": torch.zeros(2)}, "teacher": weights, "epoch": 3, "args": Namespace(lr=0.1)}
    torch.save(saved, tmp_path / "dino.pth")
    opened = open_container(tmp_path / "dino.pth")
    same(opened.arrays, {"student.w": np.zeros(2, np.float32), "teacher.w": np.ones(2, np.float32)})
    assert (opened.tree["epoch"], opened.tree["args"]) == (3, {"lr": 0.1})
    assert opened.notes == ()


def test_pth_of_notebooks(tmp_path: Path) -> None:
    """Parameters that still have gradients, a loss beside the weights, long names."""
    torch.save(dict(torch.nn.Linear(2, 3).named_parameters()), tmp_path / "model.pth")
    assert list(open_container(tmp_path / "model.pth").arrays) == ["weight", "bias"]
    assert open_container(tmp_path / "model.pth").arrays["weight"].shape == (3, 2)
    saved = {"model": {"w": torch.ones(2)}, "loss": torch.tensor(0.3), **{f"{i}" * 99: i for i in range(9)}}
    torch.save(saved, tmp_path / "nested.pth")
    opened = open_container(tmp_path / "nested.pth")
    same(opened.arrays, {"model.w": np.ones(2, np.float32), "loss": np.array(0.3, np.float32)})
    assert opened.tree["0" * 99] == 0


def test_pth_that_promises_more_than_it_holds(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "bomb.pth")
    assert "w has shape [1000000, 1000000], but the file has fewer elements" in error(tmp_path / "bomb.pth")


def test_pth_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        write_pth(tmp_path / "nowhere" / "w.pth", {"w": np.ones(2)})


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('code ran')",))


def test_code_is_never_run(tmp_path: Path) -> None:
    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    assert "has no tensors that can be read without running its code" in error(tmp_path / "evil.pth")
    np.savez(tmp_path / "evil.npz", w=np.array([Evil()], dtype=object))
    assert "Python objects are never read" in error(tmp_path / "evil.npz")


def shards(folder: Path, weight_map: dict[str, str]) -> Path:
    names = sorted(ARRAYS)
    for i, part in enumerate((names[:2], names[2:])):
        safetensors.numpy.save_file({name: ARRAYS[name] for name in part}, folder / f"{i}.safetensors")
    default = {name: f"{i // 2}.safetensors" for i, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {**default, **weight_map}}))
    return folder


def test_shards(tmp_path: Path) -> None:
    same(open_container(shards(tmp_path, {})).arrays, ARRAYS)


@pytest.mark.parametrize("shard", ["../1.safetensors", "missing.safetensors", "model.safetensors.index.json"])
def test_shards_elsewhere_are_refused(tmp_path: Path, shard: str) -> None:
    error(shards(tmp_path, {"matrix": shard}))


def test_what_is_no_container(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("weights, honestly")
    assert "expected safetensors, .npz, .pth" in error(tmp_path / "text")
    assert "no such file" in error(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "not a checkpoint folder" in error(tmp_path / "empty")


def test_sizes_are_checked_before_memory_is_taken(tmp_path: Path) -> None:
    """A header that promises more than there is: 4 TB of zeros that two bytes would make."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }"
    header += b" " * (118 - len(header) - 1) + b"\n"
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 8)
    assert "has 8 bytes for shape [1000000, 1000000]" in error(tmp_path / "bomb.npz")


def test_a_promise_that_is_not_kept_is_no_file(tmp_path: Path) -> None:
    lying = LazyArrays({"w": LazyArray((2,), "float32", lambda: np.zeros(3, np.float32))})
    with pytest.raises(AssertionError, match=r"w is float32 \(3,\), expected float32 \(2,\)"):
        write_safetensors(tmp_path / "w", lying, {})


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)])
@pytest.mark.parametrize("shape", [(2, 3, 4), (33, 17, 40), (1, 16, 16), (0, 2, 3)])
def test_contiguous_copies(shape: tuple[int, ...], order: tuple[int, ...]) -> None:
    array = RNG.standard_normal(shape).astype(np.float32).transpose(order)
    copied = contiguous(array)
    assert copied.flags.c_contiguous
    np.testing.assert_array_equal(copied, array)


def test_contiguous_scalars_and_reversed() -> None:
    assert contiguous(np.array(2.0)) == 2
    np.testing.assert_array_equal(contiguous(np.arange(40.0)[::-1]), np.arange(40.0)[::-1])
