"""HDF5 files and what Keras makes of them: read as written, and nothing outside of the file is ever opened."""

import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest

from vit_core import InputError
from vit_core.arrays import LazyArrays
from vit_core.checkpoints.containers import describe_kind, open_container, write_hdf5

ARRAYS = {
    "layers/dense/vars/0": np.arange(6, dtype=np.float32).reshape(2, 3),
    "layers/dense/vars/1": np.array([1.5, -2.0], ml_dtypes.bfloat16),
    "layers/dense_1/vars/0": np.array(7, np.int32),
    "vars/0": np.arange(3.0),
}


def same(found: LazyArrays) -> None:
    assert {name: entry.dtype for name, entry in found.entries.items()} == {n: a.dtype.name for n, a in ARRAYS.items()}
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def weights(path: Path) -> Path:
    """A file of weights, as Keras writes it: bfloat16 as two raw bytes, and the names of layers."""
    with h5py.File(path, "w") as file:
        for name, array in ARRAYS.items():
            written = file.create_dataset(name, data=array)
            if array.dtype == ml_dtypes.bfloat16:
                written.attrs["dtype"] = "bfloat16"
        file["layers/dense/vars"].attrs["name"] = "predictions"
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        list(open_container(path).arrays.values())
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(str(path))
    return text


def test_a_file_as_keras_writes_it(tmp_path: Path) -> None:
    found = open_container(weights(tmp_path / "a.weights.h5"))
    same(found.arrays)
    assert (found.kind, found.separator, found.metadata) == ("hdf5", "/", {"layers/dense/vars": "predictions"})
    found.arrays["vars/0"][...] = 0  # each reading is a new array
    same(found.arrays)


def test_a_file_that_is_written_is_read(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "out.h5", LazyArrays.of(ARRAYS))
    same(open_container(tmp_path / "out.h5").arrays)


def test_values_in_the_other_byte_order(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["x"] = np.arange(3, dtype=">f4")
    found = open_container(tmp_path / "w.h5").arrays
    assert (found.entries["x"].dtype, found["x"].tolist()) == ("float32", [0, 1, 2])


def linked(link: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file["layers/dense/vars/2"] = link

    return change


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((3,), "f8")
    layout[:] = h5py.VirtualSource("other.h5", "x", (3,))
    file.create_virtual_dataset("virtual", layout)


def external(file: h5py.File) -> None:
    file.create_dataset("raw", (4,), "u1", external=[("/etc/hostname", 0, 4)])


def itself(file: h5py.File) -> None:
    file["layers/again"] = file["layers"]


def twice(file: h5py.File) -> None:
    file["copy"] = file["vars/0"]


def text(file: h5py.File) -> None:
    file["text"] = "words"


def packed(file: h5py.File) -> None:
    file.create_dataset("zeros", (2**20,), "f8", compression="gzip", data=np.zeros(2**20))


def unwritten(file: h5py.File) -> None:
    file.create_dataset("huge", (2**40,), "f8")


def keras_2(file: h5py.File) -> None:
    file.attrs["layer_names"] = ["vit"]


HOSTILE: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "external link": (linked(h5py.ExternalLink("/etc/passwd", "/x")), "layers/dense/vars/2 is a link, which is never"),
    "soft link": (linked(h5py.SoftLink("/vars/0")), "layers/dense/vars/2 is a link, which is never followed"),
    "virtual": (virtual, "virtual is stored in other files, which are never opened"),
    "external": (external, "raw is stored in other files, which are never opened"),
    "itself": (itself, "layers/again has two paths in the file"),
    "twice": (twice, "has two paths in the file"),
    "text": (text, "text has the type object, expected numbers"),
    "compressed": (packed, "zeros is compressed or in chunks, or has no values; expected whole arrays"),
    "no values": (unwritten, "huge is compressed or in chunks, or has no values"),
    "Keras 2": (keras_2, "an HDF5 file in the layout of Keras 2, expected that of Keras 3"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_anything_but_plain_arrays_is_refused(tmp_path: Path, case: str) -> None:
    change, message = HOSTILE[case]
    with h5py.File(weights(tmp_path / "w.weights.h5"), "r+") as file:
        change(file)
    assert message in refusal(tmp_path / "w.weights.h5")


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: float) -> None:
    path = weights(tmp_path / "w.weights.h5")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    refusal(path)


def test_without_h5py_the_message_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = weights(tmp_path / "w.weights.h5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert "needs the package h5py; pip install 'vit-parity[keras]'" in refusal(path)


def test_a_preset_has_its_task_and_its_configs(tmp_path: Path) -> None:
    weights(tmp_path / "model.weights.h5")
    weights(tmp_path / "task.weights.h5")
    (tmp_path / "config.json").write_text('{"class_name": "x"}')
    found = open_container(tmp_path)
    assert set(found.arrays) == {*ARRAYS, *(f"task/{name}" for name in ARRAYS)}
    assert found.metadata == {
        "layers/dense/vars": "predictions",
        "task/layers/dense/vars": "predictions",
        "config.json": '{"class_name": "x"}',
    }
    assert describe_kind(tmp_path) == "a preset of keras_hub"


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive(tmp_path: Path, compression: int) -> None:
    weights(tmp_path / "model.weights.h5")
    with zipfile.ZipFile(tmp_path / "m.keras", "w", compression) as archive:
        archive.write(tmp_path / "model.weights.h5", "model.weights.h5")
        archive.writestr("config.json", "{}")
    found = open_container(tmp_path / "m.keras")
    same(found.arrays)
    assert (found.kind, found.metadata["config.json"]) == ("keras archive", "{}")


def test_an_archive_with_other_weights_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        archive.writestr("other.weights.h5", "x")
    assert "has no model.weights.h5" in refusal(tmp_path / "m.keras")


def sharded(folder: Path, weight_map: dict[str, Any]) -> Path:
    for i, names in enumerate((["layers/dense/vars/0", "vars/0"], ["layers/dense/vars/1", "layers/dense_1/vars/0"])):
        write_hdf5(folder / f"w_0000{i}.weights.h5", LazyArrays.of({name: ARRAYS[name] for name in names}))
    (folder / "w.weights.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder / "w.weights.json"


MAP: dict[str, Any] = {
    "/vars": "w_00000.weights.h5",
    "/layers/dense/vars": ["w_00000.weights.h5", "w_00001.weights.h5"],
    "/layers/dense_1/vars": "w_00001.weights.h5",
}


def test_weights_in_several_files(tmp_path: Path) -> None:
    found = open_container(sharded(tmp_path, MAP))
    assert found.kind == "hdf5 shards"
    assert set(found.arrays) == set(ARRAYS)
    np.testing.assert_array_equal(found.arrays["vars/0"], ARRAYS["vars/0"])


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({**MAP, "/more/vars": "w_00002.weights.h5"}, "w_00002.weights.h5: no such file"),
        ({**MAP, "/more/vars": "../w_00000.weights.h5"}, "names the file '../w_00000.weights.h5', expected one in its"),
        ({**MAP, "/more/vars": "w_00000.weights.h5"}, "its files have no /more/vars"),
        ({**MAP, "/more/vars": [3]}, "names the file '3'"),
    ],
    ids=["missing", "outside", "group", "number"],
)
def test_an_index_that_does_not_fit_is_refused(tmp_path: Path, weight_map: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        open_container(sharded(tmp_path, weight_map))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
