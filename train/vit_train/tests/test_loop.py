"""The training loop: a run learns, is logged and evaluated, and stops with a reason."""

import json
import logging
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vit_core import InputError, open_checkpoint
from vit_core.checkpoints.run_folder import saved_steps
from vit_train import loop
from vit_train.config import Augmentation, Schedule
from vit_train.data.batches import Batches
from vit_train.data.sources import Split
from vit_train.evaluation import evaluate
from vit_train.loop import FitResult
from vit_train.metrics import Metrics
from vit_train.step_monitor import StepMonitor
from vit_train.step_result import StepResult
from vit_train.tests.small_run import CONFIG, ENGINES, LABELS, SGD, quadrants, run_in, train_steps

SPLIT = quadrants()


@pytest.fixture(autouse=True)
def _log_messages(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vit")


def fit(engine: Any, folder: Path, start: int = 0, split: Split = SPLIT) -> FitResult:
    return loop.fit(engine, run_in(folder, engine.config), Batches(split, engine.config), SPLIT, start=start)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ENGINES)
def test_a_run_learns_and_is_logged(name: str, tmp_path: Path) -> None:
    # Mixup's weights are 0 or 1: images stay unmixed, and the program is the one of the other tests.
    unmixed = Augmentation(mixup=1e-9)
    config = CONFIG.replace(steps=150, evaluate_every=60, save_every=50, augmentation=unmixed)
    engine = ENGINES[name](config)
    assert evaluate(engine, SPLIT, config.evaluation).top1 < 0.6
    result = fit(engine, tmp_path)
    lines = [line for line in lines_of(tmp_path) if "loss" in line]
    assert [line["step"] for line in lines] == list(range(5, 151, 5))
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    assert lines[0]["learning_rate"] == config.learning_rate(4)
    assert all(line["engine"] == name and 0 <= line["data_wait"] <= 1 for line in lines)
    evaluated = [line for line in lines_of(tmp_path) if "top1" in line]
    assert [line["step"] for line in evaluated] == [60, 120, 150]
    assert result.signal is None
    assert result.accuracy is not None
    assert result.average is not None
    assert evaluated[-1]["top1"] == result.accuracy.top1 > 0.9
    assert evaluated[-1]["top1_ema"] == result.average.top1 > 0.8
    assert sorted(path.name for path in (tmp_path / "steps").iterdir()) == ["000100", "000150"], "the newest two"


def test_an_evaluation_during_training_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit(ENGINES["torch"](CONFIG.replace(steps=4, evaluate_every=2)), tmp_path)
    (line,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("step ")]
    logged = next(line for line in lines_of(tmp_path) if "top1" in line)
    assert line == (
        f"step 2: top-1 {logged['top1']:.2%}, moving average {logged['top1_ema']:.2%}, "
        f"evaluation loss {logged['evaluation_loss']:.4f}"
    )


@pytest.mark.parametrize("name", ENGINES)
def test_a_finished_run_leaves_weights_and_average(name: str, tmp_path: Path) -> None:
    engine = ENGINES[name](CONFIG.replace(steps=4))
    result = fit(engine, tmp_path / "my-run")
    assert [folder.name for folder in result.folders] == ["checkpoint", "checkpoint_ema"]
    raw, average = (open_checkpoint(folder) for folder in result.folders)
    assert (raw.config.provenance.run, raw.config.provenance.step, raw.config.labels) == ("my-run", 4, LABELS)
    assert raw.config.probabilities == average.config.probabilities == CONFIG.loss == "softmax"
    for parameter, array in engine.export().items():
        np.testing.assert_array_equal(raw.arrays[parameter], array)
        np.testing.assert_array_equal(average.arrays[parameter], engine.export(averaged=True)[parameter])
    assert not np.array_equal(raw.arrays["head.weight"], average.arrays["head.weight"])


