"""The loop and its engines: it learns, logs, evaluates, stops and goes on; either engine continues the other's run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from train import loop
from train.config import Augmentation, Optimizer, TrainConfig
from train.data import Batch
from train.engine_jax import JaxEngine
from train.engine_torch import TorchEngine
from vit_core import CheckpointConfig, InputError, ViTConfig, cli, open_checkpoint, parity
from vit_core.checkpoint import Checkpoint, LazyArrays
from vit_core.preprocess import Preprocessing

MODEL = ViTConfig(
    image_size=8, patch_size=4, channels=1, width=16, depth=2, heads=2, mlp_dim=32, num_classes=4, stochastic_depth=0.2
)
CONFIG = TrainConfig(
    model=MODEL,
    preprocessing=Preprocessing(image_size=8, channels=1),
    augmentation=Augmentation(rotation=10, shift=0.1),
    optimizer=Optimizer(learning_rate=3e-3, weight_decay=0.05, clip_norm=1.0),
    steps=12,
    batch_size=16,
    warmup_steps=3,
    log_every=5,
)
ENGINES = {"jax": JaxEngine, "torch": TorchEngine}


@pytest.fixture(scope="module")
def source() -> list[dict[str, Any]]:
    """Four classes, each a bright quadrant in noise, as PNG."""
    import io

    from PIL import Image

    rng, made = np.random.default_rng(0), []
    for i in range(64):
        pixels, label = rng.integers(0, 80, (8, 8), np.uint8), i % 4
        pixels[(label // 2) * 4 :][:4, (label % 2) * 4 :][:, :4] += 120
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        made.append({"image": file.getvalue(), "label": label})
    return made


@pytest.mark.parametrize("name", ENGINES)
def test_a_run_learns_and_is_logged(name: str, source: list[dict[str, Any]], tmp_path: Path) -> None:
    engine = ENGINES[name](CONFIG.replace(steps=200))
    assert loop.evaluate(engine, source).top1 < 0.6
    steps: list[tuple[int, float | None]] = []
    loop.fit(engine, source, tmp_path, on_step=lambda *args: steps.append(args))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(5, 201, 5))
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    assert lines[0]["learning_rate"] == engine.config.learning_rate(4)
    assert [step for step, _ in steps] == list(range(1, 201))
    assert [loss for _, loss in steps if loss is not None] == [line["loss"] for line in lines]
    assert loop.evaluate(engine, source).top1 > 0.7


@pytest.mark.parametrize("optimizer", [CONFIG.optimizer, Optimizer(name="sgd", learning_rate=0.1)])
@pytest.mark.parametrize("name", ENGINES)
def test_a_resumed_run_is_the_run(
    name: str, optimizer: Optimizer, source: list[dict[str, Any]], tmp_path: Path
) -> None:
    config, make = CONFIG.replace(optimizer=optimizer), ENGINES[name]
    whole = make(config)
    loop.fit(whole, source, tmp_path / "whole")
    first = make(config)
    for step in range(7):
        first.train_step(loop.data.batches(source, config)[step], config.learning_rate(step))
    folder = loop.save_step(first, tmp_path / "cut", 7)
    again, start = loop.restore_step(make, config, folder)
    assert start == 7
    loop.fit(again, source, tmp_path / "cut", start=start)
    for parameter, expected in whole.export().items():
        np.testing.assert_array_equal(again.export()[parameter], expected)


@pytest.mark.parametrize(("first", "second"), [("jax", "torch"), ("torch", "jax")])
def test_either_engine_goes_on_with_the_others_run(
    first: str, second: str, source: list[dict[str, Any]], tmp_path: Path
) -> None:
    stayed, batches = ENGINES[first](CONFIG), loop.data.batches(source, CONFIG)
    for step in range(5):
        stayed.train_step(batches[step], CONFIG.learning_rate(step))
    moved, start = loop.restore_step(ENGINES[second], CONFIG, loop.save_step(stayed, tmp_path, 5))
    for engine in (stayed, moved):
        engine.train_step(batches[start], CONFIG.learning_rate(start))
    for parameter, expected in stayed.export().items():
        # One float32 step: about 1e-5 of a gradient's scale (parity.FLOAT32_BOUND), times a step of lr = 3e-3 at most,
        # against weights of order 0.1 that a float32 rounding (6e-8) has touched.
        assert np.abs(moved.export()[parameter] - expected).max() < 1e-5, parameter


def test_a_saved_step_is_a_checkpoint(source: list[dict[str, Any]], tmp_path: Path) -> None:
    engine = TorchEngine(CONFIG)
    folder = loop.save_step(engine, tmp_path / "my-run", 12, labels=("a", "b", "c", "d"))
    opened = open_checkpoint(folder)
    assert (opened.config.provenance.run, opened.config.provenance.step) == ("my-run", 12)
    assert opened.config.labels == ("a", "b", "c", "d")
    assert cli.last_step(tmp_path / "my-run") == folder


def randomised() -> Checkpoint:
    """Weights under which every input changes the loss (a fresh head is zero)."""
    arrays = {name: array.astype(np.float32) for name, array in parity.randomized(MODEL, 0).items()}
    makers = {name: array.copy for name, array in arrays.items()}
    return Checkpoint(Path("memory"), CheckpointConfig(model=MODEL), LazyArrays(makers))


@pytest.mark.parametrize("name", ENGINES)
def test_weights_decide_what_counts(name: str) -> None:
    rng = np.random.default_rng(0)
    images_BHWC, targets_BC = rng.integers(0, 256, (4, 8, 8, 1), np.uint8), np.eye(4, dtype=np.float32)
    others_BHWC, shifted_BC = images_BHWC.copy(), targets_BC.copy()
    others_BHWC[2], shifted_BC[2] = 255 - others_BHWC[2], np.roll(shifted_BC[2], 1)

    def loss(images: np.ndarray, targets: np.ndarray, weight: float) -> float:
        weights_B = np.array([1, 1, weight, 1], np.float32)
        return float(ENGINES[name](CONFIG, randomised()).train_step(Batch(images, targets, weights_B, {}), 1e-3))

    assert loss(images_BHWC, targets_BC, 0) == loss(others_BHWC, shifted_BC, 0)
    assert (
        len({loss(images_BHWC, targets_BC, 1), loss(others_BHWC, targets_BC, 1), loss(images_BHWC, shifted_BC, 1)}) == 3
    )


def test_weights_of_another_network_are_refused() -> None:
    other = CONFIG.replace(model=MODEL.replace(activation="gelu", dropout=0.1))
    for make in ENGINES.values():
        with pytest.raises(InputError, match=r"model: not that of checkpoint memory: activation is gelu here"):
            make(other, randomised())
        make(CONFIG.replace(model=MODEL.replace(dropout=0.1)), randomised())


def test_labels_must_be_classes() -> None:
    for labels in ([0, 4], [-1, 0]):
        with pytest.raises(InputError, match="the model has 4 classes"):
            loop.data.smooth_targets(np.array(labels), CONFIG)


@pytest.mark.parametrize("name", ENGINES)
def test_step_zero_can_be_restored(name: str, tmp_path: Path) -> None:
    folder = loop.save_step(ENGINES[name](CONFIG), tmp_path, 0)
    for make in ENGINES.values():
        engine, start = loop.restore_step(make, CONFIG, folder)
        assert start == 0
        engine.train_step(
            Batch(np.zeros((1, 8, 8, 1), np.uint8), np.eye(4, dtype=np.float32)[:1], np.ones(1), {}), 1e-3
        )


def test_a_step_cut_short_is_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TorchEngine(CONFIG)
    for step in (9, 10):
        loop.save_step(engine, tmp_path, step)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        loop.save_step(engine, tmp_path, 10)
    assert cli.last_step(tmp_path).name == "000009"
    (tmp_path / "steps" / "000009" / loop.OPTIMIZER).write_bytes(b"half")
    with pytest.raises(InputError, match=r"optimizer.safetensors: not a whole safetensors file"):
        loop.restore_step(TorchEngine, CONFIG, tmp_path / "steps" / "000009")


def test_schedule() -> None:
    config = CONFIG.replace(steps=103, warmup_steps=3)
    peak = config.optimizer.learning_rate
    rates = [config.learning_rate(step) for step in range(103)]
    np.testing.assert_allclose(rates[:4], [peak / 3, peak * 2 / 3, peak, peak], rtol=1e-15)
    assert rates[53] == pytest.approx(peak / 2, rel=1e-12)
    assert 0 < rates[-1] < peak * 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"warmup_steps": 12}, "warmup_steps: 12 leaves nothing of 12 steps"),
        ({"preprocessing": Preprocessing(image_size=16, channels=1)}, "preprocessing: gives (16, 16) with 1 channels"),
        ({"model": MODEL.replace(num_classes=0)}, "num_classes: 0 leaves nothing"),
        ({"optimizer": {"name": "adamw", "decay": "coupled"}}, "'coupled' is for name 'sgd'"),
        ({"optimiser": {}}, "did you mean 'optimizer'?"),
        ({"optimizer": {"learning_rat": 1}}, "optimizer: unknown key 'learning_rat'; did you mean 'learning_rate'?"),
    ],
)
def test_impossible_runs_are_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        CONFIG.replace(**change)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_accuracy_interval_is_wilsons() -> None:
    low, high = loop.Accuracy(95, 100).interval
    # Worked out by hand from Wilson's formula with z = 1.959964.
    assert (low, high) == (pytest.approx(0.8882, abs=1e-4), pytest.approx(0.9785, abs=1e-4))
