"""Both engines: a resumed run is the run, either engine resumes the other's, and what counts in a step."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.monitoring
import numpy as np
import pytest

from vit_core import CheckpointConfig, InputError, parity
from vit_core.checkpoints import Checkpoint
from vit_train.data.batches import Batches
from vit_train.engines.jax.forward import Params
from vit_train.engines.jax.mesh import make_mesh
from vit_train.engines.jax.train_step import TrainStep, for_platform
from vit_train.step_result import StepResult
from vit_train.tests.small_run import CONFIG, ENGINES, MODEL, SGD, quadrants, run_in, save_step, train_steps

SPLIT = quadrants()


def randomized() -> Checkpoint:
    """Weights for which every input changes the loss (a fresh head is zero)."""
    arrays = {name: array.astype(np.float32) for name, array in parity.randomized(MODEL, 0).items()}
    return Checkpoint.of(CheckpointConfig(model=MODEL), arrays)


@contextmanager
def jax_compilations() -> Iterator[list[str]]:
    """The names of the programs that JAX compiles within the context."""
    names: list[str] = []

    def listen(event: str, duration: float, **details: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(str(details.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_what_the_config_leaves_to_the_devices() -> None:
    """JAX's layers and its attention."""

    def chosen(platform: str, **changes: Any) -> tuple[bool | None, str | None]:
        config = for_platform(CONFIG.replace(**changes), platform)
        return config.scan, config.attention

    low = {"compute_dtype": "bfloat16"}
    assert chosen("gpu", **low) == (False, "fused")
    assert [chosen(platform, **low) for platform in ("cpu", "tpu")] == [(True, "plain")] * 2
    assert [chosen("gpu"), chosen("gpu", dtype="float64")] == [(False, "plain")] * 2
    assert chosen("gpu", **low, model=MODEL.replace(attention_dropout=0.1)) == (False, "plain")
    assert chosen("gpu", **low, scan=True, attention="plain") == (True, "plain")
    assert chosen("cpu", **low, scan=False, attention="fused") == (False, "fused")


def test_the_config_chooses_jaxs_attention() -> None:
    """In every block of the model that is trained."""
    for kind in ("plain", "fused"):
        config = CONFIG.replace(attention=kind, scan=False)
        step = TrainStep(config, make_mesh(config.mesh.over(1, MODEL), MODEL, jax.devices()[:1]))
        found: list[str] = []

        def blocks(params: Params, step: TrainStep = step, found: list[str] = found) -> None:
            found.extend(block.attn.attention for block in step.forward.model(params).blocks)

        jax.eval_shape(blocks, step.params(step.state))
        assert found == [kind] * MODEL.depth
    for change in ({"dtype": "float64"}, {"model": MODEL.replace(attention_dropout=0.1)}):
        with pytest.raises(InputError, match="attention: fused is not for dtype float64 or"):
            CONFIG.replace(attention="fused", **change)


@pytest.mark.parametrize("name", ENGINES)
def test_a_resumed_run_is_the_run(name: str, tmp_path: Path) -> None:
    config, make = CONFIG, ENGINES[name]
    batches = Batches(SPLIT, config)
    whole = train_steps(make(config), batches, 0, 12)
    folder = save_step(run_in(tmp_path, config), train_steps(make(config), batches, 0, 7), 7)
    resumed = train_steps(make(config, saved=folder), batches, 7, 12)
    for averaged in (False, True):
        for parameter, expected in whole.export(averaged).items():
            np.testing.assert_array_equal(resumed.export(averaged)[parameter], expected)


@pytest.mark.parametrize(("first", "second"), [("jax", "torch"), ("torch", "jax")])
def test_either_engine_resumes_the_others_run(first: str, second: str, tmp_path: Path) -> None:
    batches = Batches(SPLIT, CONFIG)
    stayed = train_steps(ENGINES[first](CONFIG), batches, 0, 5)
    moved = ENGINES[second](CONFIG, saved=save_step(run_in(tmp_path), stayed, 5))
    for engine in (stayed, moved):
        train_steps(engine, batches, 5, 6)
    for parameter, expected in stayed.export().items():
        # One float32 step: gradients differ by 1e-5 of their scale (parity.FLOAT32_BOUND). AdamW divides by their own
        # size, so that an update of lr = 3e-3 differs by 9e-6 where a gradient is a 300th of the largest.
        assert np.abs(moved.export()[parameter] - expected).max() < 1e-5, parameter


