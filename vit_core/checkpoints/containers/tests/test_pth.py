"""PyTorch's files: what torch.load(weights_only=True) gives of a file is what is read here, bit for bit."""

import io
import json
import pickle
import subprocess
import sys
import zipfile
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict
from enum import Enum
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from vit_core.arrays import LazyArray, LazyArrays
from vit_core.checkpoints.containers import Container, StandIn, describe_kind, open_container, write_pth
from vit_core.errors import InputError

BASE = torch.arange(120.0).reshape(2, 3, 4, 5)
KINDS = "float16 bfloat16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool complex64 complex128"
FLOAT8 = "float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz"


def tensors() -> dict[str, torch.Tensor]:
    """Every type, and every way in which a tensor can lie in its storage."""
    layer = torch.nn.BatchNorm1d(3)
    shared = torch.arange(10.0)
    return {
        **{kind: torch.tensor([[0, 1, 2], [3, 4, 5]]).to(getattr(torch, kind)) for kind in KINDS.split()},
        "permuted": BASE.permute(3, 0, 2, 1),
        "sliced": BASE[1, :, 1:3, ::2],
        "offset": BASE.reshape(-1)[7:19],
        "expanded": torch.arange(3.0).expand(4, 3),
        "expanded parameter": torch.ones(1).expand(300, 200),
        "scalar": torch.tensor(3.5),
        "scalar of a view": BASE[1, 2, 3, 4],
        "empty": torch.empty(0, 3),
        "one": torch.tensor([[[7.0]]]),
        "shared": shared,
        "shared twice": shared,
        "part of it": shared[2:6].view(2, 2),
        "transposed part": shared[:6].view(2, 3).t(),
        "channels last": BASE.contiguous(memory_format=torch.channels_last),
        **dict(layer.named_parameters()),
        **dict(layer.named_buffers()),
    }


def same_as_torch(opened: Container, expected: dict[str, torch.Tensor]) -> None:
    """The same names in the same order, shapes, types and bits, and arrays that one may write into."""
    assert list(opened.arrays) == list(expected)
    for name, tensor in expected.items():
        entry, array = opened.arrays.entries[name], opened.arrays[name]
        assert entry.shape == array.shape == tuple(tensor.shape), name
        assert entry.dtype == array.dtype.name == str(tensor.dtype).removeprefix("torch."), name
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        np.testing.assert_array_equal(array.reshape(-1).view(np.uint8), raw, err_msg=name)
        array[...] = 0  # each reading is one's own
        np.testing.assert_array_equal(opened.arrays[name].reshape(-1).view(np.uint8), raw, err_msg=name)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_zip_format(tmp_path: Path, protocol: int) -> None:
    torch.save(tensors(), path := tmp_path / "w.pth", pickle_protocol=protocol)
    opened = open_container(path)
    assert (opened.kind, opened.notes) == ("pth", ())
    # Its restricted reader does not know all instructions of protocol 4.
    same_as_torch(opened, torch.load(path, weights_only=protocol < 4))


@pytest.mark.parametrize("kind", FLOAT8.split())
def test_float8(tmp_path: Path, kind: str) -> None:
    torch.save({"w": torch.tensor([0.5, 2.0, -3.0]).to(getattr(torch, kind))}, path := tmp_path / "w.pth")
    same_as_torch(open_container(path), torch.load(path, weights_only=True))


@pytest.mark.parametrize("protocol", [2, 4])
def test_format_before_1_6(tmp_path: Path, protocol: int) -> None:
    expected = {name: tensor for name, tensor in tensors().items() if name not in ("uint16", "uint32", "uint64")}
    path = tmp_path / "w.pth"
    torch.save(expected, path, _use_new_zipfile_serialization=False, pickle_protocol=protocol)
    assert path.read_bytes()[:2] != b"PK"
    assert describe_kind(path) == "a PyTorch file"
    same_as_torch(open_container(path), torch.load(path, weights_only=protocol < 4))


