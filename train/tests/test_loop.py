"""The loop and its engines: it learns, logs, evaluates, stops with reason and goes on; either continues the other's."""

import json
import signal
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from sklearn.metrics import log_loss

from train import loop
from train.config import Augmentation, Optimizer, Schedule
from train.data import Batch, Batches
from train.loop import Fitted
from train.measured import Measured
from train.sources import Split
from train.tests.small import CONFIG, ENGINES, LABELS, MODEL, quadrants, run_in, saved, steps_of
from vit_core import CheckpointConfig, InputError, open_checkpoint, parity
from vit_core.arrays import LazyArrays
from vit_core.checkpoint import Checkpoint, saved_steps

SPLIT = quadrants()


def fitted(engine: Any, folder: Path, start: int = 0, split: Split = SPLIT) -> Fitted:
    return loop.fit(engine, run_in(folder, engine.config), Batches(split, engine.config), SPLIT, start=start)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def randomised() -> Checkpoint:
    """Weights under which every input changes the loss (a fresh head is zero)."""
    arrays = {name: array.astype(np.float32) for name, array in parity.randomized(MODEL, 0).items()}
    return Checkpoint(Path("memory"), CheckpointConfig(model=MODEL), LazyArrays.of(arrays))


@pytest.mark.parametrize("name", ENGINES)
def test_a_run_learns_and_is_logged(name: str, tmp_path: Path) -> None:
    config = CONFIG.replace(steps=150, ema=0.9, evaluate_every=60, save_every=50, augmentation=Augmentation())
    engine = ENGINES[name](config)
    assert loop.evaluate(engine, SPLIT).top1 < 0.6
    end = fitted(engine, tmp_path)
    lines = [line for line in lines_of(tmp_path) if "loss" in line]
    assert [line["step"] for line in lines] == list(range(5, 151, 5))
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    assert lines[0]["learning_rate"] == config.learning_rate(4)
    assert all(line["engine"] == name and 0 <= line["data_wait"] <= 1 for line in lines)
    evaluated = [line for line in lines_of(tmp_path) if "top1" in line]
    assert [line["step"] for line in evaluated] == [60, 120, 150]
    assert end.signal is None
    assert end.accuracy is not None
    assert end.average is not None
    assert evaluated[-1]["top1"] == end.accuracy.top1 > 0.9
    assert evaluated[-1]["top1_ema"] == end.average.top1 > 0.8
    assert sorted(path.name for path in (tmp_path / "steps").iterdir()) == ["000100", "000150"], "the newest two"


@pytest.mark.parametrize("name", ENGINES)
def test_finished_runs_leave_weights_and_average(name: str, tmp_path: Path) -> None:
    engine = ENGINES[name](CONFIG.replace(ema=0.5, steps=4))
    end = fitted(engine, tmp_path / "my-run")
    raw, average = (open_checkpoint(folder) for folder in end.folders)
    assert (raw.path.name, average.path.name) == ("checkpoint", "checkpoint_ema")
    assert (raw.config.provenance.run, raw.config.provenance.step, raw.config.labels) == ("my-run", 4, LABELS)
    for parameter, array in engine.export().items():
        np.testing.assert_array_equal(raw.arrays[parameter], array)
        np.testing.assert_array_equal(average.arrays[parameter], engine.export(averaged=True)[parameter])
    assert not np.array_equal(raw.arrays["head.weight"], average.arrays["head.weight"])


@pytest.mark.parametrize("name", ENGINES)
def test_evaluation_is_numpys(name: str) -> None:
    """Accuracy and loss as worked out from the logits, over batches that do not divide the split."""
    engine = ENGINES[name](CONFIG.replace(evaluation_batch=24), randomised())
    found = loop.evaluate(engine, SPLIT)
    pixels = np.stack([loop.EvaluationBatches(SPLIT, CONFIG.preprocessing, 1)[i].images_BHWC[0] for i in range(64)])
    logits_BC = engine.logits(pixels).astype(np.float64)
    labels_B = np.arange(64) % 4
    shifted_BC = np.exp(logits_BC - logits_BC.max(axis=1, keepdims=True))
    probabilities_BC = shifted_BC / shifted_BC.sum(axis=1, keepdims=True)
    assert (found.correct, found.correct5, found.total) == ((logits_BC.argmax(axis=1) == labels_B).sum(), 64, 64)
    # float32 logits of batches of other sizes, of order one.
    assert found.loss == pytest.approx(-np.log(probabilities_BC[np.arange(64), labels_B]).mean(), rel=1e-5)


def test_a_sigmoid_run_is_evaluated_by_its_own_loss() -> None:
    """Against scikit-learn's log loss of each class by itself, summed."""
    engine = ENGINES["torch"](CONFIG.replace(loss="sigmoid"), randomised())
    pixels = np.stack([loop.EvaluationBatches(SPLIT, CONFIG.preprocessing, 1)[i].images_BHWC[0] for i in range(64)])
    probabilities_BC = 1 / (1 + np.exp(-engine.logits(pixels).astype(np.float64)))
    is_class_BC = np.eye(4)[np.arange(64) % 4]
    expected = sum(log_loss(is_class_BC[:, c], probabilities_BC[:, c]) for c in range(4))
    assert loop.evaluate(engine, SPLIT).loss == pytest.approx(expected, rel=1e-5)  # float32 logits, as above


