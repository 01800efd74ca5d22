"""Low-rank adapters in both engines: one training, the same network once merged, and peft's own computation of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity_tests.test_training import ADAMW, DESCENDANT, LAMB, ROTARY, assert_trained_alike, batches, config
from parity_tests.twins import checkpoint
from vit_core import open_checkpoint, parity
from vit_core.checkpoints import Checkpoint
from vit_core.lora import Lora, adapter_rows, merged_arrays
from vit_train.config import TrainConfig
from vit_train.engines.jax.engine import JaxEngine
from vit_train.engines.torch.engine import TorchEngine
from vit_train.run import Request, Run
from vit_train.tests.small_run import save_step

LORA = Lora(rank=4, alpha=6.0)
EVERYWHERE = LORA.replace(targets=("qkv", "proj", "fc1", "fc2"), root=True)
RUNS: dict[str, dict[str, Any]] = {
    "adamw, clipped, average": {"optimizer": ADAMW.replace(clip_norm=0.5), "lora": EVERYWHERE, "ema": 0.8},
    "rotary, no key bias": {"optimizer": ADAMW, "lora": LORA, "model": ROTARY},
    "descendant, every layer, accumulation": {
        "optimizer": ADAMW, "lora": EVERYWHERE, "model": DESCENDANT, "accumulation": 4,
    },
    "lamb, some blocks": {"optimizer": LAMB.replace(frozen=("blocks.0.*",)), "lora": EVERYWHERE},
    "unrolled": {"optimizer": ADAMW, "lora": EVERYWHERE, "scan": False},
}  # fmt: skip
SLOW = ("rotary, no key bias", "descendant, every layer, accumulation")
"""Between them they have every kind of adapter; the others are run before a release."""
ENGINES: dict[str, Any] = {"jax": JaxEngine, "torch": TorchEngine}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else pytest.mark.release) for name in RUNS]
)
def test_twenty_steps_are_the_same(name: str) -> None:
    run = config(**RUNS[name])
    weights = checkpoint(run.model)
    engines = [make(run, weights) for make in ENGINES.values()]
    made = batches(run)
    untrained = {make.name: make.predict(made[0].images_BHWC) for make in engines}
    assert_trained_alike(engines, made)
    rows = adapter_rows(run.model, run.lora)
    trained = engines[1].export()
    for engine in engines:
        assert_only_adapters_and_heads_are_trained(engine, run, weights)
        # The adapters begin at zero: the first logits are those of the checkpoint's own network.
        logits = TorchEngine(run.replace(lora=Lora()), weights).predict(made[0].images_BHWC)
        assert parity.difference(untrained[engine.name], logits)[1] <= parity.FLOAT64_BOUND
        for averaged in (False, True) if run.ema else (False,):
            arrays = merged_arrays(engine.export(averaged), run.model, run.lora)
            merged = TorchEngine(run.replace(lora=Lora()), Checkpoint.of(weights.config, arrays))
            beside = (engine.average if averaged else engine).predict(made[0].images_BHWC)
            whole = merged.predict(made[0].images_BHWC)
            assert parity.difference(beside, whole)[1] <= parity.FLOAT64_BOUND
            assert parity.difference(whole, untrained[engine.name])[1] > 1e-3, "nothing was trained"
    assert len([name for name in rows if np.abs(trained[name]).max() > 1e-4]) == len(rows) or run.optimizer.frozen


def assert_only_adapters_and_heads_are_trained(engine: Any, run: TrainConfig, weights: Checkpoint) -> None:
    trained = engine.export()
    assert all(".lora_" in name or name.startswith("head") for name in engine.trained)
    for name in weights.arrays:
        assert np.array_equal(trained[name], weights.arrays[name]) != name.startswith("head"), name
    kinds = {key.partition("/")[2] for key in engine.statistics() if "/" in key}
    assert kinds == set(engine.trained)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("torch", "torch"),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in (("jax", "jax"), ("jax", "torch"), ("torch", "jax"))),
    ],
)
def test_a_saved_step_is_the_merged_network_and_goes_on(first: str, second: str, tmp_path: Path) -> None:
    """Bit for bit in the same engine; as near as the engines are in the other."""
    run = config(optimizer=ADAMW, lora=LORA, steps=6, schedule={"warmup_steps": 2})
    weights, made = checkpoint(run.model), batches(run)
    there = Run(tmp_path, Request(config=run))
    there.write()
    whole, engine = ENGINES[second](run, weights), ENGINES[first](run, weights)
    for step in range(3):
        whole.train_step(made[step], step)
        engine.train_step(made[step], step)
    saved = open_checkpoint(save_step(there, engine, 3))
    arrays = merged_arrays(engine.export(), run.model, run.lora)
    assert saved.arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        assert parity.difference(saved.arrays[name], array)[1] <= parity.FLOAT64_BOUND, name
    resumed = ENGINES[second](run, saved=there.step_folder(3))
    if first == second:
        assert_equal(resumed.export(), engine.export())
    for step in range(3, 6):
        whole.train_step(made[step], step)
        resumed.train_step(made[step], step)
    for what in ("export", "statistics"):
        found, expected = getattr(resumed, what)(), getattr(whole, what)()
        if first == second:
            assert_equal(found, expected)
        else:
            for name in expected:
                assert parity.difference(found[name], expected[name])[1] <= parity.FLOAT64_BOUND, name


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