def test_big_endian(tmp_path: Path) -> None:
    expected = {kind: tensors()[kind] for kind in ("float32", "bfloat16", "int64", "permuted")}
    torch.save(expected, path := tmp_path / "w.pth")
    swapped = tmp_path / "swapped.pth"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(swapped, "w") as new:
        sizes = {"w/data/0": 4, "w/data/1": 2, "w/data/2": 8, "w/data/3": 4}
        for info in old.infolist():
            content = old.read(info)
            if info.filename in sizes:
                content = np.frombuffer(content, f"u{sizes[info.filename]}").byteswap().tobytes()
            new.writestr(info.filename, b"big" if info.filename.endswith("byteorder") else content)
    same_as_torch(open_container(swapped), expected)
    same_as_torch(open_container(swapped), torch.load(swapped, weights_only=True))


def test_repacked_with_compression(tmp_path: Path) -> None:
    torch.save(tensors(), path := tmp_path / "w.pth")
    packed = tmp_path / "packed.pth"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    same_as_torch(open_container(packed), torch.load(path, weights_only=True))


def test_state_dict_of_a_module(tmp_path: Path) -> None:
    """An OrderedDict with versions of its modules, and parameters with attributes of their own."""
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    torch.save(module.state_dict(), path := tmp_path / "w.pth")
    same_as_torch(open_container(path), torch.load(path, weights_only=True))
    parameter = torch.nn.Parameter(torch.ones(2, 3))
    parameter.is_norm = True
    torch.save({"w": parameter}, path)
    same_as_torch(open_container(path), {"w": parameter})


def test_a_tensor_alone_and_a_list(tmp_path: Path) -> None:
    torch.save(torch.ones(2), path := tmp_path / "w.pth")
    same_as_torch(open_container(path), {"": torch.ones(2)})
    torch.save([{"w": torch.ones(2)}, (torch.zeros(1), 5)], path)
    same_as_torch(open_container(path), {"0.w": torch.ones(2), "1.0": torch.zeros(1)})
    assert open_container(path).tree["1"]["1"] == 5


class Mode(Enum):
    """Written by its value; Python 3.11.2 writes `getattr` of its name instead, as `NamedMode` does."""

    FAST = 1

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Mode, (self.value,)


class NamedMode(Enum):
    FAST = 1

    def __reduce_ex__(self, protocol: Any) -> Any:
        return getattr, (NamedMode, self.name)


class Settings:
    """A class that only this test knows."""

    def __init__(self) -> None:
        self.rate, self.inner = 0.5, {"a": [1, 2]}


class Names(dict[str, Any]):
    """A dictionary of a class of its own."""


