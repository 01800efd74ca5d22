"""Runs in an object store that are killed at any of their requests, and started again."""

import re
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from vit_core import open_checkpoint, parity
from vit_core.checkpoints.run_folder import saved_steps
from vit_core.storage.tests.fake_gcs import Store
from vit_train.metrics import METRICS, curve, read_metrics
from vit_train.tests.fixtures import Vit
from vit_train.tests.gcs import OUT, gcs_server, kill_at, recipe, start, store, wait_until_finished
from vit_train.tests.run_processes import assert_the_same_run
from vit_train.tests.small_run import ENGINES

__all__ = ["gcs_server", "recipe", "store"]


@pytest.mark.release
def test_a_run_killed_while_saving_and_started_again_is_the_same_run(store: Store, recipe: Path, vit: Vit) -> None:
    """In JAX, by real processes: the store then has an incomplete step, and at the end the same as a folder."""
    kill_at(store, "put", r"steps/000010/step\.json", recipe)
    assert [step.name for step in saved_steps(OUT)] == ["000005"]
    assert store.names("run/steps/000010/ocdbt.process_0/d/"), "there was an incomplete step"
    local = recipe.parent / "local"
    for process in [start(recipe, out) for out in (OUT, local)]:
        wait_until_finished(process, recipe)
    assert "gs://bucket/run: resuming after step 5 of 24" in (recipe.parent / "log").read_text()
    assert_the_same_run(OUT, local, 24)
    for line, other in zip(read_metrics(OUT / METRICS), read_metrics(local / METRICS), strict=True):
        assert (line["step"], line.get("top1"), line.get("loss")) == (
            other["step"],
            other.get("top1"),
            other.get("loss"),
        )
    assert [step.name for step in saved_steps(OUT)] == ["000024", "000020"]
    assert {name.split("/")[2] for name in store.names("run/steps")} == {"000024", "000020"}, (
        "nothing incomplete is left"
    )
    assert len(store.names("run/tensorboard/")) == 2
    assert store.buckets["bucket"]["run/curves.png"][0].startswith(b"\x89PNG")
    assert "this run is finished" in vit("pretrain", recipe, "--out", OUT)
    printed = [vit("evaluate", out) for out in (OUT, local)]
    assert re.findall("[0-9.]+%", printed[0]) == re.findall("[0-9.]+%", printed[1]) != []


REQUESTS = {
    "jax": [
        ("put", r"run\.json"),
        ("put", r"steps/000005/ocdbt.process_0/d/"),
        ("put", r"steps/000005/_METADATA"),
        ("put", r"metrics\.jsonl"),
        ("put", r"steps/000010/manifest.ocdbt"),
        ("put", r"steps/000010/commit_success.txt"),
        ("delete", r"steps/000005/step\.json"),
        ("delete", r"steps/000005/d/"),
        ("put", r"tensorboard/"),
        ("put", r"checkpoint/model.safetensors"),
        ("put", r"curves.png"),
    ],
    "torch": [
        ("put", r"steps/000005/optimizer.safetensors"),
        ("put", r"steps/000005/model.safetensors"),
        ("put", r"steps/000010/config.json"),
        ("delete", r"steps/000005/model.safetensors"),
        ("put", r"checkpoint_ema/model.safetensors"),
    ],
}


@pytest.mark.release
@pytest.mark.parametrize("name", ENGINES)
def test_a_run_killed_at_any_request_is_the_same_run(name: str, store: Store, recipe: Path) -> None:
    framework = ("--framework", name)
    for verb, pattern in REQUESTS[name]:
        kill_at(store, verb, pattern, recipe, *framework)
    local = recipe.parent / "local"
    for out in (OUT, local):
        wait_until_finished(start(recipe, out, *framework), recipe)
    assert_the_same_run(OUT, local, 24)
    assert {step.split("/")[2] for step in store.names("run/steps")} == {"000024", "000020"}


@pytest.mark.release
def test_two_processes_write_one_run(store: Store, recipe: Path) -> None:
    """Each its own shards; killed while saving, and both started again: the weights are those of one process alone."""
    words = ("--mesh.fsdp", "2", "--dtype", "float64", "--optimizer.epsilon", "1e-6")

    def pair(port: int) -> list[subprocess.Popen[str]]:
        return [start(recipe, OUT, "--distributed", f"127.0.0.1:{port},{i}/2", *words) for i in range(2)]

    first = pair(29713)

    def before(verb: str, name: str) -> None:
        if verb == "put" and "steps/000010/ocdbt.process_1" in name:
            for process in first:
                process.kill()
        if first[0].poll() is not None:
            raise ConnectionError

    store.before = before
    assert [process.wait(timeout=300) for process in first] == [-9, -9], (recipe.parent / "log").read_text()
    time.sleep(0.2)
    store.before = lambda verb, name: None
    assert [step.name for step in saved_steps(OUT)] == ["000005"]
    for i in range(2):
        assert store.names(f"run/steps/000005/ocdbt.process_{i}/d/")
    for process in pair(29714):
        wait_until_finished(process, recipe)
    assert "resuming after step 5 of 24" in (recipe.parent / "log").read_text()
    local = recipe.parent / "local"
    wait_until_finished(start(recipe, local, *words[2:]), recipe)
    one, two = read_metrics(local / METRICS), read_metrics(OUT / METRICS)
    assert curve(one, "fingerprint") == curve(two, "fingerprint")
    np.testing.assert_allclose(curve(one, "loss")[1], curve(two, "loss")[1], rtol=parity.SHARDED_BOUND)
    alone, shared = (open_checkpoint(run / "steps" / "000024").arrays for run in (local, OUT))
    for parameter in alone:
        assert parity.difference(shared[parameter], alone[parameter])[1] <= parity.SHARDED_BOUND, parameter
