"""Masked-autoencoder pretraining in both engines: results do not depend on the framework, the mesh or the processes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity_tests.test_masked_autoencoder import MAE
from vit_core import ViTConfig, open_checkpoint, parity
from vit_core.checkpoints import Checkpoint, CheckpointConfig
from vit_core.errors import InputError
from vit_core.masks import PATCH_ORDER
from vit_core.parameters import parameters
from vit_train.config import Mesh, Optimizer, Schedule, TrainConfig
from vit_train.config.mesh import check_divides
from vit_train.engine import Engine
from vit_train.engines.jax.engine import JaxEngine
from vit_train.engines.torch.engine import TorchEngine
from vit_train.loop import batches_for
from vit_train.run import Run
from vit_train.tests.small_run import quadrants, run_in, save_step, train_steps

MODEL = ViTConfig(
    image_size=8, patch_size=2, channels=1, width=32, depth=2, heads=8, mlp_dim=64, num_classes=0,
    position_embedding="sincos2d_mae", stochastic_depth=0.2,
)  # fmt: skip
RUN = TrainConfig(
    model=MODEL,
    mae=MAE.replace(decoder_heads=8, decoder_mlp_dim=32, normalize_target=True, mask_ratio=0.75),
    optimizer=Optimizer(learning_rate=3e-3, weight_decay=0.05, beta2=0.95, epsilon=1e-6, clip_norm=1.0),
    schedule=Schedule(warmup_steps=4),
    steps=20,
    batch_size=16,
    ema=0.9,
    dtype="float64",
    tensorboard=False,
)
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
MESHES: dict[str, dict[str, Mesh]] = {
    "jax": {
        "data 8": Mesh(data=8), "fsdp 8": Mesh(data=1, fsdp=8), "2 x 2 x 2": Mesh(data=2, fsdp=2, tensor=2),
        "tensor 8": Mesh(data=1, tensor=8),
    },
    "torch": {"halves": Mesh(fsdp=2), "whole": Mesh()},
}  # fmt: skip
ENGINES: dict[str, Any] = {"jax": JaxEngine, "torch": TorchEngine}
BOUNDS = {"jax": parity.SHARDED_BOUND, "torch": parity.FLOAT64_BOUND}
"""Two processes of PyTorch sum in another order only once, where they add their gradients."""


def images() -> Any:
    """A split of which one image cannot be read."""
    found = quadrants()
    found.examples[5] = {"image": b"", "label": 1}  # type: ignore[index]
    return found


def weights() -> Checkpoint:
    """An encoder with random values; the decoder's are new ones, by the seed of the run."""
    arrays = parity.randomized(MODEL, 0)
    return Checkpoint.of(CheckpointConfig(model=MODEL), arrays)


def everything(engine: Engine) -> dict[str, np.ndarray]:
    """All arrays that the engine saves, and the losses of some images."""
    batch = batches_for(engine, images())[engine.config.steps - 1]
    losses_B = np.zeros(RUN.batch_size)
    losses_B[engine.rows(RUN.batch_size)] = engine.losses(batch) if engine.primary else 0
    averages = {f"average of {name}": array for name, array in engine.export(averaged=True).items()}
    return engine.export() | averages | engine.statistics() | {"losses": engine.total(losses_B)}


def trained(engine: Engine, steps: int) -> dict[str, np.ndarray]:
    """The engine's state after some steps, and the loss and gradient norm of each step."""
    batches, found = batches_for(engine, images()), {}
    for step in range(steps):
        result = engine.train_step(batches[step], step)
        found[f"loss.{step}"] = np.asarray(float(result.loss))
        found[f"norm.{step}"] = np.asarray(result.gradient_norm)
    return found | everything(engine)


def assert_same(found: Any, expected: dict[str, np.ndarray], bound: float) -> None:
    assert set(found) == expected.keys()
    for name, array in expected.items():
        assert parity.difference(found[name], array)[1] <= bound, name


