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
from vit_core import InputError, ViTConfig, cli, open_checkpoint, parity
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


def test_weights_decide_what_counts() -> None:
    # An example of weight zero leaves no trace: the same losses whatever its image and target.
    rng = np.random.default_rng(0)
    images_BHWC = rng.integers(0, 256, (4, 8, 8, 1), np.uint8)
    targets_BC, weights_B = np.eye(4, dtype=np.float32), np.array([1, 1, 0, 1], np.float32)
    other = images_BHWC.copy()
    other[2] = 255 - other[2]
    for make in ENGINES.values():
        losses = [
            float(make(CONFIG).train_step(Batch(i, t, weights_B, {}), 1e-3))
            for i, t in [
                (images_BHWC, targets_BC),
                (other, np.roll(targets_BC, 1, 1) * (weights_B == 0)[:, None] + targets_BC * weights_B[:, None]),
            ]
        ]
        assert losses[0] == losses[1]


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


def test_one_step_parity_in_float32_is_reported(source: list[dict[str, Any]]) -> None:
    batch = loop.data.batches(source, CONFIG)[0]
    a, b = JaxEngine(CONFIG), TorchEngine(CONFIG)
    assert float(a.train_step(batch, 1e-3)) == pytest.approx(float(b.train_step(batch, 1e-3)), rel=parity.FLOAT32_BOUND)
