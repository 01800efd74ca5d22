"""A run's folder: what it holds, what it refuses, and that a killed run, started again, is the run."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from train import steps
from train.metrics import Metrics, curve, read
from train.processes import alone
from train.run import Request, Run
from train.steps import STATISTICS
from train.tests.small import CONFIG, ENGINES, LABELS, assert_ended, children, folder_of_images, run_in, saved
from vit_core import InputError, open_checkpoint
from vit_core.checkpoint import checkpoint_of, saved_steps

TorchEngine = ENGINES["torch"]


@pytest.mark.parametrize("name", ENGINES)
def test_a_saved_step_is_a_checkpoint(name: str, tmp_path: Path) -> None:
    folder = saved(run_in(tmp_path / "my-run"), ENGINES[name](CONFIG), 12)
    opened = open_checkpoint(folder)
    assert (opened.config.provenance.run, opened.config.provenance.step) == ("my-run", 12)
    assert opened.config.labels == LABELS
    assert checkpoint_of(tmp_path / "my-run") == folder


@pytest.mark.parametrize("name", ENGINES)
def test_step_zero_can_be_restored(name: str, tmp_path: Path) -> None:
    saved(run_in(tmp_path), ENGINES[name](CONFIG), 0)
    for make in ENGINES.values():
        assert run_in(tmp_path).start(make, None)[1] == 0


def test_only_the_newest_steps_are_kept(tmp_path: Path) -> None:
    run, engine = run_in(tmp_path, CONFIG.replace(keep=3)), TorchEngine(CONFIG)
    for step in (2, 4, 6, 8, 10):
        saved(run, engine, step)
    assert [int(folder.name) for folder in saved_steps(tmp_path)] == [10, 8, 6]
    assert sorted(path.name for path in (tmp_path / "steps").iterdir()) == ["000006", "000008", "000010"]


def test_a_step_cut_short_is_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, run = TorchEngine(CONFIG), run_in(tmp_path)
    run.save(engine, 9)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(steps, "save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            run.save(engine, 10)
    assert checkpoint_of(tmp_path).name == "000009"
    run.save(engine, 10)
    assert run.start(TorchEngine, None)[1] == 10


def test_a_step_that_is_there_stays(tmp_path: Path) -> None:
    """It is the same step: to write it again could only lose it."""
    engine, run = TorchEngine(CONFIG), run_in(tmp_path)
    before = (run.save(engine, 9) / "model.safetensors").stat().st_ino
    assert (run.save(engine, 9) / "model.safetensors").stat().st_ino == before


def test_a_damaged_step_gives_way_to_the_one_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine, run = TorchEngine(CONFIG), run_in(tmp_path)
    for step in (9, 10):
        run.save(engine, step)
    newest = tmp_path / "steps" / "000010"
    (newest / STATISTICS).write_bytes((newest / STATISTICS).read_bytes()[:-100])
    assert run.start(TorchEngine, None)[1] == 9
    assert "000010/optimizer.safetensors: not a whole safetensors file" in capsys.readouterr().out
    assert saved_steps(tmp_path) == [tmp_path / "steps" / "000009"], "or it would count as the newest again"
    (tmp_path / "steps" / "000009" / STATISTICS).write_bytes(b"half")
    with pytest.raises(InputError, match=r"000009/optimizer.safetensors: not a whole"):
        run.start(TorchEngine, None)


def test_a_run_of_another_config_is_refused(tmp_path: Path) -> None:
    run_in(tmp_path)
    other = CONFIG.replace(optimizer=CONFIG.optimizer.replace(learning_rate=0.5), seed=3)
    with pytest.raises(InputError) as error:
        Run(tmp_path, Request(config=other, labels=LABELS)).compare()
    assert "optimizer.learning_rate is 0.003 there and 0.5 here; seed is 0 there and 3 here" in str(error.value)
    Run(tmp_path, Request(config=CONFIG.replace(log_every=1, workers=2), labels=LABELS)).compare()
    with pytest.raises(InputError, match="labels is "):
        Run(tmp_path, Request(config=CONFIG, labels=LABELS[::-1])).compare()
    moved = CONFIG.replace(data=CONFIG.data.replace(name="./elsewhere/", directory="/data"))
    Run(tmp_path, Request(config=moved, labels=LABELS, init="other/path")).compare()
    with pytest.raises(InputError, match=r"examples is \[\] there and \['abc', 'def'\] here"):
        Run(tmp_path, Request(config=CONFIG, labels=LABELS, examples=("abc", "def"))).compare()
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run.json: cannot be read"):
        Run(tmp_path, Request(config=CONFIG, labels=LABELS)).compare()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        alone(tmp_path / "run"),
        pytest.raises(InputError, match="another process is at work"),
        alone(tmp_path / "run"),
    ):
        pass
    with alone(tmp_path / "run"):
        pass


def test_metrics_of_a_run_that_went_back_are_dropped(tmp_path: Path) -> None:
    """Lines, and TensorBoard's curves as TensorBoard reads them."""
    with Metrics(tmp_path, 0) as first:
        for step in range(1, 8):
            first.write(step, loss=float(step), engine="jax")
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "lo')  # killed
    with Metrics(tmp_path, 4) as again:
        again.write(5, loss=50.0, engine="torch")
    assert [(line["step"], line["loss"]) for line in read(tmp_path / "metrics.jsonl")] == [
        (1, 1.0),
        (2, 2.0),
        (3, 3.0),
        (4, 4.0),
        (5, 50.0),
    ]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 50)]