@pytest.mark.parametrize("name", ENGINES)
def test_weights_decide_what_counts(name: str) -> None:
    batch = Batches(SPLIT, CONFIG)[0]
    batch = batch._replace(own_share_B=np.ones(16, np.float32), boxes_B4=np.zeros((16, 4), np.int32))  # not mixed
    images_BHWC, targets_BC = batch.images_BHWC, np.eye(4, dtype=np.float32)[np.arange(16) % 4]
    others_BHWC, shifted_BC = images_BHWC.copy(), targets_BC.copy()
    others_BHWC[2], shifted_BC[2] = 255 - others_BHWC[2], np.roll(shifted_BC[2], 1)
    # With a learning rate of zero, every loss is of the same weights.
    engine = ENGINES[name](CONFIG.replace(optimizer=SGD.replace(learning_rate=0.0)), randomized())

    def loss(images: np.ndarray, targets: np.ndarray, weight: float) -> float:
        weights_B = np.ones(16, np.float32)
        weights_B[2] = weight
        changed = batch._replace(images_BHWC=images, targets_BC=targets, weights_B=weights_B)
        return float(engine.train_step(changed, 0).loss)

    assert loss(images_BHWC, targets_BC, 0) == loss(others_BHWC, shifted_BC, 0)
    assert (
        len({loss(images_BHWC, targets_BC, 1), loss(others_BHWC, targets_BC, 1), loss(images_BHWC, shifted_BC, 1)}) == 3
    )


@pytest.mark.parametrize("name", ENGINES)
def test_a_batch_without_readable_images_changes_nothing(name: str) -> None:
    """It gives no gradient, and no value that is not finite."""
    engine = ENGINES[name](CONFIG.replace(optimizer=SGD), randomized())
    before = engine.export()
    batch = Batches(SPLIT, CONFIG)[0]
    result = engine.train_step(batch._replace(weights_B=np.zeros(16, np.float32)), 0)
    assert float(result.loss) == result.gradient_norm == 0.0
    for parameter, array in engine.export().items():
        np.testing.assert_array_equal(array, before[parameter])


def test_weights_of_another_network_are_refused() -> None:
    other = CONFIG.replace(model=MODEL.replace(activation="gelu", dropout=0.1))
    for make in ENGINES.values():
        with pytest.raises(InputError, match=r"model: not that of a checkpoint in memory: activation is gelu here"):
            make(other, randomized())
        make(CONFIG.replace(model=MODEL.replace(dropout=0.1)), randomized())


def test_gradients_that_are_finite_one_by_one_may_be_too_large_together() -> None:
    """The engines skip such an update: the largest gradient is named."""
    large = np.array([2e38, 3e38, 1.0], np.float32)
    assert StepResult(1.0, large).invalid(("a", "b", "c"), loss_limit=5.0) == ["b"]
    assert StepResult(6.0, large[2:]).invalid(("c",), loss_limit=5.0) == ["loss"]
    assert StepResult(np.nan, np.array([1.0, np.inf])).invalid(("a", "b"), loss_limit=5.0) == ["loss", "b"]
    assert StepResult(1.0, large[1:]).invalid(("b", "c"), loss_limit=5.0) == []


def test_a_run_compiles_its_train_step_once(tmp_path: Path) -> None:
    """Also after it was resumed with other limits, and saving compiles nothing from the second time on."""
    config = CONFIG.replace(skippable=2)
    batches = Batches(SPLIT, config)
    engine = train_steps(ENGINES["jax"](config), batches, 0, 2)
    run = run_in(tmp_path, config)
    folder = save_step(run, engine, 2)
    assert engine.step.train._cache_size() == 1
    engine.skippable = 3  # a limit is an argument: nothing that jax.jit has read can change
    train_steps(engine, batches, 2, 3)
    with jax_compilations() as compiled:
        save_step(run, engine, 3)
    assert (engine.step.train._cache_size(), compiled) == (1, [])
    resumed = ENGINES["jax"](config.replace(skippable=0), saved=folder)
    assert (resumed.config.skippable, resumed.skippable) == (0, 0)
