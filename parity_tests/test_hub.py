"""Uploads of `vit push`, opened by timm and transformers from the same server; a push that is killed."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import vit_torch
from vit_core import Checkpoint, CheckpointConfig, ViTConfig, parity, save_checkpoint
from vit_core.storage.tests.hub_server import TOKEN, Answer, Hub, Request, hub

__all__ = ["hub"]

MODEL = ViTConfig(
    image_size=32, patch_size=8, width=24, depth=3, heads=3, mlp_dim=48, num_classes=5, activation="gelu",
    position_resampling="bicubic",
)  # fmt: skip

_OPEN = """
import sys, numpy, timm, torch, transformers
images = torch.from_numpy(numpy.load(sys.argv[1])).permute(0, 3, 1, 2)
theirs = timm.create_model("hf-hub:u/timm", pretrained=True).double().eval()
numpy.save(sys.argv[2], theirs(images).detach().numpy())
theirs = transformers.AutoModelForImageClassification.from_pretrained("u/transformers", dtype=torch.float64)
numpy.save(sys.argv[3], theirs(images).logits.detach().numpy())
print(theirs.config.id2label[4])
"""


def environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """A process that reads and writes this Hub, and has no cache of another one."""
    own = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    return {**os.environ, **own, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_ETAG_TIMEOUT": "60"}


def vit(*words: object) -> list[str]:
    return [sys.executable, "-m", "vit_cli", *map(str, words)]


def save_random(folder: Path, model: ViTConfig) -> Path:
    config = CheckpointConfig(model=model, labels=("a", "b", "c", "d", "last"))
    save_checkpoint(folder, Checkpoint.of(config, parity.randomized(model, 0), "float32"))
    return folder


@pytest.mark.release
def test_other_libraries_open_what_was_pushed(hub: Hub, tmp_path: Path) -> None:
    """Each from its name in the Hub, with the logits of our twin, in float64."""
    ours, env = save_random(tmp_path / "ours", MODEL), environment(hub, tmp_path)
    for format in ("timm", "transformers"):
        lossy = ["--allow-lossy"] if format == "timm" else []  # position_resampling only, which is not used here
        subprocess.run(vit("push", ours, f"u/{format}", "--to", format, *lossy), env=env, check=True)
    x_BHWC, _ = parity.probe(MODEL, 0)
    np.save(tmp_path / "x.npy", x_BHWC)
    files = [tmp_path / f"{format}.npy" for format in ("timm", "transformers")]
    done = subprocess.run(
        [sys.executable, "-c", _OPEN, tmp_path / "x.npy", *files], env=env, check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "last"
    expected_BC = vit_torch.predict(vit_torch.load(ours, dtype="float64"), x_BHWC)
    for file in files:
        assert parity.difference(np.load(file), expected_BC)[1] <= parity.FLOAT64_BOUND


@pytest.mark.release
def test_a_push_that_is_killed_changes_nothing(hub: Hub, tmp_path: Path) -> None:
    """SIGKILL while the weights are uploaded, and while the commit is made; the next push succeeds."""
    env = environment(hub, tmp_path)
    older, newer = save_random(tmp_path / "a", MODEL), save_random(tmp_path / "b", MODEL.replace(depth=4))
    subprocess.run(vit("push", older, "u/m"), env=env, check=True)
    before = dict(hub.repositories["u/m"].files())
    for where in ("/stored/", "/commit/"):
        process = subprocess.Popen(vit("push", newer, "u/m"), env=env)

        def kill(request: Request, where: str = where, process: "subprocess.Popen[bytes]" = process) -> Answer | None:
            if where not in request.path or request.method == "GET":
                return None
            process.kill()
            process.wait()
            return Answer(500)

        hub.instead = kill
        assert process.wait(120) == -9
        hub.instead = lambda request: None
        assert hub.repositories["u/m"].files() == before
    subprocess.run(vit("push", newer, "u/m"), env=env, check=True)
    assert hub.repositories["u/m"].files()["model.safetensors"] == (newer / "model.safetensors").read_bytes()
