"""One run on every kind of mesh: losses and weights equal those of a single device, and arrays are sharded by the
rules."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity_tests import parallel
from vit_core import parity
from vit_core.checkpoints.run_folder import saved_steps
from vit_train.config import Mesh
from vit_train.data.batches import Batches
from vit_train.engines.jax.engine import JaxEngine
from vit_train.loop import batches_for
from vit_train.run import Run
from vit_train.tests.small_run import MODEL, run_in, save_step

RUN = parallel.RUN.replace(model=MODEL.replace(width=32, heads=8, mlp_dim=64), accumulation=1)
ROTARY = RUN.replace(
    model=RUN.model.replace(
        rope={"shift": 0.3, "jitter": 1.5, "rescale": 2.0}, position_embedding="none", key_bias=False, registers=2
    )
)
"""As DINOv3, with all that training draws of its coordinates."""
BY_MATRIX: dict[str, dict[str, Any]] = {"muon": {"momentum": 0.95}, "lamb": {}, "adafactor": {"epsilon": None}}
"""Optimizers that see whole matrices, of which each device holds a slice."""
KINDS = {"rotary": ROTARY}
KINDS |= {name: RUN.replace(optimizer=RUN.optimizer.replace(name=name, **fields)) for name, fields in BY_MATRIX.items()}
KINDS |= {kind: RUN.replace(**fields) for kind, fields in parallel.DRAWN_SIZES.items()}
"""Runs that need more of a mesh than RUN does: a change of coordinates that serves the whole batch; a kernel that is
resized from slices of it; images of any aspect."""
MESHES = {
    "data 8": Mesh(data=8),
    "fsdp 8": Mesh(data=1, fsdp=8),
    "2 x 2 x 2": Mesh(data=2, fsdp=2, tensor=2),
    "tensor 8": Mesh(data=1, tensor=8),
}

SHARDS: dict[str, list[tuple[int, ...]]] = {
    "params/blocks.0-1.attn.qkv.weight": [(2, 32, 3, 8, 4), (2, 4, 3, 8, 4), (2, 16, 3, 4, 4), (2, 32, 3, 1, 4)],
    "first_moment/blocks.0-1.mlp.fc1.weight": [(2, 32, 64), (2, 4, 64), (2, 16, 32), (2, 32, 8)],
    "average/blocks.0-1.mlp.fc2.weight": [(2, 64, 32), (2, 64, 4), (2, 32, 16), (2, 8, 32)],
    "second_moment/blocks.0-1.mlp.fc1.bias": [(2, 64), (2, 64), (2, 32), (2, 8)],
    "params/pos_embed": [(1, 5, 32), (1, 5, 4), (1, 5, 16), (1, 5, 32)],
    "params/norm.weight": [(32,), (32,), (32,), (32,)],
}
"""Shapes on a device for each mesh, computed by hand: width is sharded over fsdp, heads and hidden units over tensor;
vectors keep their width."""

COLLECTIVES = {
    "data 8": {"all-reduce"},
    "fsdp 8": {"all-gather", "all-reduce"},
    "2 x 2 x 2": {"all-gather", "all-reduce", "collective-permute"},
    "tensor 8": {"all-reduce"},
}
"""Gradients are summed over data; matrices gathered over fsdp; partial products summed over tensor, among which the
head's is shared out. (On CPUs XLA writes reduce-scatter as an all-reduce of which each device keeps its part.)"""

LAYER = 32 * 3 * 32
"""Values of a layer's largest matrix."""


QUICK = "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0"
"""Eight programs, which take four fifths of their time to compile: as in `make test`, code is generated quickly."""


def on_devices(count: int, *words: str, script: str = __file__) -> None:
    """Runs this file, or another one, as a script with a number of devices."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((os.getcwd(), os.path.join(os.getcwd(), "train"))),
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {QUICK} --xla_force_host_platform_device_count={count}",
        "JAX_ENABLE_X64": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run([sys.executable, script, *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of eight devices: arrays, shards and collectives of each mesh, and a saved step."""
    folder = tmp_path_factory.mktemp("eight")
    on_devices(8, "eight", str(folder))
    return folder


def trained(engine: JaxEngine) -> dict[str, np.ndarray]:
    return parallel.trained(engine) | engine.statistics()


def batches_of(engine: JaxEngine) -> Batches:
    return batches_for(engine, parallel.split())