def test_everything_else_is_plain_data_or_a_stand_in(tmp_path: Path) -> None:
    saved = {
        "w": torch.ones(2),
        "args": Namespace(lr=0.1, path=PurePosixPath("/data/run"), sizes=(1, 2), nested=SimpleNamespace(a=None)),
        "path": Path("/data/run"),
        "accuracy": np.float64(0.5),
        "step": np.int64(7),
        "half": np.float32(0.25),
        "flag": np.bool_(True),
        "array": np.arange(6, dtype=np.int16).reshape(2, 3).T,
        "counts": Counter("aab"),
        "default": defaultdict(list, {"x": [1]}),
        "ordered": OrderedDict([("b", 1), ("a", 2)]),
        "set": {1},
        "dtype": torch.float16,
        "device": torch.device("cuda", 1),
        "size": torch.Size([2, 3]),
        "mode": Mode.FAST,
        "named": NamedMode.FAST,
        "settings": Settings(),
        "names": Names(x=1),
        "objects": np.array([None]),
        "bytes": b"abc",
        ("a", "b"): 1,
        7: "seven",
        None: "none",
    }
    torch.save(saved, path := tmp_path / "w.pth")
    opened = open_container(path)
    tree = dict(opened.tree)
    assert tree.pop("args") == {"lr": 0.1, "path": "/data/run", "sizes": [1, 2], "nested": {"a": None}}
    assert (tree.pop("accuracy"), tree.pop("step"), tree.pop("half"), tree.pop("flag")) == (0.5, 7, 0.25, True)
    assert (tree.pop("path"), tree.pop("dtype"), tree.pop("device")) == ("/data/run", "torch.float16", "cuda:1")
    assert (tree.pop("counts"), tree.pop("default"), tree.pop("set")) == ({"a": 2, "b": 1}, {"x": [1]}, [1])
    assert (list(tree.pop("ordered")), tree.pop("size"), tree.pop("names")) == (["b", "a"], [2, 3], {"x": 1})
    assert (tree.pop("7"), tree.pop("None"), tree.pop("a")) == ("seven", "none", {"b": 1})
    mode, settings, objects, content = (tree.pop(name) for name in ("mode", "settings", "objects", "bytes"))
    assert isinstance(mode, StandIn)
    assert mode.kind.endswith("test_pth.Mode")
    assert mode.arguments == (1,)
    named = tree.pop("named")
    assert isinstance(named, StandIn)
    assert (named.kind.rpartition(".")[2], named.arguments[1]) == ("getattr", "FAST")
    assert isinstance(settings, StandIn)
    assert settings.attributes == {"rate": 0.5, "inner": {"a": [1, 2]}}
    assert [objects.kind, content.kind] == ["an array of Python objects", "bytes"]
    assert set(tree) == {"w", "array"}
    np.testing.assert_array_equal(opened.arrays["array"], saved["array"])
    assert len(opened.notes) == 1
    assert opened.notes[0].startswith("kept as plain data, without running their code: objects of ")


def test_a_whole_pickled_module(tmp_path: Path) -> None:
    """torch.save(model): the names of its state dict, nested, without the module's class being imported."""
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Sequential(torch.nn.BatchNorm1d(3)))
    module.register_buffer("kept", torch.ones(1))
    module.register_buffer("temporary", torch.ones(1), persistent=False)
    module.register_parameter("none", None)
    torch.save({"model": module}, path := tmp_path / "w.pth")
    expected = {f"model.{name}": tensor for name, tensor in module.state_dict().items()}
    opened = open_container(path)
    assert set(opened.arrays) == set(expected)
    same_as_torch(opened, {name: expected[name] for name in opened.arrays})
    assert "torch.nn.modules.batchnorm.BatchNorm1d" in opened.notes[0]


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:FutureWarning")
def test_torchscript_archive(tmp_path: Path) -> None:
    """As OpenAI's CLIP files are: the same parts as a .pth, with attributes of modules instead of a dictionary."""
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2)).eval()
    torch.jit.trace(module, torch.ones(1, 3)).save(path := tmp_path / "clip.pt")
    opened = open_container(path)
    same_as_torch(opened, {name: module.state_dict()[name] for name in opened.arrays})
    assert set(opened.arrays) == set(module.state_dict())


