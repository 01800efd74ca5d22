"""Folders that Orbax wrote: what it restores is what TensorStore alone reads here."""

import json
import shutil
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from vit_core.arrays import LazyArray
from vit_core.checkpoints.containers import open_container
from vit_core.errors import InputError

TREE: dict[str, Any] = {
    "params": {"Dense_0": {"kernel": jnp.arange(12.0).reshape(3, 4), "bias": jnp.ones(4, jnp.bfloat16)}},
    "layers": [jnp.zeros(2), jnp.ones(3, jnp.int32)],
    "numpy": np.arange(4, dtype=np.float16).reshape(2, 2),
    "step": 3,
    "rate": 0.5,
    "nothing": {},
}


def same(read: Any, saved: Any) -> None:
    if isinstance(saved, dict | list):
        entries = saved if isinstance(saved, dict) else {str(i): value for i, value in enumerate(saved)}
        assert set(read) == set(entries)
        for key, value in entries.items():
            same(read[key], value)
    elif isinstance(saved, np.ndarray | jax.Array):
        assert isinstance(read, LazyArray)
        array = read.read()
        assert (read.shape, read.dtype) == (array.shape, array.dtype.name) == (saved.shape, saved.dtype.name)
        assert array.tobytes() == np.asarray(saved).tobytes()
    else:
        assert read == saved


def saved(folder: Path, tree: Any, **options: Any) -> Path:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
        checkpointer.save(folder, args=ocp.args.PyTreeSave(tree))
    return folder


@pytest.mark.parametrize(
    "options", [{}, {"use_ocdbt": False}, {"use_zarr3": True}, {"use_ocdbt": False, "use_zarr3": True}]
)
def test_trees(tmp_path: Path, options: dict[str, bool]) -> None:
    tree = {**TREE, "name": "vit", "none": None}
    opened = open_container(saved(tmp_path / "c", tree, **options))
    assert (opened.kind, opened.separator) == ("orbax", "/")
    same(opened.tree, tree)
    assert "params/Dense_0/kernel" in opened.arrays


def test_without_metadata(tmp_path: Path) -> None:
    """The names of the arrays alone, as old versions left them."""
    for name, options in {"database": {}, "folders": {"use_ocdbt": False}}.items():
        folder = saved(tmp_path / name, TREE, **options)
        (folder / "_METADATA").unlink()
        if name == "folders":
            (folder / "_CHECKPOINT_METADATA").unlink()
            template = {"params": {"Dense_0": {"kernel": "PLACEHOLDER://params.Dense_0.kernel", "bias": 0.5}}, "n": "x"}
            (folder / "checkpoint").write_bytes(msgpack.packb(template))
        opened = open_container(folder)
        same(opened.tree["params"]["Dense_0"]["kernel"], TREE["params"]["Dense_0"]["kernel"])
        if name == "folders":
            assert (opened.tree["n"], opened.tree["params"]["Dense_0"]["bias"]) == ("x", 0.5)
            assert list(opened.arrays) == ["params/Dense_0/kernel"]
        else:
            assert len(opened.arrays) == 7


def test_steps_of_a_manager(tmp_path: Path) -> None:
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        manager.save(1, args=ocp.args.StandardSave(TREE))
        manager.save(2, args=ocp.args.StandardSave(TREE))
        manager.wait_until_finished()
    opened = open_container(tmp_path / "run" / "1")
    assert opened.notes == ("read item 'default'",)
    same(opened.tree, TREE)
    with pytest.raises(InputError, match="give one of the folders in it: 1, 2"):
        open_container(tmp_path / "run")
    items = ocp.args.Composite(state=ocp.args.StandardSave(TREE), settings=ocp.args.JsonSave({"a": 1}))
    with ocp.CheckpointManager(tmp_path / "items") as manager:
        manager.save(5, args=items)
        manager.wait_until_finished()
    same(open_container(tmp_path / "items" / "5").tree, TREE)


def test_modules(tmp_path: Path) -> None:
    """Linen variables, and NNX state with its `value` leaves and as a pure dictionary."""
    variables = nn.Dense(3).init(jax.random.key(0), jnp.ones((1, 2)))
    state = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "linen", variables)
        checkpointer.save(tmp_path / "nnx", state)
        checkpointer.save(tmp_path / "pure", nnx.to_pure_dict(state))
        checkpointer.wait_until_finished()
    same(open_container(tmp_path / "linen").tree, variables)
    pure = nnx.to_pure_dict(state)
    same(open_container(tmp_path / "pure").tree, pure)
    same(open_container(tmp_path / "nnx").tree, {name: {"value": value} for name, value in pure.items()})


def edited(folder: Path, change: Any) -> Path:
    metadata = json.loads((folder / "_METADATA").read_text())
    change(metadata)
    (folder / "_METADATA").write_text(json.dumps(metadata))
    return folder


def test_shapes_beyond_the_files(tmp_path: Path) -> None:
    """An array of which nothing is stored is all zeros, however large it says that it is."""
    folder = saved(tmp_path / "c", TREE, use_ocdbt=False)
    zarray = folder / "params.Dense_0.kernel" / ".zarray"
    for field, value in {"shape": [10**7, 10**7], "chunks": [10**7, 10**7]}.items():
        whole = json.loads(zarray.read_text())
        zarray.write_text(json.dumps({**whole, field: value}))
        with pytest.raises(InputError, match="but the files are too small for it"):
            open_container(folder)
        zarray.write_text(json.dumps(whole))


def test_names_elsewhere(tmp_path: Path) -> None:
    folder = saved(tmp_path / "c", TREE, use_ocdbt=False)
    shutil.copytree(folder / "numpy", tmp_path / "secret")
    entry = {"key_metadata": [{"key": "../secret", "key_type": 2}], "value_metadata": {"value_type": "np.ndarray"}}
    edited(folder, lambda metadata: metadata["tree_metadata"].update(x=entry))
    with pytest.raises(InputError, match=r"\.\./secret is not a valid name of an array"):
        open_container(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("tree_metadata"), "not a complete Orbax checkpoint"),
        (lambda m: m["tree_metadata"].clear(), "an Orbax checkpoint without arrays"),
        (lambda m: m["tree_metadata"]["('numpy',)"].update(key_metadata=[]), "a leaf has no keys"),
        (lambda m: m["tree_metadata"]["('numpy',)"]["key_metadata"][0].update(key="other"), "other: "),
        (lambda m: m["tree_metadata"].update(x=m["tree_metadata"]["('numpy',)"]), "two values for numpy"),
        (lambda m: m["tree_metadata"]["('step',)"]["key_metadata"][0].update(key="numpy"), "two values for numpy"),
    ],
)
def test_broken_metadata(tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        open_container(edited(saved(tmp_path / "c", TREE), change))
    assert "\n" not in str(caught.value)
