"""Adapters trained with a teacher: any mesh of devices, and processes of torchrun, give the weights of one device."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity_tests import parallel
from parity_tests.test_sharding import MESHES, on_devices
from parity_tests.test_torchrun import MESHES as PROCESSES
from parity_tests.test_torchrun import TORCHRUN, of
from parity_tests.twins import checkpoint
from vit_core import parity
from vit_core.checkpoints import Checkpoint, open_checkpoint
from vit_core.lora import Lora, merged_arrays
from vit_train.config import Distillation, TrainConfig
from vit_train.engines.jax.engine import JaxEngine
from vit_train.engines.torch.engine import TorchEngine
from vit_train.run import Request, Run
from vit_train.tests.small_run import LABELS, MODEL, save_step

RUN = parallel.RUN.replace(
    model=MODEL.replace(width=32, heads=8, mlp_dim=64, distillation="head"),
    lora=Lora(rank=3, targets=("qkv", "proj", "fc1", "fc2")),
    distillation=Distillation(teacher="in memory", kind="logits", temperature=2.0),
)
TEACHER = MODEL.replace(width=32, heads=8, mlp_dim=64, depth=3, stochastic_depth=0.0)


def engine_of(make: Any, run: TrainConfig = RUN, **start: Any) -> Any:
    start = start or {"weights": checkpoint(RUN.model)}
    return make(run, teacher=checkpoint(TEACHER, seed=7), **start)


def trained(engine: Any) -> dict[str, np.ndarray]:
    return parallel.trained(engine) | engine.statistics()


@pytest.mark.release
def test_every_mesh_is_one_device(tmp_path: Path) -> None:
    on_devices(8, str(tmp_path), script=__file__)
    expected = trained(engine_of(JaxEngine))
    for mesh in MESHES:
        found = np.load(tmp_path / f"{mesh}.npz")
        assert set(found) == expected.keys()
        for name, array in expected.items():
            assert parity.difference(found[name], array)[1] <= parity.SHARDED_BOUND, (mesh, name)
    # The step that eight devices saved is the merged network, and one goes on from it.
    run = Run(tmp_path, Request(config=RUN))
    resumed = engine_of(JaxEngine, saved=run.step_folder(parallel.STEPS))
    arrays = merged_arrays(resumed.export(), RUN.model, RUN.lora)
    assert_same_arrays(open_checkpoint(run.step_folder(parallel.STEPS)), arrays)
    for name, array in resumed.export().items():
        assert parity.difference(array, expected[name])[1] <= parity.SHARDED_BOUND, name


def assert_same_arrays(found: Checkpoint, expected: dict[str, np.ndarray]) -> None:
    assert found.arrays.keys() == expected.keys()
    for name, array in expected.items():
        assert parity.difference(found.arrays[name], array)[1] <= parity.FLOAT64_BOUND, name


@pytest.mark.release
def test_two_processes_are_one(tmp_path: Path) -> None:
    found = parallel.in_processes(tmp_path, TORCHRUN, {}, __file__)
    expected = parallel.trained(engine_of(TorchEngine))
    for mesh in PROCESSES:
        parallel.assert_same(of(found, mesh), expected)


def on_meshes(folder: Path) -> None:
    for name, mesh in MESHES.items():
        engine = engine_of(JaxEngine, RUN.replace(mesh=mesh, accumulation=2 if name == "data 8" else 1))
        np.savez(folder / f"{name}.npz", **trained(engine))
    run = Run(folder, Request(config=RUN, labels=LABELS))
    run.write()
    save_step(run, engine, parallel.STEPS)


def in_processes(folder: Path) -> None:
    found = {}
    for name, mesh in PROCESSES.items():
        engine = engine_of(TorchEngine, RUN.replace(mesh=mesh))
        found |= {f"{name}/{key}": array for key, array in parallel.trained(engine).items()}
    if engine.process == 0:
        np.savez(folder / "found.npz", **found)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    (in_processes if (target / "config.json").exists() else on_meshes)(target)
