"""Steps that Orbax saved: complete or absent, the same bits on any devices, canonical names without JAX."""

import logging
import resource
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from vit_core import InputError, open_checkpoint, save_checkpoint
from vit_core.checkpoints.formats.vit.step import is_orbax_step, step_config, step_leaves, step_parameters
from vit_core.checkpoints.run_folder import checkpoint_in, saved_steps
from vit_train.engines.jax.saving import OrbaxSaver, restore
from vit_train.engines.tests.step_arrays import (
    METADATA,
    MODEL,
    PARAMETERS,
    Arrays,
    assert_same,
    drawn,
    leaves_of,
    like,
    mesh_of,
    placed,
    saved_step,
    start_python,
    statistics,
    statistics_of,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with two steps saved from eight devices: 0 in the JAX layout, 1 by matrix."""
    folder = tmp_path_factory.mktemp("run")
    process = start_python(
        f"t.save_on_eight_devices(Path({str(folder)!r}))",
        XLA_FLAGS="--xla_force_host_platform_device_count=8",
        JAX_PLATFORMS="cpu",
    )
    assert process.wait() == 0, process.stderr and process.stderr.read()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("by_matrix", [False, True])
def test_a_step_is_read_on_one_device_and_without_jax(run: Path, by_matrix: bool) -> None:
    step, expected = run / f"steps/{int(by_matrix):06d}", leaves_of(by_matrix)
    assert_same(restore(step, like(mesh_of(1, 1, 1), expected)), expected)
    assert_same(step_leaves(step), expected)
    assert step_config(step) == METADATA


@pytest.mark.slow
@pytest.mark.parametrize("by_matrix", [False, True])
def test_arrays_have_canonical_names(run: Path, by_matrix: bool) -> None:
    step = run / f"steps/{int(by_matrix):06d}"
    assert_same(step_parameters(step, MODEL), PARAMETERS)
    assert_same(statistics_of(step, MODEL), statistics(by_matrix))


@pytest.mark.slow
def test_reading_does_not_import_jax(run: Path) -> None:
    process = start_python(
        f"""
import sys
del sys.modules["jax"]
sys.modules["jax"] = None
from vit_core import open_checkpoint
assert open_checkpoint({str(run / "steps/000001")!r}).arrays["head.weight"].shape == (4, 16)
"""
    )
    assert process.wait() == 0, process.stderr and process.stderr.read()


@pytest.mark.slow
def test_a_step_is_a_checkpoint(run: Path, tmp_path: Path) -> None:
    opened = open_checkpoint(run / "steps/000001")
    assert opened.config.model_dump(mode="json") == METADATA
    assert_same(opened.arrays, PARAMETERS)
    shutil.copytree(run, tmp_path / "run")
    save_checkpoint(tmp_path / "run/steps/000005", opened)
    (tmp_path / "run/steps/000009").mkdir()
    assert [folder.name for folder in saved_steps(tmp_path / "run")] == ["000005", "000001", "000000"]
    assert checkpoint_in(run) == run / "steps/000001"


@pytest.mark.slow
def test_without_tensorstore(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(InputError, match=r"pip install 'vit-parity\[train\]'"):
        open_checkpoint(run / "steps/000001").arrays["head.weight"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.pop("skipped"), "unexpected skipped; check that it was saved with this config"),
        (lambda found: found.update(more=np.zeros(1, np.float32)), "no more; check that it was saved with this config"),
        (lambda found: found.update(skipped=np.zeros(2, np.int32)), r"skipped expected int32 \[2\] found int32 \[\]"),
        (lambda found: found.update(skipped=np.zeros((), np.float32)), r"skipped expected float32 \[\] found int32"),
    ],
)
def test_leaves_of_another_config_are_refused(run: Path, change: Callable[[Arrays], object], message: str) -> None:
    wanted = leaves_of(False)
    change(wanted)
    with pytest.raises(InputError, match=message):
        restore(run / "steps/000000", like(mesh_of(1, 1, 1), wanted))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 2}, r"unexpected params/blocks\.0-2\.norm1\.weight"),
        ({"depth": 4}, r"no params for blocks\.3\.norm1\.weight"),
        ({"width": 32}, r"params/patch_embed\.proj\.weight expected \[4, 4, 1, 32\] found \[4, 4, 1, 16\]"),
    ],
)
def test_parameters_of_another_config_are_refused(run: Path, change: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=f"{message}.*; check that it was saved with this config"):
        step_parameters(run / "steps/000000", MODEL.replace(**change))


@contextmanager
def files_no_longer_than(limit: int) -> Iterator[None]:
    """As on a full disk: writing beyond the limit is refused."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_step_before_and_no_incomplete_one(tmp_path: Path) -> None:
    arrays, saver = placed(mesh_of(1, 1, 1), {"params/a": drawn("a", (256, 256))}), OrbaxSaver()
    saver.save(tmp_path / "steps/000001", arrays, METADATA)
    saver.wait_until_saved()
    with files_no_longer_than(2**16):
        saver.save(tmp_path / "steps/000002", arrays, METADATA)
        with pytest.raises(
            InputError, match=r"steps/000002: cannot write there \(.*\); choose a writable folder"
        ) as error:
            saver.wait_until_saved()
    assert "\n" not in str(error.value)
    assert [path.name for path in (tmp_path / "steps").iterdir()] == ["000001"]
    assert saved_steps(tmp_path) == [tmp_path / "steps/000001"]
    saver.save(tmp_path / "steps/000002", arrays, METADATA)
    saver.close()
    assert saved_steps(tmp_path)[0].name == "000002"


def test_what_asyncio_logs_of_orbax_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """On a full disk, a traceback for each array but the first; the error of the save says it all."""
    saved_step(tmp_path / "000001", {"skipped": np.array(3, np.int32)})
    for file in ("/packages/orbax/checkpoint/serialization.py", "/packages/mine.py"):
        logging.getLogger("asyncio").error("Task exception was never retrieved\nfuture: <coro=<f()> at %s:1>", file)
    assert ["mine.py" in text for text in caplog.messages] == [True]


def test_a_folder_that_cannot_be_created(tmp_path: Path) -> None:
    """No thread is left that waits for the folder, and would keep the process from ending for minutes."""
    (tmp_path / "file").write_text("")
    before = set(threading.enumerate())
    with pytest.raises(InputError, match="file/000001: cannot write there"):
        saved_step(tmp_path / "file/000001", {"params/a": drawn("a", (4,))})
    assert [thread for thread in threading.enumerate() if thread not in before and not thread.daemon] == []


def test_what_a_killed_save_left_is_removed(tmp_path: Path) -> None:
    shutil.copytree(
        saved_step(tmp_path / "000001", {"skipped": np.array(3, np.int32)}), tmp_path / "000002.orbax-checkpoint-tmp"
    )
    (tmp_path / "000003/d").mkdir(parents=True)  # as on an object store, which has no renaming
    assert not is_orbax_step(tmp_path / "000003")
    saved_step(tmp_path / "000003", {"skipped": np.array(3, np.int32)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000001", "000003"]
    assert is_orbax_step(tmp_path / "000003")


@pytest.mark.slow
def test_two_processes_save_one_step_and_go_back_together(tmp_path: Path) -> None:
    """See save_in_two_processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    call = f"t.save_in_two_processes(Path({str(tmp_path)!r}), {port}, "
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1", "JAX_PLATFORMS": "cpu"}
    processes = [start_python(f"{call}{i})", **flags) for i in range(2)]
    for process in processes:
        assert process.wait() == 0, process.stderr and process.stderr.read()
    assert_same(step_leaves(tmp_path / "steps/000001"), leaves_of(True))
    assert_same(statistics_of(tmp_path / "steps/000001", MODEL), statistics(True))
