"""Untrusted files: whatever a file of any format is damaged into, it opens, or is answered with one clean line.

Files of every format and container are cut short, have bytes changed, put in or taken out, and their JSON edited.
Nothing may end in anything but an InputError (a crash of the process ends the tests), and a conversion that fails
leaves nothing behind.
"""

import json
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch
import torch.distributed.checkpoint as dcp
from flax import nnx
from flax.serialization import msgpack_serialize
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from parity_tests.formats import nnx_models
from parity_tests.formats.test_flax_trees import texts
from parity_tests.formats.test_mmpretrain import mmpretrain, model_of
from vit_core import CheckpointConfig, InputError, ViTConfig, open_checkpoint, parity
from vit_core.arrays import LazyArrays
from vit_core.checkpoints.checkpoint import Checkpoint
from vit_core.checkpoints.containers.container import nested
from vit_core.checkpoints.formats import registry
from vit_core.checkpoints.saving import save_checkpoint

MODEL = ViTConfig(image_size=8, patch_size=4, width=16, depth=1, heads=2, mlp_dim=8, num_classes=3, activation="gelu")
FILES = {"vit": "ours", "timm": "timm", "google": "g.npz", "big_vision": "b.npz", "torchvision": "t.pth"}
FILES |= {"transformers": "hf", "lucidrains": "l.pth", "open_clip": "o.safetensors", "vit5": "5.pth"}
FILES |= {"jeonsworld": "j.pth", "lukemelas": "p.pth", "keras_hub": "k"}
FIELDS: dict[str, dict[str, Any]] = {
    "lucidrains": {"patch_norms": True, "qkv_bias": False, "width": 128},
    "vit5": {
        "rope": "vit5",
        "registers": 1,
        "norm": "rms_norm",
        "class_token_position": False,
        "position_resampling": "bicubic",
    },
    "open_clip": {"pre_norm": True, "patch_bias": False, "head_bias": False, "norm_epsilon": 1e-5},
}
"""Requirements of a format for a model."""


def written(folder: Path, format: str) -> Path:
    """A small checkpoint of a format, with random weights."""
    model = MODEL.replace(**FIELDS.get(format, {}))
    arrays = LazyArrays.of(parity.randomized(model, 0)).as_type("float32")
    path = folder / FILES[format]
    save_checkpoint(path, Checkpoint(CheckpointConfig(model=model), arrays), format=format, allow_lossy=True)
    return path


def meta(folder: Path) -> Path:
    """As facebookresearch/dino saves it."""
    plain = MODEL.replace(num_classes=0)
    tensors = {f"backbone.{n}": torch.from_numpy(a).float() for n, a in parity.randomized(plain, 0).items()}
    torch.save({"teacher": tensors, "epoch": 1}, folder / "dino.pth")
    return folder / "dino.pth"


def flax_tree(folder: Path) -> dict[str, Any]:
    """big_vision's parameters as the tree that its code has in memory."""
    with np.load(written(folder, "big_vision")) as file:
        return nested(dict(file))


def msgpack(folder: Path) -> Path:
    (folder / "flax_model.msgpack").write_bytes(msgpack_serialize(flax_tree(folder)))
    return folder / "flax_model.msgpack"


def orbax(folder: Path) -> Path:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(folder / "orbax", args=ocp.args.PyTreeSave(flax_tree(folder)))
    return folder / "orbax"


def timm_state() -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(a).float() for name, a in parity.randomized(MODEL, 0).items()}


def distributed(folder: Path) -> Path:
    dcp.save({"model": timm_state(), "epoch": 1}, checkpoint_id=folder / "dcp", no_dist=True)
    return folder / "dcp"


def shards(folder: Path) -> Path:
    """Two files and their index."""
    state, target = timm_state(), folder / "shards"
    target.mkdir()
    shard_of = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(state)}
    for shard in set(shard_of.values()):
        save_file({name: tensor for name, tensor in state.items() if shard_of[name] == shard}, target / shard)
    (target / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shard_of}))
    return target


def nnx_msgpack(model: Any, path: Path) -> Path:
    """The parameters of a model of Flax NNX, as flax.serialization writes them."""
    path.write_bytes(msgpack_serialize(texts(nnx.to_pure_dict(nnx.state(model, nnx.Param)))))
    return path