def test_plain_pickles(tmp_path: Path) -> None:
    """pickle.dump of NumPy arrays, JAX arrays, tensors; flattened trees of Flax have tuples as keys."""
    arrays = {"np": np.arange(6.0).reshape(2, 3), "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3))}
    arrays["big"] = np.arange(3, dtype=">f4")
    jax_arrays = {("params", "Dense_0", "kernel"): jnp.ones((2, 2), jnp.bfloat16), ("params", "b"): jnp.arange(3)}
    for protocol in range(2, 6):
        (tmp_path / "w.pkl").write_bytes(pickle.dumps(arrays, protocol))
        opened = open_container(tmp_path / "w.pkl")
        assert opened.kind == "pickle"
        for name, array in arrays.items():
            assert opened.arrays.entries[name].dtype == opened.arrays[name].dtype.name == array.dtype.name
            np.testing.assert_array_equal(opened.arrays[name], array)
        (tmp_path / "j.pkl").write_bytes(pickle.dumps(jax_arrays, protocol))
        opened = open_container(tmp_path / "j.pkl")
        assert set(opened.tree["params"]) == {"Dense_0", "b"}
        kernel = opened.tree["params"]["Dense_0"]["kernel"]
        assert (kernel.dtype, kernel.shape) == ("bfloat16", (2, 2))
        np.testing.assert_array_equal(kernel.read(), np.asarray(jax_arrays["params", "Dense_0", "kernel"]))
        (tmp_path / "t.pkl").write_bytes(pickle.dumps({"w": BASE.permute(3, 0, 2, 1), "v": BASE[0]}, protocol))
        same_as_torch(open_container(tmp_path / "t.pkl"), {"w": BASE.permute(3, 0, 2, 1), "v": BASE[0]})


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_other_kinds_of_tensors_are_left_out_and_named(tmp_path: Path) -> None:
    quantized = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    saved = {"w": torch.ones(2), "q": quantized, "s": torch.eye(2).to_sparse(), "m": torch.ones(2, device="meta")}
    torch.save(saved, path := tmp_path / "w.pth")
    opened = open_container(path)
    assert list(opened.arrays) == ["w"]
    note = (
        "left out, because they are not plain arrays: q (a quantized tensor), s (a sparse tensor), "
        "m (a tensor without values (of the meta device))"
    )
    assert opened.notes[0] == note
    assert [opened.tree[name].kind for name in "qs"] == ["a quantized tensor", "a sparse tensor"]


def test_tensor_subclasses_are_left_out_and_named(tmp_path: Path) -> None:
    class Masked(torch.Tensor):
        pass

    Masked.__module__, Masked.__qualname__ = "torch", "Tensor2"
    torch.Tensor2 = Masked  # type: ignore[attr-defined]
    try:
        torch.save({"w": torch.ones(2), "x": torch.ones(2).as_subclass(Masked)}, path := tmp_path / "w.pth")
    finally:
        del torch.Tensor2  # type: ignore[attr-defined]
    opened = open_container(path)
    assert list(opened.arrays) == ["w"]
    assert opened.notes == ("left out, because they are not plain arrays: x (a tensor of class torch.Tensor2)",)


def test_lazy_conjugation_is_no_plain_array(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2), "c": torch.ones(2, dtype=torch.complex64).conj()}, path := tmp_path / "w.pth")
    assert "c (a tensor with a lazy negation or conjugation)" in open_container(path).notes[0]


def cut(path: Path, member: str, length: int) -> None:
    """Rewrites an archive with one part cut."""
    with zipfile.ZipFile(path) as archive:
        contents = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content[:length] if name.endswith(member) else content)


def test_a_part_that_is_cut_or_missing_costs_only_its_tensors(tmp_path: Path) -> None:
    torch.save({"v": torch.ones(4), "w": torch.ones(4)}, path := tmp_path / "w.pth")
    cut(path, "data/1", 15)
    opened = open_container(path)
    assert opened.arrays["v"].sum() == 4
    with pytest.raises(
        InputError, match=r"not complete \(reading w\) \(a tensor needs 16 bytes, but its storage has 15\)"
    ):
        opened.arrays["w"]


