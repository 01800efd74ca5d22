"""Steps, checkpoints and metrics of runs in an object store, and its errors in one line."""

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import vit_jax
import vit_torch
from vit_core import InputError, open_checkpoint, save_checkpoint
from vit_core.checkpoints.run_folder import checkpoint_in, saved_steps
from vit_core.storage import StorageError, StorePath, exclusive, location, object_store
from vit_core.storage.tests.fake_gcs import Refused, Store
from vit_train.metrics import METRICS, Metrics, curve, read_metrics
from vit_train.run import HOLDER, read_request
from vit_train.tests.fixtures import Vit
from vit_train.tests.gcs import OUT, gcs_server, recipe, store
from vit_train.tests.small_run import CONFIG, ENGINES, LABELS, run_in, save_step

__all__ = ["gcs_server", "recipe", "store"]


@pytest.mark.parametrize("name", [pytest.param("jax", marks=pytest.mark.slow), "torch"])
def test_steps_in_a_store(name: str, store: Store) -> None:
    """They are kept and removed as in a folder, incomplete ones do not count, and either engine resumes at them."""
    config = CONFIG.replace(keep=2)
    run, engine = run_in(OUT, config), ENGINES[name](config)
    for step in (2, 4, 6):
        save_step(run, engine, step)
    assert [int(folder.name) for folder in saved_steps(OUT)] == [6, 4]
    assert {entry.split("/")[2] for entry in store.names("run/steps/")} == {"000006", "000004"}
    completing = {"jax": "step.json", "torch": "model.safetensors"}[name]
    incomplete = [entry for entry in store.names("run/steps/000006/") if not entry.endswith(completing)]
    assert len(incomplete) > 1
    for entry in incomplete:
        store.buckets["bucket"][entry.replace("000006", "000008")] = store.buckets["bucket"][entry]
    assert checkpoint_in(OUT) == OUT / "steps" / "000006"
    opened, expected = open_checkpoint(checkpoint_in(OUT)), engine.export()
    assert (opened.config.provenance.run, opened.config.provenance.step) == ("run", 6)
    for parameter, value in expected.items():
        np.testing.assert_array_equal(opened.arrays[parameter], value)
    for make in ENGINES.values():
        again, step = run_in(OUT, config).start(make, None)
        assert step == 6
        for key, value in engine.statistics().items():
            np.testing.assert_array_equal(again.statistics()[key], value)
    save_step(run, engine, 8)
    assert [int(folder.name) for folder in saved_steps(OUT)] == [8, 6], "in place of the incomplete one"