def mmpretrain_file(folder: Path) -> Path:
    """As mmengine saves it; a model of another number of heads is opened with --set heads only."""
    torch.save(
        {"meta": {"epoch": 1}, "state_dict": mmpretrain(model_of(embed_dim=64, num_heads=1).state_dict())},
        folder / "m.pth",
    )
    return folder / "m.pth"


MAKERS: dict[str, Callable[[Path], Path]] = {
    **{format: lambda folder, format=format: written(folder, format) for format in FILES},
    "meta": meta,
    "msgpack": msgpack,
    "orbax": orbax,
    "bonsai": lambda folder: nnx_msgpack(nnx_models.Bonsai(), folder / "bonsai.msgpack"),
    "jimm": lambda folder: nnx_msgpack(nnx_models.JimmCLIP(), folder / "jimm.msgpack"),
    "mmpretrain": mmpretrain_file,
    "dcp": distributed,
    "shards": shards,
}


def test_every_format_is_here() -> None:
    assert set(registry.FORMATS) <= set(MAKERS)


FOLDERS = ("vit", "timm", "transformers", "shards", "keras_hub")


@pytest.fixture(scope="module", params=FOLDERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights and a config."""
    return MAKERS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module", params=MAKERS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file or folder that is as it should be."""
    path = MAKERS[request.param](tmp_path_factory.mktemp(request.param))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _ = dict(open_checkpoint(path).arrays)
    return path


def complaint(path: Path, target: Path) -> str | None:
    """The error of opening and converting; None if both work."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            save_checkpoint(target, open_checkpoint(path), format="vit")
    except InputError as error:
        return str(error)
    return None


def tried(path: Path, target: Path) -> None:
    """Opened and converted: either works, or ends in one line and leaves nothing."""
    said = complaint(path, target)
    if said is None:
        shutil.rmtree(target)
    else:
        assert "\n" not in said
        assert 10 < len(said) < 3000
        assert not target.exists(), said


def damaged(data: bytes, seed: int) -> bytes:
    """Cut, changed, stuffed or bitten, mostly where headers are."""
    rng = random.Random(seed)
    near = rng.choice([64, 2048, len(data)])
    at = (
        rng.randrange(min(near, len(data)))
        if rng.random() < 0.7
        else len(data) - 1 - rng.randrange(min(near, len(data)))
    )
    kind = rng.randrange(5)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
    if kind == 2:
        return data[:at] + rng.randbytes(rng.randrange(1, 9)) + data[at:]
    if kind == 3:
        return data[:at] + data[at + rng.randrange(1, 300) :]
    changed = bytearray(data)
    for _ in range(rng.randrange(2, 20)):
        position = max(min(at + rng.randrange(-200, 200), len(data) - 1), -len(data))
        changed[position] = rng.choice([0, 255, 48, 57, 123, rng.randrange(256)])
    return bytes(changed)


@pytest.mark.slow
@given(st.integers(0, 2**32))
@settings(suppress_health_check=list(HealthCheck))
def test_damaged_bytes(whole: Path, seed: int) -> None:
    broken = whole.parent / f"broken-{whole.name}"
    if whole.is_dir():
        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(whole, broken)
        files = [file for file in sorted(broken.rglob("*")) if file.is_file() and file.stat().st_size]
        file = random.Random(seed).choice(files)
        file.write_bytes(damaged(file.read_bytes(), seed))
    else:
        broken.write_bytes(damaged(whole.read_bytes(), seed))
    tried(broken, whole.parent / "target")


ODD: list[Any] = [None, True, -1, 0, 1e308, 2**70, "", "x", [], [1, 2, 3], {}, {"a": 1}, "../..", [[]], -0.5, "224"]


@given(st.integers(0, 2**32))
@settings(suppress_health_check=list(HealthCheck))
def test_odd_configs(folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    broken = folder.parent / f"odd-{folder.name}"
    shutil.copytree(folder, broken, dirs_exist_ok=True)
    for path in broken.glob("*.json"):
        fields = json.loads(path.read_text())
        for _ in range(rng.randrange(1, 4)):
            holder = fields
            while (inner := [x for x in holder.values() if isinstance(x, dict) and x]) and rng.random() < 0.6:
                holder = rng.choice(inner)
            if rng.random() < 0.2:
                holder.pop(rng.choice(list(holder)))
            elif holder:
                holder[rng.choice(list(holder))] = rng.choice(ODD)
            if not holder:
                break
        path.write_text(json.dumps(fields))
    tried(broken, folder.parent / "target")
