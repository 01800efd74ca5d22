"""Arrays of saved steps, and what other processes do with them, for the tests of saving."""

import os
import subprocess
import sys
from collections.abc import Callable
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vit_core import ViTConfig
from vit_core.arrays import LazyArrays
from vit_core.checkpoints import CheckpointConfig, Provenance
from vit_core.checkpoints.formats.vit.step import Manifest, OrbaxStep
from vit_core.checkpoints.run_folder import saved_steps
from vit_core.errors import DamagedError
from vit_core.parameters import Parameter, parameters, stacks
from vit_train.config import Mesh as config_mesh
from vit_train.engines.jax import saving
from vit_train.engines.jax.engine import JaxEngine
from vit_train.engines.jax.saving import OrbaxSaver, restore
from vit_train.run import Request, Run
from vit_train.step_statistics import step_statistics
from vit_train.tests.small_run import CONFIG, LABELS

Arrays = dict[str, np.ndarray]

# As mlp_dim equals width, shapes do not distinguish matrices from the JAX layout.
MODEL = ViTConfig(
    image_size=8, patch_size=4, channels=1, width=16, depth=3, heads=2, mlp_dim=16, pooling="map", num_classes=4
)
METADATA = CheckpointConfig(model=MODEL, provenance=Provenance(run="mine", step=7)).model_dump(mode="json")
ROWS = parameters(MODEL)
TRAINED = {
    name: row
    for name, row in ROWS.items()
    if not fnmatchcase(name, "blocks.1.mlp.*") and not name.startswith("pos_embed")
}
STACKS = [
    *stacks(TRAINED.values()).values(),
    *stacks(row for name, row in ROWS.items() if name not in TRAINED).values(),
]


def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values that depend on the name."""
    return np.random.default_rng(list(name.encode())).standard_normal(shape, np.float32)


PARAMETERS = {name: drawn(name, row.shape) for name, row in ROWS.items()}


SKIPPED: Arrays = {"skipped": np.array(3, np.int32)}


def statistics_of(folder: Path, config: ViTConfig) -> LazyArrays:
    """The statistics of a saved step."""
    return step_statistics(OrbaxStep(folder), parameters(config))


def statistics(by_matrix: bool) -> Arrays:
    """Statistics of an optimizer, and a moving average: "<kind>/<canonical name>", means over rows and columns
    [matrices, length]; and how many updates were skipped."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, row in TRAINED.items():
        shapes |= {f"average/{name}": row.shape, f"momentum/{name}": row.shape}
        if by_matrix and row.matrix is not None:
            (rows, columns), batch = row.matrix_shape, row.size // prod(row.matrix_shape)
            shapes |= {f"second_moment_rows/{name}": (batch, rows), f"second_moment_columns/{name}": (batch, columns)}
        else:
            shapes[f"second_moment/{name}"] = row.shape
    return {name: drawn(name, shape) for name, shape in shapes.items()} | SKIPPED


def leaves_of(by_matrix: bool) -> Arrays:
    """Parameters and statistics as the JAX engine keeps them."""
    state = {f"params/{name}": array for name, array in PARAMETERS.items()} | statistics(by_matrix)
    leaves = dict(SKIPPED)
    for kind in dict.fromkeys(name.partition("/")[0] for name in state if name not in SKIPPED):
        of_matrices = by_matrix and kind not in ("params", "average")
        for stack in STACKS:
            members = [(row, state[f"{kind}/{row.name}"]) for row in stack.rows if f"{kind}/{row.name}" in state]
            parts = [matrices(row, x) if of_matrices else row.to_jax(x) for row, x in members]
            if parts:
                alone = stack.layers is None
                joined = np.concatenate(parts) if of_matrices else parts[0] if alone else np.stack(parts)
                leaves[f"{kind}/{stack.name}"] = joined
    return leaves


def matrices(row: Parameter, array: np.ndarray) -> np.ndarray:
    """A statistic as LAMB and Adafactor keep it: [matrices, ...]."""
    return array.reshape(-1, *row.matrix_shape) if array.size == row.size else array


def mesh_of(*shape: int) -> Mesh:
    """A mesh (data, fsdp, tensor) over the first devices."""
    axes, devices = ("data", "fsdp", "tensor"), jax.devices()[: prod(shape)]
    return jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * 3, devices=devices)