@pytest.mark.parametrize("name", ENGINES)
def test_evaluation_is_in_the_compute_dtype(name: str) -> None:
    """bfloat16 logits have 8 bits; float32 ones of the same weights are other numbers, close by."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), np.uint8)
    low, full = (
        ENGINES[name](CONFIG.replace(compute_dtype=dtype), randomised()).logits(pixels) for dtype in ("bfloat16", None)
    )
    np.testing.assert_array_equal(low, low.astype(ml_dtypes.bfloat16).astype(np.float32))
    assert 1e-4 < parity.difference(low, full)[1] < 0.05


@pytest.mark.parametrize("name", ENGINES)
def test_a_resumed_run_is_the_run(name: str, tmp_path: Path) -> None:
    config, make = CONFIG.replace(ema=0.9), ENGINES[name]
    batches = Batches(SPLIT, config)
    whole = steps_of(make(config), batches, 0, 12)
    folder = saved(run_in(tmp_path, config), steps_of(make(config), batches, 0, 7), 7)
    again = make(config, saved=folder)
    steps_of(again, batches, 7, 12)
    for averaged in (False, True):
        for parameter, expected in whole.export(averaged).items():
            np.testing.assert_array_equal(again.export(averaged)[parameter], expected)


@pytest.mark.parametrize(("first", "second"), [("jax", "torch"), ("torch", "jax")])
def test_either_engine_goes_on_with_the_others_run(first: str, second: str, tmp_path: Path) -> None:
    batches = Batches(SPLIT, CONFIG)
    stayed = steps_of(ENGINES[first](CONFIG), batches, 0, 5)
    moved = ENGINES[second](CONFIG, saved=saved(run_in(tmp_path), stayed, 5))
    for engine in (stayed, moved):
        steps_of(engine, batches, 5, 6)
    for parameter, expected in stayed.export().items():
        # One float32 step: about 1e-5 of a gradient's scale (parity.FLOAT32_BOUND), times a step of lr = 3e-3 at most,
        # against weights of order 0.1 that a float32 rounding (6e-8) has touched.
        assert np.abs(moved.export()[parameter] - expected).max() < 1e-5, parameter


@pytest.mark.parametrize("name", ENGINES)
def test_weights_decide_what_counts(name: str) -> None:
    rng = np.random.default_rng(0)
    images_BHWC, targets_BC = rng.integers(0, 256, (4, 8, 8, 1), np.uint8), np.eye(4, dtype=np.float32)
    others_BHWC, shifted_BC = images_BHWC.copy(), targets_BC.copy()
    others_BHWC[2], shifted_BC[2] = 255 - others_BHWC[2], np.roll(shifted_BC[2], 1)
    config = CONFIG.replace(augmentation=Augmentation())

    def loss(images: np.ndarray, targets: np.ndarray, weight: float) -> float:
        weights_B, unmixed = np.array([1, 1, weight, 1], np.float32), np.ones(4, np.float32)
        batch = Batch(images, targets, weights_B, unmixed, np.zeros((4, 4), np.int32), {}, np.arange(4))
        return float(ENGINES[name](config, randomised()).train_step(batch, 0).loss)

    assert loss(images_BHWC, targets_BC, 0) == loss(others_BHWC, shifted_BC, 0)
    assert (
        len({loss(images_BHWC, targets_BC, 1), loss(others_BHWC, targets_BC, 1), loss(images_BHWC, shifted_BC, 1)}) == 3
    )


@pytest.mark.parametrize("name", ENGINES)
def test_nothing_readable_is_no_disaster(name: str) -> None:
    """A batch none of whose images could be read gives no gradient, and nothing that is not finite."""
    engine = ENGINES[name](CONFIG.replace(optimizer=Optimizer(name="sgd")), randomised())
    before = engine.export()
    batch = Batches(SPLIT, CONFIG)[0]
    measured = engine.train_step(batch._replace(weights_B=np.zeros(16, np.float32)), 0)
    assert float(measured.loss) == measured.gradient_norm == 0.0
    for parameter, array in engine.export().items():
        np.testing.assert_array_equal(array, before[parameter])


@pytest.mark.parametrize("name", ENGINES)
def test_a_loss_that_is_not_finite_stops_the_run(name: str, tmp_path: Path) -> None:
    """The state before it is kept, and step, examples and parameters are named."""
    wild = Optimizer(name="sgd", learning_rate=1e25, momentum=0.0)
    config = CONFIG.replace(optimizer=wild, schedule=Schedule(), steps=40)
    engine = ENGINES[name](config)
    with pytest.raises(InputError) as error:
        fitted(engine, tmp_path)
    said = str(error.value)
    step = int(said.split(":")[0].removeprefix("step "))
    assert "not finite" in said or "loss nan" in said or "loss inf" in said
    assert "quadrants[" in said
    assert "lower learning rate" in said
    kept = tmp_path / "steps" / f"{step - 1:06d}"
    assert kept.is_dir(), said
    before = steps_of(ENGINES[name](config), Batches(SPLIT, config), 0, step - 1).export()
    for parameter, array in open_checkpoint(kept).arrays.items():
        assert np.isfinite(array).all()
        np.testing.assert_array_equal(array, before[parameter])
    (line,) = [line for line in lines_of(tmp_path) if "not_finite" in line]
    assert line["step"] == step
    assert len(line["examples"]) == 16


@pytest.mark.parametrize("name", ENGINES)
def test_unreadable_images_are_named_and_counted(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    examples = list(SPLIT.examples)
    for i in (3, 9):
        examples[i] = {"image": b"no image", "label": 0}
    split = Split(examples, LABELS, "mine")
    fitted(ENGINES[name](CONFIG), tmp_path / "tolerant", split=split)
    out = capsys.readouterr().out
    assert "cannot read mine[3]; it counts nothing" in out
    assert out.count("cannot read") == 2, "each once, however often it is met"
    with pytest.raises(InputError, match=r"step \d+: 2 images of mine cannot be read .*undecodable_limit") as error:
        fitted(ENGINES[name](CONFIG.replace(undecodable_limit=1)), tmp_path / "strict", split=split)
    (kept,) = saved_steps(tmp_path / "strict")
    assert str(error.value).startswith(f"step {int(kept.name)}:"), "what was trained until then is kept"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_and_saves_it(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, steps = ENGINES["torch"](CONFIG), []
    train_step = engine.train_step

    def interrupted(batch: Batch, step: int, stop: bool) -> Any:
        steps.append(step)
        if step == 3:
            signal.raise_signal(number)
        return train_step(batch, step, stop)

    monkeypatch.setattr(engine, "train_step", interrupted)
    end = fitted(engine, tmp_path)
    assert (end.step, end.signal, steps) == (4, number, [0, 1, 2, 3])
    assert end.folders == (tmp_path / "steps" / "000004",)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "handlers are put back"


def test_weights_of_another_network_are_refused() -> None:
    other = CONFIG.replace(model=MODEL.replace(activation="gelu", dropout=0.1))
    for make in ENGINES.values():
        with pytest.raises(InputError, match=r"model: not that of checkpoint memory: activation is gelu here"):
            make(other, randomised())
        make(CONFIG.replace(model=MODEL.replace(dropout=0.1)), randomised())


def test_gradients_that_are_finite_one_by_one_may_be_too_much_together() -> None:
    """The engines leave such an update out: it has to be told."""
    large = np.array([2e38, 3e38, 1.0], np.float32)
    assert Measured(1.0, large).wrong(("a", "b", "c"), limit=5.0) == ["b"]
    assert Measured(6.0, large[2:]).wrong(("c",), limit=5.0) == ["loss"]
    assert Measured(np.nan, np.array([1.0, np.inf])).wrong(("a", "b"), limit=5.0) == ["loss", "b"]
    assert Measured(1.0, large[1:]).wrong(("b", "c"), limit=5.0) == []


def test_accuracy_interval_is_wilsons() -> None:
    low, high = loop.Accuracy(95, 100, 100, 0.0).interval
    # Worked out by hand from Wilson's formula with z = 1.959964.
    assert (low, high) == (pytest.approx(0.8882, abs=1e-4), pytest.approx(0.9785, abs=1e-4))


@pytest.mark.parametrize("name", ENGINES)
def test_so_many_updates_may_be_left_out(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A loss that has exploded counts like one that is not finite; what it would have changed stays as it was."""
    config = CONFIG.replace(steps=6, schedule=Schedule(), skippable=1, optimizer=Optimizer(name="sgd"))
    limited = config.replace(explosion=1e-3)  # no loss is so small
    engine = ENGINES[name](limited)
    before, batches = engine.export(), Batches(SPLIT, config)
    for step in range(2):
        engine.train_step(batches[step], step)
        assert engine.skipped == step + 1
    for parameter, array in engine.export().items():
        np.testing.assert_array_equal(array, before[parameter])
    with pytest.raises(InputError, match=r"step 2: loss 1\.386 has exploded \(limit 0\.001609\); examples quadrants"):
        fitted(ENGINES[name](limited), tmp_path / "stopped")
    assert "step 1: loss 1.386 has exploded (limit 0.001609); left out (1 of 1 that may be)" in capsys.readouterr().out
    assert [line["step"] for line in lines_of(tmp_path / "stopped") if "left_out" in line] == [1]
    for make in ENGINES.values():
        again = make(config.replace(skippable=0), saved=saved_steps(tmp_path / "stopped")[0])
        assert again.skipped == 1, "the one that it stopped for will be tried again"
        again.train_step(batches[1], 1)
        assert again.skipped == 1
        assert not np.array_equal(again.export()["head.weight"], before["head.weight"])
