"""Runs and checkpoints in an object store: a stand-in for Google's, which breaks where a test wants it to."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import vit_jax
import vit_torch
from train.metrics import METRICS, Metrics, curve, read
from train.processes import alone
from train.run import HOLDER, read_request
from train.tests.conftest import Vit
from train.tests.fake_gcs import Refused, Store, serving
from train.tests.small import CONFIG, ENGINES, LABELS, folder_of_images, run_in, saved
from train.tests.test_run import assert_the_same_run
from vit_core import InputError, open_checkpoint, places, save_checkpoint
from vit_core.checkpoint import checkpoint_of, saved_steps
from vit_core.places import Stored, StoreError, place

RECIPE = """
from train.config import Data
from train.tests.small import CONFIG

def pretrain():
    return CONFIG.replace(
        steps=24, save_every=5, evaluate_every=12, log_every=1, fingerprints=True, ema=0.9, tensorboard=True, threads=1,
        data=Data(name={folder!r}),
    )
"""
OUT = place("gs://bucket/run")


@pytest.fixture(scope="module")
def served() -> Iterator[Store]:
    """One for all tests here: TensorStore looks for its address once."""
    with serving() as store, pytest.MonkeyPatch.context() as patched:
        for name, value in store.environment.items():
            patched.setenv(name, value)
        yield store


@pytest.fixture
def store(served: Store) -> Iterator[Store]:
    """It, empty and obedient."""
    served.buckets["bucket"].clear()
    served.log.clear()
    yield served
    served.before, served.refuse = lambda verb, name: None, 0


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.py"
    path.write_text(RECIPE.format(folder=str(folder_of_images(tmp_path / "images"))))
    return path


def start(recipe: Path, out: object, *words: str) -> subprocess.Popen[str]:
    """`vit pretrain` as a process of its own; what it says is added to a log beside the recipe."""
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    cache = str(recipe.parent / "cache")
    environment |= {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-m", "vit_core", "pretrain", str(recipe), "--out", str(out), *words]
    with open(recipe.parent / "log", "a") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, text=True)


def finished(process: subprocess.Popen[str], recipe: Path) -> None:
    assert process.wait(timeout=300) == 0, (recipe.parent / "log").read_text()


def killed_at(store: Store, verb: str, pattern: str, recipe: Path, *words: str) -> None:
    """A life of the run in the store that is killed as it is about to do this there; it is not done."""
    process = start(recipe, OUT, *words)

    def before(does: str, name: str) -> None:
        if process.poll() is not None:
            raise ConnectionError("nobody is there any more")
        if does == verb and re.search(pattern, name):
            process.kill()
            process.wait()
            raise ConnectionError("killed")

    store.before = before
    assert process.wait(timeout=300) == -9, (pattern, (recipe.parent / "log").read_text())
    time.sleep(0.2)  # what was on the way
    store.before = lambda verb, name: None


def test_a_run_killed_in_mid_save_started_again_is_the_run(store: Store, recipe: Path, vit: Vit) -> None:
    """In JAX, by real processes; the store has half a step, and holds at the end what a folder would."""
    killed_at(store, "put", r"steps/000010/step\.json", recipe)
    assert [step.name for step in saved_steps(OUT)] == ["000005"]
    assert store.names("run/steps/000010/ocdbt.process_0/d/"), "there was something half written"
    here = recipe.parent / "here"
    for process in [start(recipe, out) for out in (OUT, here)]:
        finished(process, recipe)
    assert "gs://bucket/run: going on after step 5 of 24" in (recipe.parent / "log").read_text()
    assert_the_same_run(OUT, here, 24)
    for line, other in zip(read(OUT / METRICS), read(here / METRICS), strict=True):
        assert (line["step"], line.get("top1"), line.get("loss")) == (
            other["step"],
            other.get("top1"),
            other.get("loss"),
        )
    assert [step.name for step in saved_steps(OUT)] == ["000024", "000020"]
    assert {name.split("/")[2] for name in store.names("run/steps")} == {"000024", "000020"}, "nothing half left"
    assert len(store.names("run/tensorboard/")) == 2
    assert store.buckets["bucket"]["run/curves.png"][0].startswith(b"\x89PNG")
    assert "this run is finished" in vit("pretrain", recipe, "--out", OUT)
    said = [vit("evaluate", out) for out in (OUT, here)]
    assert re.findall("[0-9.]+%", said[0]) == re.findall("[0-9.]+%", said[1]) != []


PLACES = {
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


@pytest.mark.slow
@pytest.mark.parametrize("name", ENGINES)
def test_a_run_killed_wherever_it_writes_is_the_run(name: str, store: Store, recipe: Path) -> None:
    framework = ("--framework", name)
    for verb, pattern in PLACES[name]:
        killed_at(store, verb, pattern, recipe, *framework)
    here = recipe.parent / "here"
    for out in (OUT, here):
        finished(start(recipe, out, *framework), recipe)
    assert_the_same_run(OUT, here, 24)
    assert {step.split("/")[2] for step in store.names("run/steps")} == {"000024", "000020"}


@pytest.mark.slow
def test_two_processes_write_one_run(store: Store, recipe: Path) -> None:
    """Each its own shards; killed in mid-save, both started again, and ended by one that is alone."""
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
        finished(process, recipe)
    assert "going on after step 5 of 24" in (recipe.parent / "log").read_text()
    here = recipe.parent / "here"
    finished(start(recipe, here, *words[2:]), recipe)
    one, two = read(here / METRICS), read(OUT / METRICS)
    assert curve(one, "fingerprint") == curve(two, "fingerprint")
    np.testing.assert_allclose(curve(one, "loss")[1], curve(two, "loss")[1], rtol=1e-10)
    alone, shared = (open_checkpoint(run / "steps" / "000024").arrays for run in (here, OUT))
    for parameter in alone:
        np.testing.assert_allclose(shared[parameter], alone[parameter], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ENGINES)
def test_steps(name: str, store: Store) -> None:
    """They are kept and removed as in a folder, half of one is none, and either engine goes on from them."""
    config = CONFIG.replace(keep=2, ema=0.9)
    run, engine = run_in(OUT, config), ENGINES[name](config)
    for step in (2, 4, 6):
        saved(run, engine, step)
    assert [int(folder.name) for folder in saved_steps(OUT)] == [6, 4]
    assert {entry.split("/")[2] for entry in store.names("run/steps/")} == {"000006", "000004"}
    what_counts = {"jax": "step.json", "torch": "model.safetensors"}[name]
    half = [entry for entry in store.names("run/steps/000006/") if not entry.endswith(what_counts)]
    assert len(half) > 1
    for entry in half:
        store.buckets["bucket"][entry.replace("000006", "000008")] = store.buckets["bucket"][entry]
    assert checkpoint_of(OUT) == OUT / "steps" / "000006"
    opened, expected = open_checkpoint(checkpoint_of(OUT)), engine.export()
    assert (opened.config.provenance.run, opened.config.provenance.step) == ("run", 6)
    for parameter, value in expected.items():
        np.testing.assert_array_equal(opened.arrays[parameter], value)
    for make in ENGINES.values():
        again, step = run_in(OUT, config).start(make, None)
        assert step == 6
        for key, value in engine.statistics().items():
            np.testing.assert_array_equal(again.statistics()[key], value)
    saved(run, engine, 8)
    assert [int(folder.name) for folder in saved_steps(OUT)] == [8, 6], "in the place of the half"


@pytest.mark.parametrize("name", ENGINES)
def test_a_damaged_step_gives_way_to_the_one_before(
    name: str, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    run, engine = run_in(OUT), ENGINES[name](CONFIG)
    for step in (9, 10):
        saved(run, engine, step)
    entry = next(entry for entry in store.names("run/steps/000010/") if re.search("/d/|optimizer", entry))
    content, generation = store.buckets["bucket"][entry]
    store.buckets["bucket"][entry] = content[:-100] + bytes(100 if name == "jax" else 0), generation
    assert run.start(ENGINES[name], None)[1] == 9
    assert ("damaged" if name == "jax" else "not a whole") in capsys.readouterr().out
    assert [folder.name for folder in saved_steps(OUT)] == ["000009"]
    assert store.names("run/steps/damaged-000010/"), "kept, but not as a step"
    saved(run, engine, 11)
    assert store.names("run/steps/damaged-000010/")


def test_a_store_that_does_not_answer_is_no_damage(store: Store) -> None:
    """A step is given up for what it holds, not for the network."""
    run, engine = run_in(OUT), ENGINES["torch"](CONFIG)
    for step in (9, 10):
        saved(run, engine, step)

    def before(verb: str, name: str) -> None:
        if verb == "get" and "000010" in name:
            raise Refused(403)

    store.before = before
    with pytest.raises(StoreError, match="Forbidden"):
        run.start(ENGINES["torch"], None)
    store.before = lambda verb, name: None
    assert run.start(ENGINES["torch"], None)[1] == 10


def test_checksums_are_the_stores(store: Store, tmp_path: Path) -> None:
    """Saving reads back nothing; a copy on this machine is checked by them too, one from here to there by its own."""
    step = saved(run_in(OUT), ENGINES["jax"](CONFIG), 3)
    # Orbax itself reads the manifests of its database and its roots, to merge what the processes wrote.
    got = [name for verb, name in store.log if verb == "get" and "/d/" in name]
    written = [name for verb, name in store.log if verb == "put" and "/d/" in name]
    assert len(got) < len(written)
    arrays = dict(open_checkpoint(step).arrays)
    copy = tmp_path / "000003"
    assert isinstance(step, Stored)
    for name, source in step.files().items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        source.get(copy / name)
    for name, value in open_checkpoint(copy).arrays.items():
        np.testing.assert_array_equal(value, arrays[name])
    data = next((copy / "ocdbt.process_0" / "d").iterdir())
    data.write_bytes(data.read_bytes()[:-9] + b"damaged!!")
    with pytest.raises(InputError, match="damaged"):
        dict(open_checkpoint(copy).arrays)
    local = saved(run_in(tmp_path / "local"), ENGINES["jax"](CONFIG), 3)
    for path in (path for path in local.rglob("*") if path.is_file()):
        (step.with_name("000004") / str(path.relative_to(local))).put(path)  # type: ignore[attr-defined]
    assert run_in(OUT).start(ENGINES["jax"], None)[1] == 4, "Orbax reads what was copied there"


def test_checkpoints(store: Store, tmp_path: Path, vit: Vit) -> None:
    """Written and opened by either twin, and by commands; one that is replaced is never half there."""
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
    vit("convert", "gs://bucket/bfloat", tmp_path / "here")
    assert open_checkpoint(tmp_path / "here").config.provenance.source == "bfloat"

    def before(verb: str, name: str) -> None:
        if (verb, name) == ("put", "model/config.json"):
            store.before, store.refuse = lambda verb, name: None, 403
            raise ConnectionError

    store.before = before
    with pytest.raises(StoreError, match=r"gs://bucket/model/config.json: Forbidden"):
        save_checkpoint("gs://bucket/model", open_checkpoint("gs://bucket/model").config.replace(labels=None), first)
    store.refuse = 0
    assert open_checkpoint("gs://bucket/model").config.labels is None, "the weights carry it"


def test_fine_tuning_begins_there(store: Store, recipe: Path, vit: Vit) -> None:
    vit_torch.save(vit_torch.from_seed(CONFIG.model, 0), "gs://bucket/model")
    recipe.write_text(recipe.read_text().replace("pretrain()", "finetune(init)"))
    words = ("--init", "gs://bucket/model", "--out", "gs://bucket/tuned", "--steps", "5", "--save-every", "0")
    assert "gs://bucket/tuned/checkpoint" in vit("finetune", recipe, *words)
    assert read_request(place("gs://bucket/tuned")).init == "gs://bucket/model"
    assert open_checkpoint("gs://bucket/tuned/checkpoint").config.provenance.step == 5


def test_metrics(store: Store) -> None:
    """What was logged is there when a step is saved, and goes where a run goes back."""
    with Metrics(OUT, 0) as first:
        for step in range(1, 8):
            first.write(step, loss=float(step), engine="jax")
        assert read(OUT / METRICS) == []
        first.flush()
        assert len(read(OUT / METRICS)) == 7
        first.write(8, loss=8.0)
    assert len(read(OUT / METRICS)) == 8
    with Metrics(OUT, 4) as again:
        again.write(5, loss=50.0)
    assert curve(read(OUT / METRICS), "loss") == ([1, 2, 3, 4, 5], [1, 2, 3, 4, 50])
    assert len(store.names("run/tensorboard/")) == 2


def test_the_last_one_that_began_goes_on(store: Store) -> None:
    """Stores have no locks: on one machine there is one all the same, and elsewhere an earlier process ends."""
    with alone(OUT), pytest.raises(InputError, match="gs://bucket/run: another process is at work"), alone(OUT):
        pass
    with alone(OUT):
        pass
    run, engine = run_in(OUT), ENGINES["torch"](CONFIG)
    saved(run, engine, 1)
    (OUT / HOLDER).write_text("process 7 on another-host (0123abcd)")
    with pytest.raises(InputError, match=r"gs://bucket/run: process 7 on another-host \(0123abcd\) has gone on"):
        run.save(engine, 2)
    with pytest.raises(InputError, match="has gone on"):
        run.finish(engine, 2)
    assert [step.name for step in saved_steps(OUT)] == ["000001"]


def test_places(store: Store) -> None:
    folder = place("gs://bucket//a/b/")
    assert (str(folder), folder.name, str(folder.parent), str(folder / "c")) == (
        "gs://bucket/a/b",
        "b",
        "gs://bucket/a",
        "gs://bucket/a/b/c",
    )
    assert place(folder) == folder
    assert isinstance(place("/a/b"), Path)
    for name in ("steps/7/x", "steps/7/y/z", "steps/10/x", "steps.txt"):
        (folder / name).write_text(name)
    assert [path.name for path in folder.iterdir()] == ["steps", "steps.txt"]
    assert [path.name for path in folder.glob("steps/[0-9]*")] == ["10", "7"]
    assert list(folder.glob("nothing/*")) == []
    assert isinstance(folder, Stored)
    assert sorted((folder / "steps" / "7").files()) == ["x", "y/z"]
    assert ((folder / "steps").is_dir(), (folder / "steps").is_file(), (folder / "step").exists()) == (
        True,
        False,
        False,
    )
    with pytest.raises(FileNotFoundError, match="gs://bucket/a/b/steps/9"):
        (folder / "steps" / "9").read_text()
    store.put("bucket", "a/b/steps/11/x", b"", {})
    assert [path.name for path in folder.glob("steps/*")] == ["10", "11", "7"], "whoever wrote it"
    places.rmtree(folder / "steps" / "11")
    (folder / "steps" / "7").rename(folder / "steps" / "8")
    assert store.names("a/b/steps/") == ["a/b/steps/10/x", "a/b/steps/8/x", "a/b/steps/8/y/z"]
    places.rmtree(folder / "steps" / "8")
    places.rmtree(folder / "steps" / "8", ignore_errors=True)
    (folder / "steps" / "10" / "x").unlink(missing_ok=True)
    (folder / "steps" / "10" / "x").unlink(missing_ok=True)
    assert store.names("a/b") == ["a/b/steps.txt"]
    big = bytes(range(256)) * 2**12 * 60
    with places.sending(folder, "big") as stage:
        (stage / "big").write_bytes(big)
    with places.here(folder / "big") as copy:
        assert copy.read_bytes() == big
    assert not copy.exists()


def test_errors_are_one_line(store: Store, recipe: Path, vit: Vit, monkeypatch: pytest.MonkeyPatch) -> None:
    def line(*words: object) -> str:
        return vit(*words, status=2).removeprefix("vit: error: ").strip()

    assert line("pretrain", recipe, "--out", "gs://nowhere/run") == (
        "gs://nowhere/run: cannot write there (no such object, or no such bucket); choose another --out"
    )
    assert line("convert", "gs://nowhere/run", "here") == (
        "gs://nowhere/run: no such checkpoint; expected a folder with config.json and model.safetensors"
    )
    for address in ("s3://bucket/run", "gs://", "http://bucket/run"):
        said = line("pretrain", recipe, "--out", address)
        assert said.startswith(address), said
        assert said.endswith(": expected gs://BUCKET/... or a folder; other stores have to be mounted")
    assert "--out gs://bucket/demo: expected a folder of this machine" in line("demo", "--out", "gs://bucket/demo")
    vit_torch.save(vit_torch.from_seed(CONFIG.model, 0), "gs://bucket/model")
    for status in (401, 403):
        store.refuse = status
        for words in (("pretrain", recipe, "--out", "gs://bucket/run"), ("convert", "gs://bucket/model", "here")):
            assert "refused" in line(*words)
            assert "gcloud auth application-default login" in line(*words)
    store.refuse = 0
    assert line("convert", "gs://bucket/model", "gs://nowhere/model") == (
        "gs://nowhere/model: no such bucket; make it first, or choose another"
    )
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    places._client.cache_clear()
    for words in (("pretrain", recipe, "--out", "gs://bucket/run"), ("convert", "gs://bucket/model", "here")):
        assert line(*words) == "gs:// places take pip install 'vit-parity[gcs]'"
    places._client.cache_clear()


def test_a_slow_answer_is_spoken_of(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "SLOW", 0.05)
    store.before = lambda verb, name: time.sleep(0.3)
    with pytest.warns(UserWarning, match="gs://bucket/a: no answer yet"):
        place("gs://bucket/a").write_text("a")


@pytest.mark.slow
def test_no_network_is_one_line(store: Store, recipe: Path) -> None:
    environment = {**os.environ, "STORAGE_EMULATOR_HOST": "http://127.0.0.1:9", "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-m", "vit_core", "pretrain", str(recipe), "--out", "gs://bucket/run"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    lines = [line for line in ended.stderr.splitlines() if line.startswith("vit:")]
    assert (ended.returncode, len(lines)) == (2, 2), ended.stderr
    assert lines[0] == "vit: warning: gs://bucket/run/.writable: no answer yet; still trying"
    assert lines[1].startswith("vit: error: gs://bucket/run/.writable: Cannot connect to host 127.0.0.1:9")
