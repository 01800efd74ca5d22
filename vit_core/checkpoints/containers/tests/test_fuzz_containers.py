"""Untrusted files: whatever a file or folder is damaged into, it opens or is refused in one line, in bounded memory.

Each kind is damaged many times in a process of its own, whose memory is limited: a crash, another error or too
much memory ends it.
"""

import json
import pickle
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import flax.serialization
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import settings

from vit_core.arrays import LazyArrays
from vit_core.checkpoints.containers import write_hdf5, write_npz, write_pth
from vit_core.checkpoints.containers.tests import fuzzing

EXAMPLES = settings().max_examples
"""Damaged files of each kind; a third of them for the folders, which take longer to open."""
MEMORY = 2**28
"""Bytes of address space beyond what opening the whole file takes."""

RNG = np.random.default_rng(0)
ARRAYS: dict[str, np.ndarray] = {
    "patch_embed.proj.weight": RNG.standard_normal((8, 3, 2, 2)).astype(np.float32),
    "half": RNG.standard_normal((7,)).astype(ml_dtypes.bfloat16),
    "scalar": np.array(3.5),
    "blocks.0.weight": RNG.standard_normal((2, 1, 2)).astype(np.float16),
}
TENSORS = {"w": torch.arange(12.0).reshape(3, 4), "t": torch.arange(6).reshape(2, 3).T, "b": torch.ones(3).bfloat16()}
TRAINED = {
    "model": TENSORS,
    "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
    "args": Namespace(path=PurePosixPath("/data"), scale=np.float64(0.5)),
    "epoch": 3,
}
TREE: dict[str, Any] = {"params": {"Dense_0": {"kernel": np.ones((3, 4)), "bias": ARRAYS["half"]}}, "x": np.arange(3)}
Tree = dict[str, Any]


def pth(folder: Path) -> Path:
    torch.save(TRAINED, folder / "w.pth")
    return folder / "w.pth"


def old_pth(folder: Path) -> Path:
    torch.save(TRAINED, folder / "w.pth", _use_new_zipfile_serialization=False)
    return folder / "w.pth"


def own_pth(folder: Path) -> Path:
    write_pth(folder / "w.pth", ARRAYS)
    return folder / "w.pth"


def module(folder: Path) -> Path:
    torch.save(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)), folder / "w.pt")
    return folder / "w.pt"


def plain_pickle(folder: Path) -> Path:
    (folder / "w.pkl").write_bytes(pickle.dumps({"arrays": ARRAYS, "tensors": TENSORS, "args": TRAINED["args"]}))
    return folder / "w.pkl"


def hdf5(folder: Path) -> Path:
    write_hdf5(
        folder / "w.weights.h5", LazyArrays.of({name.replace(".", "/"): array for name, array in ARRAYS.items()})
    )
    return folder / "w.weights.h5"


def npz(folder: Path) -> Path:
    write_npz(folder / "w.npz", LazyArrays.of(ARRAYS))
    return folder / "w.npz"


def compressed_npz(folder: Path) -> Path:
    np.savez_compressed(folder / "w.npz", **TREE["params"]["Dense_0"], more=np.ones(3))
    return folder / "w.npz"


def safetensors_file(folder: Path) -> Path:
    safetensors.numpy.save_file(ARRAYS, folder / "w.safetensors", {"format": "pt"})
    return folder / "w.safetensors"


def shards(folder: Path) -> Path:
    (folder / "shards").mkdir()
    names = list(ARRAYS)
    for i, part in enumerate((names[:2], names[2:])):
        safetensors.numpy.save_file({name: ARRAYS[name] for name in part}, folder / "shards" / f"{i}.safetensors")
    weight_map = {name: f"{i // 2}.safetensors" for i, name in enumerate(names)}
    (folder / "shards" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder / "shards"


def msgpack_file(folder: Path) -> Path:
    (folder / "w.msgpack").write_bytes(flax.serialization.msgpack_serialize(TREE | {"step": 3, "rate": np.float32(1)}))
    return folder / "w.msgpack"


def orbax_folder(**options: bool) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
            checkpointer.save(folder / "orbax", args=ocp.args.PyTreeSave(TREE | {"step": 3}))
        return folder / "orbax"

    return write


def dcp_folder(folder: Path) -> Path:
    state = {"model": TENSORS, "epoch": 3}
    dcp.save(state, checkpoint_id=folder / "dcp", no_dist=True)
    return folder / "dcp"


MAKERS: dict[str, Callable[[Path], Path]] = {
    "pth": pth,
    "old pth": old_pth,
    "own pth": own_pth,
    "module": module,
    "pickle": plain_pickle,
    "hdf5": hdf5,
    "npz": npz,
    "compressed npz": compressed_npz,
    "safetensors": safetensors_file,
    "shards": shards,
    "msgpack": msgpack_file,
    "orbax": orbax_folder(),
    "orbax in folders": orbax_folder(use_ocdbt=False),
    "orbax, zarr 3": orbax_folder(use_zarr3=True),
    "dcp": dcp_folder,
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("kind", MAKERS)
def test_damaged(tmp_path: Path, kind: str) -> None:
    path = MAKERS[kind](tmp_path)
    examples = EXAMPLES // 3 if kind.startswith(("orbax", "dcp")) else EXAMPLES
    command = [sys.executable, fuzzing.__file__, str(path), str(examples), str(MEMORY)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    opened, refused = map(int, result.stdout.split())
    assert opened + refused == examples
    assert refused > examples // 20, "the damage is seen"