@pytest.mark.parametrize(
    "accumulation", [pytest.param(1, marks=pytest.mark.release), pytest.param(4, marks=pytest.mark.slow)]
)
def test_twenty_steps_are_the_same(accumulation: int) -> None:
    run = RUN.replace(accumulation=accumulation)
    in_jax, in_torch = (trained(make(run, weights()), run.steps) for make in ENGINES.values())
    assert_same(in_jax, in_torch, parity.FLOAT64_BOUND)
    assert {name for name in in_torch if name.startswith("params/")} == {
        f"params/{name}" for name in parameters(MODEL, run.mae).keys() - parameters(MODEL).keys()
    }
    start = JaxEngine(run).statistics()["params/decoder.pred.weight"]
    assert parity.difference(in_torch["params/decoder.pred.weight"], start)[1] > 1e-3, "nothing was trained"
    assert in_torch["loss.19"] < in_torch["loss.0"]


@pytest.mark.parametrize(
    "saved_by", [pytest.param("jax", marks=pytest.mark.release), pytest.param("torch", marks=pytest.mark.slow)]
)
def test_either_engine_goes_on_with_a_step_of_either(saved_by: str, tmp_path: Path) -> None:
    """In the same one bit for bit; and the step is a checkpoint of the encoder, like any other."""
    whole, first = ENGINES[saved_by](RUN), ENGINES[saved_by](RUN)
    batches = batches_for(whole, images())
    assert not np.array_equal(batches[0].masks[PATCH_ORDER], batches[1].masks[PATCH_ORDER])
    train_steps(whole, batches, 0, 4)
    run = Run(tmp_path, run_in(tmp_path, RUN).request.replace(labels=None))
    folder = save_step(run, train_steps(first, batches, 0, 2), 2)
    encoder = open_checkpoint(folder)
    assert encoder.config.model == MODEL
    assert set(encoder.arrays) == parameters(MODEL).keys()
    expected = everything(whole)
    for name, make in ENGINES.items():
        found = everything(train_steps(make(RUN, saved=folder), batches, 2, 4))
        assert_same(found, expected, 0.0 if name == saved_by else parity.FLOAT64_BOUND)


def test_a_mesh_that_cannot_divide_the_decoder_is_refused() -> None:
    for axes, message in (
        ({"fsdp": 1, "tensor": 3}, "mesh.tensor: 3 does not divide mae.decoder_heads 8"),
        ({"fsdp": 3, "tensor": 1}, "mesh.fsdp: 3 does not divide mae.decoder_width 16"),
    ):
        with pytest.raises(InputError, match=message):
            check_divides(axes, RUN.mae.decoder(MODEL), "mae.decoder_")


def in_processes(framework: str, folder: Path) -> None:
    """This very file, run as a script: by JAX on eight devices, or by PyTorch in two processes."""
    environment = {**os.environ, "PYTHONPATH": f"{os.getcwd()}:{os.getcwd()}/train", "OMP_NUM_THREADS": "1"}
    if framework == "jax":
        # Four programs: as in `make test`, code is generated quickly.
        quick = "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0"
        flags = f"{os.environ.get('XLA_FLAGS', '')} {quick} --xla_force_host_platform_device_count=8"
        environment |= {"XLA_FLAGS": flags, "JAX_ENABLE_X64": "1"}
    command = [sys.executable, *(TORCHRUN if framework == "torch" else ()), __file__, framework, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.release
@pytest.mark.parametrize("framework", ENGINES)
def test_every_mesh_trains_as_one_device(framework: str, tmp_path: Path) -> None:
    in_processes(framework, tmp_path)
    expected = trained(ENGINES[framework](RUN), 6)
    for mesh in MESHES[framework]:
        assert_same(np.load(tmp_path / f"{mesh}.npz"), expected, BOUNDS[framework])


def main(framework: str, folder: Path) -> None:
    for name, mesh in MESHES[framework].items():
        accumulation = 2 if name == "data 8" else 1
        engine = ENGINES[framework](RUN.replace(mesh=mesh, accumulation=accumulation))
        found = trained(engine, 6)
        if engine.process == 0:
            np.savez(folder / f"{name}.npz", **found)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
