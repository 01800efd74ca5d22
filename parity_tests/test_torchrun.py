"""Two processes under torchrun give the weights of one process, each with the whole state (DDP) or half of it
(FSDP2)."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from parity_tests.parallel import DRAWN_SIZES, RUN, STEPS, assert_same, in_processes, trained
from vit_core import open_checkpoint, parity
from vit_core.checkpoints.run_folder import saved_steps
from vit_train.config import Mesh
from vit_train.engines.torch.engine import TorchEngine
from vit_train.loop import batches_for
from vit_train.metrics import read_metrics
from vit_train.run import Request, Run
from vit_train.tests.small_run import LABELS, folder_of_images, quadrants, run_in, save_step, train_steps

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
MESHES = {"halves": Mesh(fsdp=2), "whole": Mesh()}
LOW = RUN.replace(dtype="float32", compute_dtype="bfloat16", remat="dots")

RECIPE = """
from vit_train.config import Data
from vit_train.tests.small_run import CONFIG

def pretrain():
    optimizer = CONFIG.optimizer.replace(epsilon=1e-6)
    return CONFIG.replace(dtype="float64", steps=300, save_every=50, data=Data(name={folder!r}), optimizer=optimizer)
"""


def few_steps(engine: TorchEngine) -> dict[str, np.ndarray]:
    """The weights after three of them, and the first's loss and squared gradient norms."""
    batches = batches_for(engine, quadrants())
    first = engine.train_step(batches[0], 0)
    numbers = np.array([float(first.loss), *np.asarray(first.squared_norms)])
    return train_steps(engine, batches, 1, 3).export() | {"first": numbers}


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Also with sizes drawn for each batch, and after saving: a run of one process continues in two processes with half
    of the state each, then in two with the whole state, then in one."""
    alone, run = TorchEngine(RUN), run_in(tmp_path / "run", RUN)
    batches = batches_for(alone, quadrants())
    save_step(run, train_steps(alone, batches, 0, 2), 2)
    found = in_processes(tmp_path, TORCHRUN, {}, __file__)
    for mesh in MESHES:
        assert_same(of(found, mesh), trained(TorchEngine(RUN)))
    for kind, fields in DRAWN_SIZES.items():
        # The kernel is resized from slices of it; images of any aspect are shared as other images are.
        assert_same(of(found, kind), trained(TorchEngine(RUN.replace(**fields))))
    assert found["whole, held"] == 1
    # Parameters whose first axis is one long are in the first process.
    assert 0.5 <= found["halves, held"] < 0.6
    again, step = run.start(TorchEngine, None)
    assert step == STEPS
    train_steps(alone, batches, 2, STEPS + 2)
    train_steps(again, batches, STEPS, STEPS + 2)
    for what in ("export", "statistics"):
        ours, theirs = (getattr(engine, what)() for engine in (again, alone))
        assert ours.keys() == theirs.keys()
        for name, array in theirs.items():
            assert parity.difference(ours[name], array)[1] <= parity.FLOAT64_BOUND, name
    # Exactly zero only where every process has found the keys in its slice.
    assert not again.statistics()["first_moment/blocks.0.attn.qkv.bias"].reshape(3, -1)[1].any()
    low, halves, whole = few_steps(TorchEngine(LOW)), of(found, "halves, bfloat16"), of(found, "whole, bfloat16")
    for name in low:
        # Both round the same products; their sums over two processes are in float32.
        assert parity.difference(halves[name], whole[name])[1] <= parity.FLOAT32_BOUND, name
    # One process rounds gradients once, two each its own half: 2**-9 of their scale, some of them squared.
    assert parity.difference(halves["first"], low["first"])[1] < 2**-6


def of(found: dict[str, np.ndarray], what: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(f"{what}/"): array for key, array in found.items() if key.startswith(f"{what}/")}


@pytest.mark.release
def test_a_run_under_torchrun_is_the_run(tmp_path: Path) -> None:
    """Two processes from the command line: stopped by a signal with half of the state each, continued by two with the
    whole state, and evaluated; the result equals that of one process."""
    images = folder_of_images(tmp_path / "images")
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE.format(folder=str(images)))
    vit = ["-m", "vit_cli", "pretrain", str(recipe), "--framework", "torch", "--out"]
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    halves = [sys.executable, *TORCHRUN, *vit, str(tmp_path / "two"), "--mesh.fsdp", "2"]
    shared = subprocess.Popen(halves, env=environment)
    while not list(tmp_path.glob("two/steps/*/model.safetensors")) and shared.poll() is None:
        time.sleep(0.01)
    shared.send_signal(signal.SIGTERM)
    assert shared.wait() != 0
    (stopped,) = saved_steps(tmp_path / "two")[:1]
    assert int(stopped.name) % 50, "saved where the signal came, not only every 50 steps"
    for command in ([*TORCHRUN, *vit, str(tmp_path / "two")], [*vit, str(tmp_path / "one")]):
        done = subprocess.run([sys.executable, *command], env=environment, check=True, capture_output=True, text=True)
        assert len(re.findall(r"^\d+ steps of \d+ images", done.stdout, re.MULTILINE)) == 1, "one process says it"
    one, two = (open_checkpoint(tmp_path / run / "checkpoint").arrays for run in ("one", "two"))
    for name in one:
        assert parity.difference(two[name], one[name])[1] <= parity.SHARDED_BOUND, name
    ends = [read_metrics(tmp_path / run / "metrics.jsonl")[-1] for run in ("one", "two")]
    assert ends[0]["top1"] == ends[1]["top1"]


def main() -> None:
    folder, found = Path(sys.argv[1]), {}
    for name, mesh in MESHES.items():
        engine = TorchEngine(RUN.replace(mesh=mesh))
        found |= {f"{name}/{key}": array for key, array in trained(engine).items()}
        whole, held = (sum(sizes) for sizes in zip(*engine.state_bytes.values(), strict=True))
        found[f"{name}, held"] = np.asarray(held / whole)
        low = few_steps(TorchEngine(LOW.replace(mesh=mesh)))
        found |= {f"{name}, bfloat16/{key}": array for key, array in low.items()}
    for kind, fields in DRAWN_SIZES.items():
        engine = TorchEngine(RUN.replace(mesh=MESHES["halves"], **fields))
        found |= {f"{kind}/{key}": array for key, array in trained(engine).items()}
    for mesh in MESHES.values():
        run = Run(folder / "run", Request(config=RUN.replace(mesh=mesh), labels=LABELS))
        engine, step = run.start(TorchEngine, None)
        save_step(run, train_steps(engine, batches_for(engine, quadrants()), step, step + 2), step + 2)
    if engine.process == 0:
        np.savez(folder / "found.npz", **found)


if __name__ == "__main__":
    main()
