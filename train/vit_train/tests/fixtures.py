"""Fixtures of the tests in several folders, whose conftest.py import them."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest

from vit_train.config import Data, TrainConfig
from vit_train.planning.topologies import WITHOUT_HARDWARE

Vit = Callable[..., str]


@cache
def _shared(program: TrainConfig, mesh: Any, teacher: Any) -> Any:
    from vit_train.engines.jax.train_step import TrainStep

    return TrainStep(program, mesh, teacher)


@pytest.fixture(scope="module", autouse=True)
def share_compiled_steps() -> Iterator[None]:
    """Engines of runs whose train steps are the same program share the compiled one: tracing it again takes a second,
    compiling it ten. Not beyond a module: tests elsewhere replace what a train step is made from."""
    from vit_train.engines.jax import engine

    def step_of(config: TrainConfig, mesh: Any, teacher: Any = None) -> Any:
        optimizer = config.optimizer.replace(learning_rate=1.0)
        program = config.replace(
            optimizer=optimizer, data=Data(name="digits"), seed=0, skippable=0, explosion=1.0, log_every=1, keep=1,
            evaluate_every=0, save_every=0, keep_every=0, keep_best=0, evaluation_batch=1, threads=1, workers=0,
            allow_undecodable=False, undecodable_limit=0, fingerprints=False, tensorboard=False,
        )  # fmt: skip
        return _shared(program, mesh, teacher)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "TrainStep", step_of)
        yield


@pytest.fixture
def without_hardware(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """An environment in which libtpu compiles; compilations are kept for this session only."""
    for name, value in WITHOUT_HARDWARE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def vit(capfd: pytest.CaptureFixture[str]) -> Vit:
    """Runs a command of `vit` in this process; returns what it printed, or the one line that bad input is answered
    with."""
    from vit_cli.application import run

    def call(*words: object, status: int = 0) -> str:
        capfd.readouterr()
        code = run(list(map(str, words)))
        out, err = capfd.readouterr()
        assert code == status, err or out
        if status == 2:
            assert err.startswith("vit: error: ")
            assert err.count("\n") == 1, err
            return err
        return out

    return call
