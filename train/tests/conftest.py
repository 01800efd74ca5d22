"""The command line as a user has it, for the tests that want it."""

import sys
from collections.abc import Callable

import pytest

from train.topologies import WITHOUT_HARDWARE
from vit_core import cli

Vit = Callable[..., str]


@pytest.fixture
def without_hardware(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """An environment in which libtpu compiles; compilations are kept for this session only."""
    for name, value in WITHOUT_HARDWARE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def vit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> "Vit":
    """Runs a command in this process; gives what it printed, or the one line that bad input is answered with."""

    def call(*words: object, status: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["vit", *map(str, words)])
        code: object = 0
        try:
            cli.main()
        except SystemExit as exit:
            code = exit.code or 0
        out, err = capsys.readouterr()
        assert code == status, err or out
        if status == 2:
            assert err.startswith("vit: error: ")
            assert err.count("\n") == 1, err
            return err
        return out

    return call