@pytest.fixture(scope="module")
def one() -> dict[str, np.ndarray]:
    return trained(JaxEngine(RUN))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_losses_and_weights_are_a_single_devices(mesh: str, eight: Path, one: dict[str, np.ndarray]) -> None:
    found = np.load(eight / f"{mesh}.npz")
    assert set(found) == one.keys()
    for name, expected in one.items():
        assert parity.difference(found[name], expected)[1] <= parity.SHARDED_BOUND, name


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_every_device_holds_its_shard(mesh: str, eight: Path) -> None:
    shards = json.loads((eight / "shards.json").read_text())[mesh]
    for leaf, expected in SHARDS.items():
        assert {tuple(shape) for shape in shards[leaf]} == {expected[list(MESHES).index(mesh)]}, leaf


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_the_program_has_the_collectives(mesh: str, eight: Path) -> None:
    """The expected collectives; none gathers the layers of a matrix, as a wrong reshape of a gradient would."""
    found = json.loads((eight / "collectives.json").read_text())[mesh]
    assert {kind for kind, _ in found} == COLLECTIVES[mesh]
    assert max((size for kind, size in found if kind == "all-gather"), default=0) <= LAYER


@pytest.mark.release
@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_a_single_devices_on_every_mesh(kind: str, tmp_path: Path) -> None:
    on_devices(8, kind, str(tmp_path))
    expected = trained(JaxEngine(KINDS[kind]))
    for mesh in MESHES:
        assert_same(np.load(tmp_path / f"{mesh}.npz"), expected, mesh)


def assert_same(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], what: str) -> None:
    assert set(found) == expected.keys()
    for name, array in expected.items():
        assert parity.difference(found[name], array)[1] <= parity.SHARDED_BOUND, (what, name)


@pytest.mark.release
def test_float32_is_a_single_devices(tmp_path: Path) -> None:
    on_devices(8, "float32", str(tmp_path))
    expected = trained(JaxEngine(RUN.replace(dtype="float32")))
    for mesh in MESHES:
        found = np.load(tmp_path / f"{mesh}.npz")
        for step in range(parallel.STEPS):
            assert parity.difference(found[f"loss.{step}"], expected[f"loss.{step}"])[1] <= parity.FLOAT32_BOUND


@pytest.mark.slow
def test_a_run_goes_on_with_fewer_devices(eight: Path, one: dict[str, np.ndarray], tmp_path: Path) -> None:
    """Saved by 8 devices as 2 x 2 x 2 after 2 steps, continued by 4 until step 3, and by 1 to the end."""
    on_devices(4, "four", str(eight))
    assert saved_steps(eight)[0].name == "000003"
    engine = JaxEngine(RUN, saved=eight / "steps" / "000003")
    batches = batches_of(engine)
    for step in range(3, parallel.STEPS):
        engine.train_step(batches[step], step)
    for name, array in (engine.export() | engine.statistics()).items():
        assert parity.difference(array, one[name])[1] <= parity.SHARDED_BOUND, name


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [{"scan": False}, {"remat": "full"}, {"remat": "dots"}, {"accumulation": 4}],
    ids=str,
)
def test_storage_and_recomputation_change_no_result(change: dict[str, object], one: dict[str, np.ndarray]) -> None:
    found = trained(JaxEngine(RUN.replace(**change)))
    for name, expected in one.items():
        assert parity.difference(found[name], expected)[1] <= parity.SHARDED_BOUND, name


def collectives(program: str) -> list[tuple[str, int]]:
    """Kind and number of values of every array that a collective of a compiled program returns."""
    found = []
    for results, kind in re.findall(r"= (.*?) (all-\w+|reduce-scatter|collective-permute)(?:-start)?\(", program):
        sizes = re.findall(r"\w+\[([\d,]*)\]", results)
        found += [(kind, prod(int(length) for length in size.split(",") if length)) for size in sizes]
    return found


def main(kind: str, folder: Path) -> None:
    run = Run(folder, run_in(folder, RUN).request)
    if kind == "four":
        engine = JaxEngine(RUN.replace(mesh=Mesh(fsdp=4)), saved=run.step_folder(2))
        engine.train_step(batches_of(engine)[2], 2)
        save_step(run, engine, 3)
        return
    if kind in KINDS:
        for name, mesh in MESHES.items():
            config = KINDS[kind].replace(mesh=mesh, accumulation=2 if name == "data 8" else 1)
            np.savez(folder / f"{name}.npz", **trained(JaxEngine(config)))
        return
    shards, programs = {}, {}
    for name, mesh in MESHES.items():
        config = RUN.replace(mesh=mesh, accumulation=2 if name == "data 8" else 1)
        engine = JaxEngine(config.replace(dtype="float32") if kind == "float32" else config)
        np.savez(folder / f"{name}.npz", **trained(engine))
        state = engine.state
        shards[name] = {leaf: [shard.data.shape for shard in state[leaf].addressable_shards] for leaf in SHARDS}
        if kind == "eight":
            programs[name] = collectives(engine.step.lower().compile().as_text())
    (folder / "shards.json").write_text(json.dumps(shards))
    (folder / "collectives.json").write_text(json.dumps(programs))
    engine = JaxEngine(RUN.replace(mesh=MESHES["2 x 2 x 2"]))
    batches = batches_of(engine)
    for step in range(2):
        engine.train_step(batches[step], step)
    save_step(run, engine, 2)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
