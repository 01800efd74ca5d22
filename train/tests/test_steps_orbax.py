"""Steps that Orbax wrote: whole or not there, the same bits on any devices, and canonical names without JAX."""

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from train import steps_orbax
from train.steps_orbax import Saver, restore
from vit_core import InputError, ViTConfig, open_checkpoint
from vit_core.checkpoint import CheckpointConfig, Provenance, checkpoint_of, save_checkpoint, saved_steps
from vit_core.formats import orbax as steps
from vit_core.parameters import Parameter, parameters, stacks

Arrays = dict[str, np.ndarray]

# As mlp_dim is width, shapes do not tell matrices from the JAX layout.
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


def statistics(structured: bool) -> Arrays:
    """An optimizer's and an average: "<kind>/<canonical name>", means over rows and columns [batch, length]; and how
    many updates were left out."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, row in TRAINED.items():
        shapes |= {f"average/{name}": row.shape, f"momentum/{name}": row.shape}
        if structured and row.matrix is not None:
            (rows, columns), batch = row.matrix_shape, row.size // prod(row.matrix_shape)
            shapes |= {f"second_moment_rows/{name}": (batch, rows), f"second_moment_columns/{name}": (batch, columns)}
        else:
            shapes[f"second_moment/{name}"] = row.shape
    return {name: drawn(name, shape) for name, shape in shapes.items()} | SKIPPED


def leaves_of(structured: bool) -> Arrays:
    """Parameters and statistics as the JAX engine keeps them."""
    state = {f"params/{name}": array for name, array in PARAMETERS.items()} | statistics(structured)
    leaves = dict(SKIPPED)
    for kind in dict.fromkeys(name.partition("/")[0] for name in state if name not in SKIPPED):
        by_matrix = structured and kind not in ("params", "average")
        for stack in STACKS:
            members = [(row, state[f"{kind}/{row.name}"]) for row in stack.rows if f"{kind}/{row.name}" in state]
            parts = [matrices(row, x) if by_matrix else row.to_jax(x) for row, x in members]
            if parts:
                alone = stack.layers is None
                joined = np.concatenate(parts) if by_matrix else parts[0] if alone else np.stack(parts)
                leaves[f"{kind}/{stack.name}"] = joined
    return leaves


def matrices(row: Parameter, array: np.ndarray) -> np.ndarray:
    """What LAMB and Adafactor keep: [pieces, ...]."""
    return array.reshape(-1, *row.matrix_shape) if array.size == row.size else array


def mesh_of(*shape: int) -> Mesh:
    """(data, fsdp, tensor) over the first devices."""
    axes, devices = ("data", "fsdp", "tensor"), jax.devices()[: prod(shape)]
    return jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * 3, devices=devices)


def like(mesh: Mesh, arrays: Arrays) -> dict[str, jax.ShapeDtypeStruct]:
    """Their shapes, with the last axes shared out over the mesh where they divide."""

    def sharding(shape: tuple[int, ...]) -> NamedSharding:
        names, spec = ["fsdp", "tensor"], []
        for length in reversed(shape):
            spec.append(names.pop() if names and length % mesh.shape[names[-1]] == 0 else None)
        return NamedSharding(mesh, PartitionSpec(*reversed(spec)))

    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(x.shape)) for name, x in arrays.items()}


def placed(mesh: Mesh, arrays: Arrays) -> dict[str, jax.Array]:
    """The arrays there."""
    return {
        name: jax.make_array_from_callback(x.shape, x.sharding, lambda part, x=arrays[name]: x[part])
        for name, x in like(mesh, arrays).items()
    }


def assert_same(found: object, expected: Arrays) -> None:
    """Bit for bit, names included."""
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        mine = np.asarray(found[name])
        assert (mine.dtype, mine.shape, mine.tobytes()) == (array.dtype, array.shape, array.tobytes()), name


def saved(folder: Path, arrays: Arrays, structured: bool = False) -> Path:
    """A step, saved from one device."""
    saver = Saver()
    saver.save(folder, placed(mesh_of(1, 1, 1), arrays), METADATA, structured)
    saver.close()
    return folder


def save_on_eight_devices(folder: Path) -> None:
    """What a process with eight devices does for the tests: saves from all of them, restores on four."""
    steps_orbax.LARGE = 2**11  # few arrays shared out among replicas: each takes its time to compile
    mesh, saver = mesh_of(2, 2, 2), Saver()
    spoil = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    for structured in (False, True):
        step, expected = folder / f"steps/{int(structured):06d}", leaves_of(structured)
        arrays = placed(mesh, expected)
        saver.save(step, arrays, METADATA, structured)
        jax.block_until_ready(spoil({name: x for name, x in arrays.items() if "qkv.weight" in name}))
        saver.wait()
        wanted = like(mesh_of(1, 2, 2), expected)
        found = restore(step, wanted)
        assert_same(found, expected)
        assert all(found[name].sharding == x.sharding for name, x in wanted.items())
    saver.close()


def run_apart(call: str, **environment: str) -> subprocess.Popen[str]:
    """A call of something in this file, in another process."""
    command = [sys.executable, "-c", f"from pathlib import Path\nfrom train.tests import test_steps_orbax as t\n{call}"]
    return subprocess.Popen(command, env=os.environ | environment, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with two steps saved from eight devices: 0 in the JAX layout, 1 by matrix."""
    folder = tmp_path_factory.mktemp("run")
    process = run_apart(
        f"t.save_on_eight_devices(Path({str(folder)!r}))",
        XLA_FLAGS="--xla_force_host_platform_device_count=8",
        JAX_PLATFORMS="cpu",
    )
    assert process.wait() == 0, process.stderr and process.stderr.read()
    return folder