def like(mesh: Mesh, arrays: Arrays) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of arrays, with the last axes divided over the mesh where it divides them."""

    def sharding(shape: tuple[int, ...]) -> NamedSharding:
        names, spec = ["fsdp", "tensor"], []
        for length in reversed(shape):
            spec.append(names.pop() if names and length % mesh.shape[names[-1]] == 0 else None)
        return NamedSharding(mesh, PartitionSpec(*reversed(spec)))

    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(x.shape)) for name, x in arrays.items()}


def placed(mesh: Mesh, arrays: Arrays) -> dict[str, jax.Array]:
    """The arrays on the devices of a mesh."""
    return {
        name: jax.make_array_from_callback(x.shape, x.sharding, lambda part, x=arrays[name]: x[part])
        for name, x in like(mesh, arrays).items()
    }


def assert_same(found: object, expected: Arrays) -> None:
    """Names, types, shapes and every bit are equal."""
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        mine = np.asarray(found[name])
        assert (mine.dtype, mine.shape, mine.tobytes()) == (array.dtype, array.shape, array.tobytes()), name


def saved_step(folder: Path, arrays: Arrays, by_matrix: bool = False) -> Path:
    """The folder of a step, saved from one device."""
    saver = OrbaxSaver()
    saver.save(folder, placed(mesh_of(1, 1, 1), arrays), METADATA, by_matrix)
    saver.close()
    return folder


def save_on_eight_devices(folder: Path) -> None:
    """Runs in a process with eight devices: saves from all of them, restores on four."""
    saving.LARGE = 2**11  # few arrays are divided among replicas: each is a program to compile
    mesh, saver = mesh_of(2, 2, 2), OrbaxSaver()
    spoil = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    for by_matrix in (False, True):
        step, expected = folder / f"steps/{int(by_matrix):06d}", leaves_of(by_matrix)
        arrays = placed(mesh, expected)
        saver.save(step, arrays, METADATA, by_matrix)
        jax.block_until_ready(spoil({name: x for name, x in arrays.items() if "qkv.weight" in name}))
        saver.wait_until_saved()
        wanted = like(mesh_of(1, 2, 2), expected)
        found = restore(step, wanted)
        assert_same(found, expected)
        assert all(found[name].sharding == x.sharding for name, x in wanted.items())
    saver.close()


def start_python(call: str, **environment: str) -> subprocess.Popen[str]:
    """Starts another process that calls something in this file."""
    imports = "from pathlib import Path\nfrom vit_train.engines.tests import step_arrays as t"
    command = [sys.executable, "-c", f"{imports}\n{call}"]
    return subprocess.Popen(command, env=os.environ | environment, stderr=subprocess.PIPE, text=True)


def save_in_two_processes(folder: Path, port: int, process: int) -> None:
    """Runs in each of two processes, which save, restore, and find damage together."""
    jax.distributed.initialize(f"localhost:{port}", 2, process)
    expected = leaves_of(True)
    mesh, saver = mesh_of(1, 2, 1), OrbaxSaver()
    saver.save(folder / "steps/000001", placed(mesh, expected), METADATA, by_matrix=True)
    saver.close()
    found = restore(folder / "steps/000001", like(mesh, expected))
    assert all(
        (np.asarray(shard.data) == expected[name][shard.index]).all()
        for name, x in found.items()
        for shard in x.addressable_shards
    )
    sync = jax.experimental.multihost_utils.sync_global_devices
    os.replace(folder / "steps/000001/_METADATA", folder / f"moved-{process}") if process == 0 else None
    sync("damaged")
    with pytest.raises(DamagedError):
        restore(folder / "steps/000001", like(mesh, expected))
    sync("found")
    os.replace(folder / "moved-0", folder / "steps/000001/_METADATA") if process == 0 else None
    go_back_together(folder / "run", process, sync)


def go_back_together(folder: Path, process: int, sync: Callable[[str], None]) -> None:
    """One file of a run's newest step is damaged. Only the process that checks this file sees it, and both processes
    resume at the step before."""
    config = CONFIG.replace(mesh=config_mesh(fsdp=2))
    run, engine = Run(folder, Request(config=config, labels=LABELS)), JaxEngine(config)
    for step in (1, 2):
        run.save(engine, step)
        run.wait_until_saved(engine)
    newest = run.step_folder(2)
    name = sorted(Manifest.read(newest).files)[1]  # of two processes, the second checks it
    if process == 0:
        content = (newest / name).read_bytes()
        (newest / name).write_bytes(bytes([content[0] ^ 1]) + content[1:])
    sync("damaged a file")
    assert run.start(JaxEngine, None)[1] == 1
    sync("resumed")
    assert [folder.name for folder in saved_steps(folder)] == ["000001"]
