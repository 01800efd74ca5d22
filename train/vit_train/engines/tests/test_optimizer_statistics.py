"""Statistics of both engines' optimizers: a run resumes with them bit for bit, and in the other engine."""

from collections.abc import Iterator

import jax
import numpy as np
import pytest

from vit_train.engines.tests.optimizer_runs import (
    ENGINES,
    ONE_EACH,
    ROWS,
    RUNS,
    InJax,
    InTorch,
    assert_same,
    run,
    start,
    written_out,
)


@pytest.fixture(autouse=True)
def _float64(request: pytest.FixtureRequest) -> Iterator[None]:
    with jax.enable_x64("float32" not in request.node.name):
        yield


@pytest.mark.parametrize("name", ONE_EACH)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_float32_run_resumes_bit_for_bit(engine: str, name: str) -> None:
    params = {n: array.astype(np.float32) for n, array in start().items()}
    whole, cut = (run(ENGINES[engine](ONE_EACH[name], params, jitted=True), range(6)) for _ in range(2))
    again = ENGINES[engine](ONE_EACH[name], cut.export(), jitted=True)
    again.restore(6, cut.statistics())
    assert {array.dtype for array in cut.statistics().values()} == {np.dtype(np.float32)}
    for one in (whole, again):
        run(one, range(6, 12))
    for ours, theirs in ((again.export(), whole.export()), (again.statistics(), whole.statistics())):
        assert ours.keys() == theirs.keys()
        for n in theirs:
            np.testing.assert_array_equal(ours[n], theirs[n])


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_EACH)
def test_a_run_may_change_engines_back_and_forth(name: str) -> None:
    params, statistics = start(), InTorch(ONE_EACH[name], start()).statistics()
    for i, make in enumerate((InJax, InTorch, InJax, InTorch)):
        engine = make(ONE_EACH[name], params)
        engine.restore(5 * i, statistics)
        run(engine, range(5 * i, 5 * i + 5))
        params, statistics = engine.export(), engine.statistics()
    assert_same(params, written_out(ONE_EACH[name]))


@pytest.mark.parametrize("name", ONE_EACH)
def test_statistics_are_complete_before_the_first_step(name: str) -> None:
    in_jax, in_torch = (make(ONE_EACH[name], start()).statistics() for make in (InJax, InTorch))
    assert_same(in_jax, in_torch)
    assert {key.partition("/")[2] for key in in_torch} == ONE_EACH[name].factors(ROWS).keys()
    assert not any(array.any() for array in in_torch.values())


def test_shapes_of_statistics_on_disk() -> None:
    statistics = InTorch(RUNS["adafactor, decoupled, plain"], start()).statistics()
    shapes = {key: array.shape for key, array in statistics.items()}
    assert shapes["momentum/blocks.0.attn.qkv.weight"] == ROWS["blocks.0.attn.qkv.weight"].shape
    assert shapes["second_moment_rows/blocks.0.mlp.fc1.weight"] == (1, 40)
    assert shapes["second_moment_columns/blocks.0.mlp.fc1.weight"] == (1, 36)
    assert shapes["second_moment_rows/blocks.0.attn.qkv.weight"] == (3, 36)
    assert shapes["second_moment/pos_embed"] == ROWS["pos_embed"].shape
    assert "second_moment/blocks.0.mlp.fc1.weight" not in shapes