@pytest.mark.parametrize("structured", [False, True])
def test_a_step_is_the_same_on_one_device_and_without_jax(run: Path, structured: bool) -> None:
    step, expected = run / f"steps/{int(structured):06d}", leaves_of(structured)
    assert_same(restore(step, like(mesh_of(1, 1, 1), expected)), expected)
    assert_same(steps.read_leaves(step), expected)
    assert steps.metadata(step) == METADATA


@pytest.mark.parametrize("structured", [False, True])
def test_canonical_names(run: Path, structured: bool) -> None:
    step = run / f"steps/{int(structured):06d}"
    assert_same(steps.parameters_of(step, MODEL), PARAMETERS)
    assert_same(steps.statistics_of(step, MODEL), statistics(structured))


def test_reading_starts_no_jax(run: Path) -> None:
    process = run_apart(
        f"""
import sys
del sys.modules["jax"]
sys.modules["jax"] = None
from vit_core import open_checkpoint
assert open_checkpoint({str(run / "steps/000001")!r}).arrays["head.weight"].shape == (4, 16)
"""
    )
    assert process.wait() == 0, process.stderr and process.stderr.read()


def test_a_step_is_a_checkpoint(run: Path, tmp_path: Path) -> None:
    opened = open_checkpoint(run / "steps/000001")
    assert opened.config.model_dump(mode="json") == METADATA
    assert_same(opened.arrays, PARAMETERS)
    shutil.copytree(run, tmp_path / "run")
    save_checkpoint(tmp_path / "run/steps/000005", opened.config, opened.arrays)
    (tmp_path / "run/steps/000009").mkdir()
    assert [folder.name for folder in saved_steps(tmp_path / "run")] == ["000005", "000001", "000000"]
    assert checkpoint_of(run) == run / "steps/000001"


def test_without_tensorstore(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(InputError, match=r"pip install 'vit-parity\[train\]'"):
        open_checkpoint(run / "steps/000001").arrays["head.weight"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.pop("skipped"), "unexpected skipped; was it saved by another config"),
        (lambda found: found.update(more=np.zeros(1, np.float32)), "no more; was it saved by another config"),
        (lambda found: found.update(skipped=np.zeros(2, np.int32)), r"skipped expected int32 \[2\] found int32 \[\]"),
        (lambda found: found.update(skipped=np.zeros((), np.float32)), r"skipped expected float32 \[\] found int32"),
    ],
)
def test_another_configs_leaves(run: Path, change: object, message: str) -> None:
    wanted = leaves_of(False)
    change(wanted)
    with pytest.raises(InputError, match=message):
        restore(run / "steps/000000", like(mesh_of(1, 1, 1), wanted))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 2}, r"unexpected params/blocks\.0-2\.norm1\.weight"),
        ({"depth": 4}, r"no params for blocks\.3\.norm1\.weight"),
        ({"width": 32}, r"params/patch_embed\.proj\.weight expected \[4, 4, 1, 32\] found \[4, 4, 1, 16\]"),
    ],
)
def test_another_config(run: Path, change: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=f"{message}.*; was it saved by another config"):
        steps.parameters_of(run / "steps/000000", MODEL.replace(**change))


def test_any_damage_is_found(tmp_path: Path) -> None:
    expected = {"params/a": drawn("a", (64, 32)), "skipped": np.array(3, np.int32)}
    whole, wanted = saved(tmp_path / "whole", expected), like(mesh_of(1, 1, 1), expected)
    names = [path.relative_to(whole) for path in whole.rglob("*") if path.is_file()]
    assert {"step.json", "manifest.ocdbt", "_METADATA"} <= {str(name) for name in names}
    refused = 0
    for name in names:
        content = (whole / name).read_bytes()
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :] if content else b"x"
        for damaged in (None, b"", content[:middle], flipped):
            shutil.copytree(whole, tmp_path / "step")
            (tmp_path / "step" / name).unlink()
            if damaged is not None:
                (tmp_path / "step" / name).write_bytes(damaged)
            for read in (lambda: restore(tmp_path / "step", wanted), lambda: steps.read_leaves(tmp_path / "step")):
                try:
                    assert_same(read(), expected)
                except InputError:
                    refused += 1
                else:
                    assert name.name in steps.CHANGING
            shutil.rmtree(tmp_path / "step")
    assert refused >= 8 * (len(names) - len(steps.CHANGING))