@pytest.mark.parametrize("name", ENGINES)
def test_a_loss_that_is_not_finite_stops_the_run(name: str, tmp_path: Path) -> None:
    """The state before it is kept; the step, the examples and the parameters are named."""
    config = CONFIG.replace(optimizer=SGD.replace(learning_rate=1e25), schedule=Schedule(), steps=40)
    engine = ENGINES[name](config)
    with pytest.raises(InputError) as error:
        fit(engine, tmp_path)
    message = str(error.value)
    step = int(message.split(":")[0].removeprefix("step "))
    assert "not finite" in message or "loss nan" in message or "loss inf" in message
    assert "quadrants[" in message
    assert "lower learning rate" in message
    kept = tmp_path / "steps" / f"{step - 1:06d}"
    assert kept.is_dir(), message
    before = train_steps(ENGINES[name](config), Batches(SPLIT, config), 0, step - 1).export()
    for parameter, array in open_checkpoint(kept).arrays.items():
        assert np.isfinite(array).all()
        np.testing.assert_array_equal(array, before[parameter])
    (line,) = [line for line in lines_of(tmp_path) if "not_finite" in line]
    assert line["step"] == step
    assert len(line["examples"]) == 16


@pytest.mark.parametrize("name", ENGINES)
def test_unreadable_images_are_named_and_counted(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    examples = list(SPLIT.examples)
    for i in (3, 9):
        examples[i] = {"image": b"no image", "label": 0}
    split = Split(examples, LABELS, "mine")
    fit(ENGINES[name](CONFIG), tmp_path / "tolerant", split=split)
    assert "cannot read mine[3]; skipped (weight 0)" in caplog.text
    assert caplog.text.count("cannot read") == 2, "each is named once, however often it is used"
    with pytest.raises(InputError, match=r"step \d+: 2 images of mine cannot be read .*undecodable_limit") as error:
        fit(ENGINES[name](CONFIG.replace(undecodable_limit=1)), tmp_path / "strict", split=split)
    (kept,) = saved_steps(tmp_path / "strict")
    assert str(error.value).startswith(f"step {int(kept.name)}:"), "what was trained until then is kept"


@pytest.mark.parametrize("name", ENGINES)
def test_an_update_without_images_stops_the_run(name: str, tmp_path: Path) -> None:
    """After the first epoch, in which all images were readable; the state until then is saved."""
    examples = list(SPLIT.examples)
    split = Split(examples, LABELS, "mine")
    engine, first = ENGINES[name](CONFIG), 64 // CONFIG.batch_size
    train_step, kept = engine.train_step, []

    def damaging(*args: Any) -> Any:
        result = train_step(*args)
        if args[1] == first - 1:
            kept.append(engine.export())
            examples[:] = [{"image": b"no image", "label": 0}] * 64
        return result

    engine.train_step = damaging
    config = CONFIG.replace(threads=1, image_cache=0)  # otherwise no image is read a second time
    batches = Batches(split, config)
    run = run_in(tmp_path, config)
    with pytest.raises(InputError, match=r"step \d: none of the 16 images of its batch can be read \(mine\[") as error:
        loop.fit(engine, run, batches, split)
    (saved,) = saved_steps(tmp_path)
    assert str(error.value).startswith(f"step {int(saved.name) + 1}: ")


def test_several_processes_find_an_update_without_images_in_its_result(tmp_path: Path) -> None:
    """None knows whether another could read its images: the loss and the gradient are 0 only if none could."""
    engine = SimpleNamespace(processes=2, skipped=0, skippable=0, trained=("a",), config=CONFIG)
    batches = Batches(SPLIT, CONFIG)
    unread = batches[0]._replace(weights_B=np.zeros(16, np.float32))
    with Metrics(tmp_path, 0, ()) as metrics:
        monitor = StepMonitor(engine, run_in(tmp_path), batches, metrics)  # type: ignore[arg-type]
        for batch, loss, square in ((unread, 0.7, 0.1), (batches[0], 0.0, 0.0)):  # another process had images; has some
            monitor.before_step(1, batch)
            monitor.after_step(1, batch, StepResult(np.float32(loss), np.array([square])))
            monitor.check()
        monitor.after_step(2, unread, StepResult(np.float32(0), np.array([0.0])))
        with pytest.raises(InputError, match="step 2: none of the 16 images of its batch can be read"):
            monitor.check()


def signal_at(monkeypatch: pytest.MonkeyPatch, engine: Any, method: str, call: int, number: int) -> list[int]:
    """Makes a signal arrive in the call-th call (from 0) of an engine's method; the list counts the calls."""
    original, calls = getattr(engine, method), list[int]()

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(calls))
        if len(calls) == call + 1:
            signal.raise_signal(number)
        return original(*args, **kwargs)

    monkeypatch.setattr(engine, method, interrupted)
    return calls


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_step_which_is_saved(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ENGINES["torch"](CONFIG)
    steps = signal_at(monkeypatch, engine, "train_step", 3, number)
    result = fit(engine, tmp_path)
    assert (result.step, result.signal, steps) == (4, number, [0, 1, 2, 3])
    assert result.folders == (tmp_path / "steps" / "000004",)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "handlers are put back"


def test_a_signal_stops_an_evaluation_during_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the batch in progress; the step is saved, although the config would save it only at the end."""
    engine = ENGINES["torch"](CONFIG.replace(evaluate_every=3, evaluation_batch=16))
    batches = signal_at(monkeypatch, engine, "predict", 1, signal.SIGINT)
    result = fit(engine, tmp_path)
    assert (result.step, result.signal, batches) == (3, signal.SIGINT, [0, 1])
    assert result.folders == (tmp_path / "steps" / "000003",) == tuple(saved_steps(tmp_path))
    assert not (tmp_path / "checkpoint").exists()


def test_a_signal_stops_the_last_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is finished by then: its checkpoint is written before."""
    engine = ENGINES["torch"](CONFIG.replace(evaluation_batch=16))
    batches = signal_at(monkeypatch, engine, "predict", 1, signal.SIGTERM)
    result = fit(engine, tmp_path)
    assert (result.step, result.signal, result.accuracy, batches) == (12, signal.SIGTERM, None, [0, 1])
    assert [open_checkpoint(folder).config.provenance.step for folder in result.folders] == [12, 12]


@pytest.mark.parametrize("name", ENGINES)
def test_so_many_updates_may_be_skipped(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A loss that has exploded counts like one that is not finite; the state stays as it was."""
    config = CONFIG.replace(steps=6, schedule=Schedule(), skippable=1, optimizer=SGD)
    limited = config.replace(explosion=1e-3)  # no loss is so small
    engine = ENGINES[name](limited)
    before, batches = engine.export(), Batches(SPLIT, config)
    for step in range(2):
        engine.train_step(batches[step], step)
        assert engine.skipped == step + 1
    for parameter, array in engine.export().items():
        np.testing.assert_array_equal(array, before[parameter])
    with pytest.raises(InputError, match=r"step 2: loss 1\.386 has exploded \(limit 0\.001609\); examples quadrants"):
        fit(ENGINES[name](limited), tmp_path / "stopped")
    assert "step 1: loss 1.386 has exploded (limit 0.001609); update skipped (1 of at most 1)" in caplog.text
    assert [line["step"] for line in lines_of(tmp_path / "stopped") if "left_out" in line] == [1]
    for make in ENGINES.values():
        resumed = make(config.replace(skippable=0), saved=saved_steps(tmp_path / "stopped")[0])
        assert resumed.skipped == 1, "the update that the run stopped for will be tried again"
        assert resumed.skippable == 1, "as many as there were, although the config now allows none"
        resumed.train_step(batches[1], 1)
        assert resumed.skipped == 1
        assert not np.array_equal(resumed.export()["head.weight"], before["head.weight"])
