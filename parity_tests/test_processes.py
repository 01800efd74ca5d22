"""Two JAX processes give the weights of one process, stop after the same step, and save a step from which one process
continues."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vit_core import open_checkpoint, parity
from vit_core.checkpoints.run_folder import saved_steps
from vit_train.metrics import curve, read_metrics
from vit_train.tests.small_run import folder_of_images

RECIPE = """
from vit_train.config import Data
from vit_train.tests.small_run import CONFIG

def pretrain():
    return CONFIG.replace(
        dtype="float64", steps=300, save_every=100, log_every=1, fingerprints=True, ema=0.9,
        data=Data(name={folder!r}), optimizer=CONFIG.optimizer.replace(epsilon=1e-6),
    )
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.py"
    path.write_text(RECIPE.format(folder=str(folder_of_images(tmp_path / "images"))))
    return path


def start(recipe: Path, out: str, *words: str) -> subprocess.Popen[str]:
    """Starts `vit pretrain` in its own process."""
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "vit_cli", "pretrain", str(recipe), "--out", str(recipe.parent / out), *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def pair(recipe: Path, out: str, *words: str, second: tuple[str, ...] = ()) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    return [start(recipe, out, "--distributed", f"{address},{i}/2", *words, *(second if i else ())) for i in range(2)]


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, error = process.communicate(timeout=300)
    return process.returncode, out, error


@pytest.mark.release
def test_two_processes_train_as_one(recipe: Path) -> None:
    """The second process gets the signal; both stop after the same step, from which one process continues."""
    folder = recipe.parent
    processes = pair(recipe, "two", "--mesh.fsdp", "2")
    while len(read_metrics(folder / "two" / "metrics.jsonl")) < 7 and not any(one.poll() for one in processes):
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGTERM)
    (first, said, error), (second, _, _) = map(ended, processes)
    assert (first, second) == (128 + signal.SIGTERM, 128 + signal.SIGTERM), error
    stopped = int(saved_steps(folder / "two")[0].name)
    assert f"stopped after step {stopped}" in said
    assert "preflight: jax, 2 processes" in said
    assert "0-7" in said
    assert "8-15" in said
    assert 7 <= stopped < 300
    for out in ("two", "one"):
        status, said, error = ended(start(recipe, out))
        assert status == 0, error
        assert (f"resuming after step {stopped} of 300" in said) == (out == "two")
    one, two = (read_metrics(folder / run / "metrics.jsonl") for run in ("one", "two"))
    assert curve(one, "fingerprint") == curve(two, "fingerprint"), "bitwise the same batches"
    assert len(curve(one, "fingerprint")[0]) == 300
    for a, b in zip(curve(one, "loss")[1], curve(two, "loss")[1], strict=True):
        assert a == pytest.approx(b, rel=parity.SHARDED_BOUND)
    for checkpoint in ("checkpoint", "checkpoint_ema"):
        alone, shared = (open_checkpoint(folder / run / checkpoint).arrays for run in ("one", "two"))
        for name in alone:
            assert parity.difference(shared[name], alone[name])[1] <= parity.SHARDED_BOUND, name


@pytest.mark.release
def test_processes_that_disagree_do_not_begin(recipe: Path) -> None:
    processes = pair(recipe, "never", second=("--optimizer.learning-rate", "0.5"))
    for status, _, error in map(ended, processes):
        assert status == 2
        assert error.strip().splitlines()[-1] == (
            "vit: error: processes disagree: optimizer.learning_rate is 0.003 in process 0 and 0.5 in process 1; start "
            "the same command everywhere"
        )
    assert not (recipe.parent / "never" / "run.json").exists()