def test_nothing_is_imported(tmp_path: Path) -> None:
    """PyTorch need not be installed, and is not imported where it is."""
    torch.save({"w": torch.ones(2)}, tmp_path / "w.pth")
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"w": jnp.ones(2)}))
    script = (
        "import sys, json; sys.modules['torch'] = sys.modules['jax'] = None\n"
        "from pathlib import Path\n"
        "from vit_core.checkpoints.containers import open_container, write_pth\n"
        f"pth, pkl = (open_container(Path(f'{tmp_path}/w.' + end)).arrays for end in ('pth', 'pkl'))\n"
        f"write_pth(Path('{tmp_path}/written.pth'), pth)\n"
        "print(json.dumps([pth['w'].tolist(), pkl['w'].tolist()]))\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == [[1.0, 1.0], [1.0, 1.0]]
    assert torch.load(tmp_path / "written.pth", weights_only=True)["w"].tolist() == [1.0, 1.0]


# Writing


def written(path: Path, arrays: dict[str, np.ndarray]) -> None:
    write_pth(path, arrays)
    for mmap in (False, True):
        loaded = torch.load(path, weights_only=True, mmap=mmap)
        same_as_torch(open_container(path), loaded)
        for name, array in arrays.items():
            assert loaded[name].is_contiguous()
            assert tuple(loaded[name].shape) == array.shape
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    opened = open_container(path).arrays
    for name, array in arrays.items():
        read = opened[name]
        assert (read.dtype, read.shape) == (array.dtype, array.shape)
        assert read.tobytes() == array.tobytes()


def test_written_files_are_torchs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {kind: tensors()[kind].numpy() for kind in ("float16", "float32", "float64")}
    arrays |= {"bfloat16": np.asarray(jnp.ones((3, 2), jnp.bfloat16)), "scalar": np.array(2.5), "ü/€": np.ones(3)}
    arrays |= {"empty": np.empty((0, 4)), "transposed": rng.standard_normal((300, 200)).T}
    written(tmp_path / "w.pth", arrays)
    written(tmp_path / "many.pth", {f"blocks.{i}.weight": np.full((i % 7, 300), i, np.float32) for i in range(300)})
    write_pth(tmp_path / "empty.pth", {})
    assert torch.load(tmp_path / "empty.pth", weights_only=True) == {}


def test_written_files_have_torchs_layout(tmp_path: Path) -> None:
    """The same parts as torch.save makes, each at a multiple of 64 bytes; the same arrays give the same bytes."""
    arrays = {"a": np.ones((3, 5), np.float32), "b": np.ones(7)}
    write_pth(tmp_path / "w.pth", arrays)
    torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, tmp_path / "archive.pth")
    with zipfile.ZipFile(tmp_path / "w.pth") as ours, zipfile.ZipFile(tmp_path / "archive.pth") as theirs:
        assert set(ours.namelist()) == set(theirs.namelist())
        for info in ours.infolist():
            if not info.filename.endswith(("data.pkl", "serialization_id")):
                assert ours.read(info) == theirs.read(info.filename), info.filename
        content = (tmp_path / "w.pth").read_bytes()
        for info in ours.infolist():
            names = int.from_bytes(content[info.header_offset + 26 :][:2], "little")
            extra = int.from_bytes(content[info.header_offset + 28 :][:2], "little")
            assert (info.header_offset + 30 + names + extra) % 64 == 0, info.filename
            assert info.compress_type == zipfile.ZIP_STORED
    write_pth(tmp_path / "again.pth", arrays)
    assert (tmp_path / "again.pth").read_bytes() == content


def test_parts_of_more_than_2_gib_have_64_bit_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vit_core.checkpoints.containers.pth_writer._BIG", 100)
    written(tmp_path / "w.pth", {"small": np.ones(2, np.float32), "big": np.ones(500), "last": np.ones(3)})
    content = (tmp_path / "w.pth").read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for info in archive.infolist():
            names = int.from_bytes(content[info.header_offset + 26 :][:2], "little")
            extra = int.from_bytes(content[info.header_offset + 28 :][:2], "little")
            assert (info.header_offset + 30 + names + extra) % 64 == 0, info.filename


def test_a_false_promise_is_not_written(tmp_path: Path) -> None:
    lying = LazyArrays({"w": LazyArray((2,), "float32", lambda: np.zeros(3, np.float32))})
    with pytest.raises(AssertionError, match=r"w is float32 \(3,\), expected float32 \(2,\)"):
        write_pth(tmp_path / "w.pth", lying)
