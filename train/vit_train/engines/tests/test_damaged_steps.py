"""Damage of a saved step is found, and nothing else is taken for damage."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest

from vit_core import InputError
from vit_core.checkpoints.formats.vit.step import WRITTEN_AFTER_MANIFEST, Manifest, step_leaves, step_parameters
from vit_core.checkpoints.run_folder import saved_steps
from vit_core.errors import DamagedError
from vit_train.engines.jax import saving
from vit_train.engines.jax.saving import OrbaxSaver, restore
from vit_train.engines.tests.step_arrays import (
    METADATA,
    MODEL,
    assert_same,
    drawn,
    leaves_of,
    like,
    mesh_of,
    placed,
    saved_step,
)
from vit_train.processes import read_together
from vit_train.tests.small_run import CONFIG, ENGINES, run_in, save_step


def test_any_damage_is_found(tmp_path: Path) -> None:
    expected = {"params/a": drawn("a", (64, 32)), "skipped": np.array(3, np.int32)}
    whole, wanted = saved_step(tmp_path / "whole", expected), like(mesh_of(1, 1, 1), expected)
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
            for read in (lambda: restore(tmp_path / "step", wanted), lambda: step_leaves(tmp_path / "step")):
                try:
                    assert_same(read(), expected)
                except DamagedError:
                    refused += 1
                else:
                    assert name.name in WRITTEN_AFTER_MANIFEST
            shutil.rmtree(tmp_path / "step")
    assert refused >= 8 * (len(names) - len(WRITTEN_AFTER_MANIFEST))


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
def test_a_forged_manifest_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    saved_step(tmp_path / "step", leaves_of(False))
    fields = json.loads((tmp_path / "step/step.json").read_text()) | change
    try:
        fields["stamp"] = Manifest(**{name: x for name, x in fields.items() if name != "stamp"}).stamp
    except InputError:
        fields["stamp"] = ""
    (tmp_path / "step/step.json").write_text(json.dumps(fields))
    with pytest.raises(InputError):
        step_parameters(tmp_path / "step", MODEL)


def out_of_memory(*_: object, **__: object) -> Any:
    raise MemoryError("no memory left")


@pytest.mark.parametrize("name", ENGINES)
def test_an_error_that_is_no_damage_is_raised_and_no_step_is_renamed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, engine = run_in(tmp_path), ENGINES[name](CONFIG)
    for step in (9, 10):
        save_step(run, engine, step)
    where = {"jax": (ocp.Checkpointer, "restore"), "torch": (ENGINES["torch"], "restore")}[name]
    with monkeypatch.context() as patch:
        patch.setattr(*where, out_of_memory)
        with pytest.raises(MemoryError, match="no memory left"):
            run.start(ENGINES[name], None)
    other = run_in(tmp_path / "other", CONFIG.replace(optimizer=CONFIG.optimizer.replace(name="sgd")))
    shutil.copytree(tmp_path / "steps", tmp_path / "other/steps")
    with pytest.raises(InputError, match="check that it was saved with this config"):
        other.start(ENGINES[name], None)
    for folder in (tmp_path, tmp_path / "other"):
        assert [step.name for step in saved_steps(folder)] == ["000010", "000009"]
    assert run.start(ENGINES[name], None)[1] == 10


@pytest.mark.parametrize("name", ENGINES)
def test_a_file_that_may_not_be_read_is_no_damage(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_in(tmp_path)
    save_step(run, ENGINES[name](CONFIG), 9)

    def denied(self: Path, *_: object, **__: object) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    with monkeypatch.context() as patch:  # file modes do not apply to root
        patch.setattr(Path, "read_text", denied)
        with pytest.raises(PermissionError):
            ENGINES[name](CONFIG, saved=run.step_folder(9))


def test_damage_that_one_process_finds_is_raised_in_all() -> None:
    class Second:
        """The second of two processes, of which the first has found damage."""

        index, count = 1, 2

        def total(self, counts: np.ndarray) -> np.ndarray:
            return counts + np.array([1, 0])

    with pytest.raises(DamagedError, match="process 0 found a damaged file; see its message"):
        read_together(Second(), lambda: "read")

    def damaged() -> None:
        raise DamagedError("mine")

    with pytest.raises(DamagedError, match="mine"):
        read_together(Second(), damaged)


def test_a_save_that_fails_for_another_reason_is_not_called_an_unwritable_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: object) -> None:
        raise ZeroDivisionError("a mistake in the program")

    arrays, saver = placed(mesh_of(1, 1, 1), {"params/a": drawn("a", (4,))}), OrbaxSaver()
    with monkeypatch.context() as patch:
        patch.setattr(saving.Manifest, "write", bug)
        saver.save(tmp_path / "steps/000001", arrays, METADATA)
        with pytest.raises(ZeroDivisionError, match="a mistake in the program"):
            saver.wait_until_saved()
    assert list((tmp_path / "steps").iterdir()) == [], "nothing incomplete is left"
    saver.save(tmp_path / "steps/000001", arrays, METADATA)
    saver.close()
    assert [step.name for step in saved_steps(tmp_path)] == ["000001"]