@pytest.mark.parametrize("name", ENGINES)
def test_a_damaged_step_gives_way_to_the_one_before(name: str, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vit")
    run, engine = run_in(OUT), ENGINES[name](CONFIG)
    for step in (9, 10):
        save_step(run, engine, step)
    entry = next(entry for entry in store.names("run/steps/000010/") if re.search("/d/|optimizer", entry))
    content, generation = store.buckets["bucket"][entry]
    store.buckets["bucket"][entry] = content[:-100] + bytes(100 if name == "jax" else 0), generation
    assert run.start(ENGINES[name], None)[1] == 9
    assert ("damaged" if name == "jax" else "not a complete") in caplog.text
    assert [folder.name for folder in saved_steps(OUT)] == ["000009"]
    assert store.names("run/steps/damaged-000010/"), "kept, but not as a step"
    save_step(run, engine, 11)
    assert store.names("run/steps/damaged-000010/")


def test_a_store_that_does_not_answer_is_no_damage(store: Store) -> None:
    """A run goes back to an earlier step if a step is damaged, but not because of the network."""
    run, engine = run_in(OUT), ENGINES["torch"](CONFIG)
    for step in (9, 10):
        save_step(run, engine, step)

    def before(verb: str, name: str) -> None:
        if verb == "get" and "000010" in name:
            raise Refused(403)

    store.before = before
    with pytest.raises(StorageError, match="Forbidden"):
        run.start(ENGINES["torch"], None)
    store.before = lambda verb, name: None
    assert run.start(ENGINES["torch"], None)[1] == 10


def test_checksums_are_those_of_the_store(store: Store, tmp_path: Path) -> None:
    """Saving reads nothing back; a local copy is checked by them too, a copy in the store by the local checksums."""
    step = save_step(run_in(OUT), ENGINES["jax"](CONFIG), 3)
    # Orbax itself reads the manifests of its database and its roots, to merge what the processes wrote.
    got = [name for verb, name in store.log if verb == "get" and "/d/" in name]
    written = [name for verb, name in store.log if verb == "put" and "/d/" in name]
    assert len(got) < len(written)
    arrays = dict(open_checkpoint(step).arrays)
    copy = tmp_path / "000003"
    assert isinstance(step, StorePath)
    for name, source in step.files().items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        source.download(copy / name)
    for name, value in open_checkpoint(copy).arrays.items():
        np.testing.assert_array_equal(value, arrays[name])
    data = next((copy / "ocdbt.process_0" / "d").iterdir())
    data.write_bytes(data.read_bytes()[:-9] + b"damaged!!")
    with pytest.raises(InputError, match="damaged"):
        dict(open_checkpoint(copy).arrays)
    local = save_step(run_in(tmp_path / "local"), ENGINES["jax"](CONFIG), 3)
    for path in (path for path in local.rglob("*") if path.is_file()):
        (step.with_name("000004") / str(path.relative_to(local))).upload(path)  # type: ignore[attr-defined]
    assert run_in(OUT).start(ENGINES["jax"], None)[1] == 4, "Orbax reads a step that was copied to the store"


def test_checkpoints_in_a_store(store: Store, tmp_path: Path, vit: Vit) -> None:
    """They are written and opened by either twin and by commands; one that is being replaced is never incomplete."""
    model = vit_torch.from_seed(CONFIG.model, 0)
    assert str(vit_torch.save(model, "gs://bucket/model", labels=LABELS)) == "gs://bucket/model"
    assert store.names() == ["model/config.json", "model/model.safetensors"]
    loaded = vit_jax.load("gs://bucket/model")
    vit_jax.save(loaded, "gs://bucket/again/")
    first, second = (open_checkpoint(f"gs://bucket/{name}").arrays for name in ("model", "again"))
    for name in first:
        np.testing.assert_array_equal(second[name], first[name])
    assert "wrote gs://bucket/bfloat" in vit(
        "convert", "gs://bucket/model", "gs://bucket/bfloat", "--dtype", "bfloat16"
    )
    vit("convert", "gs://bucket/bfloat", tmp_path / "local")
    assert open_checkpoint(tmp_path / "local").config.provenance.source == "bfloat"

    def before(verb: str, name: str) -> None:
        if (verb, name) == ("put", "model/config.json"):
            store.before, store.refuse = lambda verb, name: None, 403
            raise ConnectionError

    store.before = before
    opened = open_checkpoint("gs://bucket/model")
    with pytest.raises(StorageError, match=r"gs://bucket/model/config.json: Forbidden"):
        save_checkpoint("gs://bucket/model", opened.with_config(opened.config.replace(labels=None)))
    store.refuse = 0
    assert open_checkpoint("gs://bucket/model").config.labels is None, "the weights have the config too"


def test_fine_tuning_from_a_checkpoint_in_a_store(store: Store, recipe: Path, vit: Vit) -> None:
    vit_torch.save(vit_torch.from_seed(CONFIG.model, 0), "gs://bucket/model")
    recipe.write_text(recipe.read_text().replace("pretrain()", "finetune(init)"))
    words = ("--init", "gs://bucket/model", "--out", "gs://bucket/tuned", "--steps", "5", "--save-every", "0")
    assert "gs://bucket/tuned/checkpoint" in vit("finetune", recipe, *words)
    assert read_request(location("gs://bucket/tuned")).init == "gs://bucket/model"
    assert open_checkpoint("gs://bucket/tuned/checkpoint").config.provenance.step == 5


def test_metrics_in_a_store(store: Store) -> None:
    """They are uploaded when a step is saved; a run that goes back removes later ones."""
    with Metrics(OUT, 0) as first:
        for step in range(1, 8):
            first.write(step, loss=float(step), engine="jax")
        assert read_metrics(OUT / METRICS) == []
        first.upload()
        assert len(read_metrics(OUT / METRICS)) == 7
        first.write(8, loss=8.0)
    assert len(read_metrics(OUT / METRICS)) == 8
    with Metrics(OUT, 4) as again:
        again.write(5, loss=50.0)
    assert curve(read_metrics(OUT / METRICS), "loss") == ([1, 2, 3, 4, 5], [1, 2, 3, 4, 50])
    assert len(store.names("run/tensorboard/")) == 2


def test_the_last_process_that_began_continues(store: Store) -> None:
    """Stores have no locks: a local lock works on one machine, and of several machines the earlier process ends."""
    with (
        exclusive(OUT),
        pytest.raises(InputError, match="gs://bucket/run: another process is using it"),
        exclusive(OUT),
    ):
        pass
    with exclusive(OUT):
        pass
    run, engine = run_in(OUT), ENGINES["torch"](CONFIG)
    save_step(run, engine, 1)
    (OUT / HOLDER).write_text("process 7 on another-host (0123abcd)")
    with pytest.raises(InputError, match=r"gs://bucket/run: process 7 on another-host \(0123abcd\) has resumed"):
        run.save(engine, 2)
    with pytest.raises(InputError, match="has resumed"):
        run.finish(engine, 2)
    assert [step.name for step in saved_steps(OUT)] == ["000001"]


def test_errors_are_one_line(store: Store, recipe: Path, vit: Vit, monkeypatch: pytest.MonkeyPatch) -> None:
    def line(*words: object) -> str:
        return vit(*words, status=2).removeprefix("vit: error: ").strip()

    assert line("pretrain", recipe, "--out", "gs://nowhere/run") == (
        "gs://nowhere/run: cannot write there (no such object, or no such bucket); set --out to a writable folder with "
        "enough space"
    )
    assert line("convert", "gs://nowhere/run", "here") == (
        "gs://nowhere/run: no such checkpoint; expected a run, a folder with config.json and model.safetensors, "
        "weights such as .pth or .npz, or hf://OWNER/MODEL"
    )
    for address, expected in (("gs://", "has no bucket"), ("http://bucket/run", "other stores have to be mounted")):
        message = line("pretrain", recipe, "--out", address)
        assert message.startswith(address)
        assert expected in message
    assert "--out gs://bucket/demo: expected a folder on this machine" in line("demo", "--out", "gs://bucket/demo")
    vit_torch.save(vit_torch.from_seed(CONFIG.model, 0), "gs://bucket/model")
    for status in (401, 403):
        store.refuse = status
        for words in (("pretrain", recipe, "--out", "gs://bucket/run"), ("convert", "gs://bucket/model", "here")):
            assert "refused" in line(*words)
            assert "gcloud auth application-default login" in line(*words)
    store.refuse = 0
    assert line("convert", "gs://bucket/model", "gs://nowhere/model") == (
        "gs://nowhere/model: no such bucket; create it first, or choose another"
    )
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    for scheme in ("gs", "gcs"):  # fsspec keeps the clients it has imported
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, scheme, raising=False)
    object_store._client.cache_clear()
    for words in (("pretrain", recipe, "--out", "gs://bucket/run"), ("convert", "gs://bucket/model", "here")):
        assert line(*words) == "gs:// needs gcsfs: pip install 'vit-parity[gcs]'"
    object_store._client.cache_clear()


@pytest.mark.release
def test_a_store_that_cannot_be_reached_is_one_line(store: Store, recipe: Path) -> None:
    environment = {**os.environ, "STORAGE_EMULATOR_HOST": "http://127.0.0.1:9"}
    command = [sys.executable, "-m", "vit_cli", "pretrain", str(recipe), "--out", "gs://bucket/run"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    lines = [line for line in ended.stderr.splitlines() if line.startswith("vit:")]
    assert (ended.returncode, len(lines)) == (2, 2), ended.stderr
    assert lines[0] == "vit: warning: gs://bucket/run/run.json: no response from the store yet; still trying"
    assert lines[1].startswith("vit: error: gs://bucket/run/run.json: Cannot connect to host 127.0.0.1:9")
    assert "Traceback" not in ended.stderr