RECIPE = """
from train.config import Augmentation, Data, Optimizer, Schedule, TrainConfig
from vit_core import ViTConfig

def pretrain():
    return TrainConfig(
        model=ViTConfig(image_size=8, patch_size=4, width=16, depth=2, heads=2, mlp_dim=32, num_classes=4,
                        stochastic_depth=0.3),
        data=Data(name={folder!r}),
        augmentation=Augmentation(crop_area=(0.5, 1.0), flip=0.5, rotation=10, mixup=0.3, cutmix=1.0),
        optimizer=Optimizer(learning_rate=3e-3, weight_decay=0.05, clip_norm=1.0),
        schedule=Schedule(warmup_steps=3), ema=0.9, label_smoothing=0.1,
        steps=40, batch_size=16, save_every=7, log_every=1, fingerprints=True, workers=1, threads=1, tensorboard=False,
    )
"""


def start(recipe: Path, out: str, *words: str) -> subprocess.Popen[bytes]:
    """`vit pretrain` as a process of its own; what it says is added to a log beside the recipe."""
    command = [sys.executable, "-c", "from vit_core.cli import main; main()", "pretrain", str(recipe), *words]
    log = open(recipe.parent / "log", "ab")  # noqa: SIM115 (the process's)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if cache := jax.config.jax_compilation_cache_dir:
        environment |= {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    out = str(recipe.parent / out)
    return subprocess.Popen([*command, "--out", out], stdout=log, stderr=log, env=environment)


def logged(run: Path) -> int:
    return max((line["step"] for line in read(run / "metrics.jsonl")), default=0)


def assert_the_same_run(cut: Path, whole: Path, steps: int) -> None:
    """The same batches and losses, and bit for bit the same weights and moving average."""
    for what in ("fingerprint", "loss"):
        assert curve(read(cut / "metrics.jsonl"), what) == curve(read(whole / "metrics.jsonl"), what)
    assert len(set(curve(read(cut / "metrics.jsonl"), "fingerprint")[1])) == steps
    for folder in ("checkpoint", "checkpoint_ema"):
        expected, found = (dict(open_checkpoint(run / folder).arrays) for run in (whole, cut))
        for parameter in expected:
            np.testing.assert_array_equal(found[parameter], expected[parameter])


def test_a_killed_run_started_again_is_the_run(tmp_path: Path) -> None:
    """A real process, killed in mid-step; its workers end too."""
    recipe, torch = tmp_path / "recipe.py", ("--framework", "torch")
    recipe.write_text(RECIPE.format(folder=str(folder_of_images(tmp_path / "images"))))
    process = start(recipe, "cut", *torch)
    while logged(tmp_path / "cut") < 17 and process.poll() is None:
        time.sleep(0.005)
    workers = children(process)
    assert workers
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
    assert 17 <= logged(tmp_path / "cut") < 40
    assert_ended(workers)
    for out in ("cut", "whole"):
        assert start(recipe, out, *torch).wait() == 0, (tmp_path / "log").read_text()
    assert "going on after step" in (tmp_path / "log").read_text()
    assert_the_same_run(tmp_path / "cut", tmp_path / "whole", 40)


def trained_since(begin: float, run: Path) -> bool:
    """Whether a life that began then has logged a step of its own: at its start it has only cut the lines short."""
    lines = run / "metrics.jsonl"
    newest = max((int(step.name) for step in saved_steps(run)), default=0)
    return lines.exists() and lines.stat().st_mtime > begin and logged(run) > newest and lines.stat().st_size > 0


KILLS = 20


@pytest.mark.slow
def test_a_run_killed_twenty_times_is_the_run(tmp_path: Path) -> None:
    """At random moments of training and saving: whatever instant it is cut at, the same command goes on."""
    recipe, steps, rng = tmp_path / "recipe.py", 4000, random.Random(0)
    recipe.write_text(RECIPE.format(folder=str(folder_of_images(tmp_path / "images"))))
    words = ("--steps", str(steps), "--save-every", "10", "--workers", "0", "--evaluate-every", "500")
    lives = []
    for life in range(KILLS):
        begin = time.time()
        process = start(recipe, "cut", *words)
        while not trained_since(begin, tmp_path / "cut") and process.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.6))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
        half = [path.name for path in (tmp_path / "cut" / "steps").iterdir() if not path.name.isdigit()]
        newest = next(iter(saved_steps(tmp_path / "cut"))).name
        lives.append(
            f"life {life + 1}: killed after step {logged(tmp_path / 'cut')}, saved {newest}, half saved {half}"
        )
    print("\n".join(lives))
    for out in ("cut", "whole"):
        assert start(recipe, out, *words).wait() == 0, (tmp_path / "log").read_text()
    assert (tmp_path / "log").read_text().count("going on after step") >= KILLS - 1
    assert_the_same_run(tmp_path / "cut", tmp_path / "whole", steps)


def test_what_was_cut_short_is_swept(tmp_path: Path) -> None:
    run, engine = run_in(tmp_path), ENGINES["jax"](CONFIG)
    for name in ("000003", "000009.orbax-checkpoint-tmp"):
        (tmp_path / "steps" / name / "d").mkdir(parents=True)
    saved(run, engine, 4)
    assert [path.name for path in (tmp_path / "steps").iterdir()] == ["000004"]


@pytest.mark.parametrize(
    ("kept", "left"),
    [((2, 0, 0), [50, 60]), ((1, 20, 0), [20, 40, 60]), ((1, 0, 2), [10, 40, 60]), ((1, 50, 1), [40, 50, 60])],
)
def test_which_steps_stay(kept: tuple[int, int, int], left: list[int]) -> None:
    """The newest, every so-manieth, the best; of two as good the later."""
    have, scores = [10, 20, 30, 40, 50, 60], {10: 0.8, 20: 0.7, 40: 0.8, 60: 0.1}
    assert sorted(set(have) - set(steps.spare(have, *kept, scores))) == left
