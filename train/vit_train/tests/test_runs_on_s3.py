"""A run in S3, against a server on this machine that other people wrote."""

from collections.abc import Iterator

import numpy as np
import pytest

from vit_core import InputError, open_checkpoint
from vit_core.checkpoints.formats.vit.step import step_files
from vit_core.checkpoints.run_folder import saved_steps
from vit_core.storage import StorePath, location
from vit_core.storage.tests.s3_server import s3_server
from vit_train import loop
from vit_train.data.batches import Batches
from vit_train.engines.jax import saving
from vit_train.metrics import METRICS, curve, read_metrics
from vit_train.tests.small_run import CONFIG, ENGINES, quadrants, run_in, save_step

SPLIT = quadrants()


@pytest.fixture(scope="module", autouse=True)
def _s3() -> Iterator[None]:
    with s3_server():
        yield


@pytest.mark.parametrize("name", [pytest.param("jax", marks=pytest.mark.release), "torch"])
def test_a_run_resumes_in_either_engine(name: str) -> None:
    """Trained to a step that is saved there, resumed by both engines, and finished."""
    out = location(f"s3://bucket/{name}")
    config = CONFIG.replace(save_every=5, steps=12)
    run, batches = run_in(out, config), Batches(SPLIT, config)
    engine = ENGINES[name](config)
    loop.fit(engine, run, batches, SPLIT)
    assert [step.name for step in saved_steps(out)] == ["000012", "000010"]
    assert curve(read_metrics(out / METRICS), "loss")[0] == [5, 10, 12]
    finished = open_checkpoint(out / "checkpoint")
    assert (finished.config.provenance.run, finished.config.provenance.step) == (name, 12)
    saved = open_checkpoint(saved_steps(out)[0])
    for parameter, array in engine.export().items():
        np.testing.assert_array_equal(finished.arrays[parameter], array)
        np.testing.assert_array_equal(saved.arrays[parameter], array)
    for make in ENGINES.values():
        resumed, step = run.start(make, None)
        assert step == 12
        for key, array in engine.statistics().items():
            np.testing.assert_array_equal(resumed.statistics()[key], array)


def test_a_damaged_object_gives_way_to_the_step_before() -> None:
    out = location("s3://bucket/damaged")
    run, engine = run_in(out), ENGINES["jax"](CONFIG)
    for step in (1, 2):
        save_step(run, engine, step)
    file = next(file for name, file in step_files(run.step_folder(2)).items() if "/d/" in name)
    assert isinstance(file, StorePath)
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert run.start(ENGINES["jax"], None)[1] == 1
    assert [step.name for step in saved_steps(out)] == ["000001"]


def test_several_processes_cannot_save_there(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ENGINES["jax"](CONFIG)
    monkeypatch.setattr(saving.jax, "process_count", lambda: 2)
    with pytest.raises(InputError, match=r"s3://bucket/run/steps/000001: several processes cannot save there together"):
        run_in(location("s3://bucket/run")).save(engine, 1)
