"""A batch shared by eight JAX devices, or by two PyTorch processes, trains as it does in one piece."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from train.config import TrainConfig
from train.data import Batches
from train.engine_jax import JaxEngine
from train.engine_torch import TorchEngine
from train.loop import evaluate
from train.metrics import read
from train.run import Engine
from train.tests.small import CONFIG, folder_of_images, quadrants
from vit_core import open_checkpoint, parity
from vit_core.checkpoint import saved_steps

RUN = CONFIG.replace(
    dtype="float64",
    ema=0.9,
    accumulation=2,
    batch_size=32,
    evaluation_batch=12,
    optimizer=CONFIG.optimizer.replace(epsilon=1e-6),
)
STEPS = 6


RECIPE = """
from train.config import Data
from train.tests.small import CONFIG

def pretrain():
    optimizer = CONFIG.optimizer.replace(epsilon=1e-6)
    return CONFIG.replace(dtype="float64", steps=300, save_every=50, data=Data(name={folder!r}), optimizer=optimizer)
"""


def trained(engine: Engine) -> dict[str, np.ndarray]:
    """Losses, gradient norms, weights, moving average and accuracy after a few steps; one image cannot be read."""
    split = quadrants()
    split.examples[5] = {"image": b"", "label": 1}  # type: ignore[index]
    batches = Batches(split, engine.config, engine.process, engine.processes, engine.devices)
    measured = [engine.train_step(batches[step], step) for step in range(STEPS)]
    found = {f"loss.{step}": np.asarray(float(of.loss)) for step, of in enumerate(measured)}
    found |= {f"norm.{step}": np.asarray(of.gradient_norm) for step, of in enumerate(measured)}
    found |= engine.export()
    found |= {f"average.{name}": array for name, array in engine.export(averaged=True).items()}
    accuracy = evaluate(engine, quadrants(50, seed=1))
    return found | {"accuracy": np.array([accuracy.correct, accuracy.total, accuracy.loss])}


def in_processes(tmp_path: Path, command: list[str], environment: dict[str, str]) -> dict[str, np.ndarray]:
    """What this very file, run as a script by the command, has found."""
    (tmp_path / "config.json").write_text(RUN.model_dump_json())
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1", **environment}
    words = [sys.executable, *command, __file__, str(tmp_path)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(np.load(tmp_path / "found.npz"))


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert parity.difference(found[name], expected[name])[1] <= parity.FLOAT64_BOUND, name
    assert found["accuracy"][1] == 50


def test_eight_jax_devices(tmp_path: Path) -> None:
    eight = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_ENABLE_X64": "1", "ENGINE": "jax"}
    found = in_processes(tmp_path, [], eight)
    assert found.pop("devices") == 8
    assert_same(found, trained(JaxEngine(RUN)))


def test_two_torch_processes(tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    found = in_processes(tmp_path, torchrun, {"ENGINE": "torch"})
    assert found.pop("devices") == 2
    assert_same(found, trained(TorchEngine(RUN)))


def test_a_run_under_torchrun_is_the_run(tmp_path: Path) -> None:
    """Two processes by the command line: stopped by a signal, gone on with, evaluated; what one process gives alone."""
    images = folder_of_images(tmp_path / "images")
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE.format(folder=str(images)))
    vit = ["-m", "vit_core", "pretrain", str(recipe), "--framework", "torch", "--out"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    shared = subprocess.Popen([sys.executable, *torchrun, *vit, str(tmp_path / "two")], env=environment)
    while not list(tmp_path.glob("two/steps/*/model.safetensors")) and shared.poll() is None:
        time.sleep(0.01)
    shared.send_signal(signal.SIGTERM)
    assert shared.wait() != 0
    (stopped,) = saved_steps(tmp_path / "two")[:1]
    assert int(stopped.name) % 50, "saved where the signal came, not only every 50 steps"
    for command in ([*torchrun, *vit, str(tmp_path / "two")], [*vit, str(tmp_path / "one")]):
        subprocess.run([sys.executable, *command], env=environment, check=True)
    one, two = (open_checkpoint(tmp_path / run / "checkpoint").arrays for run in ("one", "two"))
    for name in one:
        # 300 steps amplify rounding; a batch shared wrongly is apart in the first digits.
        assert parity.difference(two[name], one[name])[1] < 1e-8, name
    ends = [read(tmp_path / run / "metrics.jsonl")[-1] for run in ("one", "two")]
    assert ends[0]["top1"] == ends[1]["top1"]


def main() -> None:
    folder = Path(sys.argv[1])
    config = TrainConfig.parse(json.loads((folder / "config.json").read_text()), "config.json")
    engine = {"jax": JaxEngine, "torch": TorchEngine}[os.environ["ENGINE"]](config)
    found = trained(engine)
    if engine.process == 0:
        np.savez(folder / "found.npz", devices=engine.devices, **found)


if __name__ == "__main__":
    main()