@pytest.mark.parametrize(
    "change",
    [
        {"leaves": {"params/blocks.0-99999999999.norm1.weight": {"dtype": "float32", "shape": [2**50]}}},
        {"leaves": {"params/blocks.2-0.norm1.weight": {"dtype": "float32", "shape": [1, 16]}}},
        {"leaves": {"params/head.bias": {"dtype": "object", "shape": [4]}}},
        {"files": {"../../outside": {"bytes": 1, "crc32": 0}}},
        {"metadata": []},
        {"format_version": 2},
    ],
)
def test_a_manifest_made_up(run: Path, tmp_path: Path, change: dict[str, object]) -> None:
    shutil.copytree(run / "steps/000000", tmp_path / "step")
    fields = json.loads((tmp_path / "step/step.json").read_text()) | change
    try:
        fields["stamp"] = steps.Manifest(**{name: x for name, x in fields.items() if name != "stamp"}).stamp
    except InputError:
        fields["stamp"] = ""
    (tmp_path / "step/step.json").write_text(json.dumps(fields))
    with pytest.raises(InputError):
        steps.parameters_of(tmp_path / "step", MODEL)


@contextmanager
def files_no_longer_than(limit: int) -> Iterator[None]:
    """As on a disk that is full: writing beyond is refused."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_step_before_and_no_half_one(tmp_path: Path) -> None:
    arrays, saver = placed(mesh_of(1, 1, 1), {"params/a": drawn("a", (256, 256))}), Saver()
    saver.save(tmp_path / "steps/000001", arrays, METADATA)
    saver.wait()
    with files_no_longer_than(2**16):
        saver.save(tmp_path / "steps/000002", arrays, METADATA)
        with pytest.raises(
            InputError, match=r"steps/000002: cannot write there \(.*\); choose a writable folder"
        ) as error:
            saver.wait()
    assert "\n" not in str(error.value)
    assert [path.name for path in (tmp_path / "steps").iterdir()] == ["000001"]
    assert saved_steps(tmp_path) == [tmp_path / "steps/000001"]
    saver.save(tmp_path / "steps/000002", arrays, METADATA)
    saver.close()
    assert saved_steps(tmp_path)[0].name == "000002"


def test_a_place_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/000001: cannot write there"):
        saved(tmp_path / "file/000001", {"params/a": drawn("a", (4,))})


def test_what_a_killed_save_left_is_swept(tmp_path: Path) -> None:
    shutil.copytree(
        saved(tmp_path / "000001", {"skipped": np.array(3, np.int32)}), tmp_path / "000002.orbax-checkpoint-tmp"
    )
    (tmp_path / "000003/d").mkdir(parents=True)  # as on an object store, which has no renaming
    assert not steps.is_step(tmp_path / "000003")
    saved(tmp_path / "000003", {"skipped": np.array(3, np.int32)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000001", "000003"]
    assert steps.is_step(tmp_path / "000003")


def save_in_two_processes(folder: Path, port: int, process: int) -> None:
    """One of two processes that save, restore, and find damage together."""
    jax.distributed.initialize(f"localhost:{port}", 2, process)
    expected = leaves_of(True)
    mesh, saver = mesh_of(1, 2, 1), Saver()
    saver.save(folder / "steps/000001", placed(mesh, expected), METADATA, structured=True)
    saver.close()
    found = restore(folder / "steps/000001", like(mesh, expected))
    assert all(
        (np.asarray(shard.data) == expected[name][shard.index]).all()
        for name, x in found.items()
        for shard in x.addressable_shards
    )
    os.replace(folder / "steps/000001/_METADATA", folder / f"moved-{process}") if process == 0 else None
    jax.experimental.multihost_utils.sync_global_devices("damaged")
    with pytest.raises(InputError):
        restore(folder / "steps/000001", like(mesh, expected))
    jax.experimental.multihost_utils.sync_global_devices("seen")
    os.replace(folder / "moved-0", folder / "steps/000001/_METADATA") if process == 0 else None


def test_two_processes_save_one_step(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    call = f"t.save_in_two_processes(Path({str(tmp_path)!r}), {port}, "
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1", "JAX_PLATFORMS": "cpu"}
    processes = [run_apart(f"{call}{i})", **flags) for i in range(2)]
    for process in processes:
        assert process.wait() == 0, process.stderr and process.stderr.read()
    assert_same(steps.read_leaves(tmp_path / "steps/000001"), leaves_of(True))
    assert_same(steps.statistics_of(tmp_path / "steps/000001", MODEL), statistics(True))
