"""Safety: no code of a file runs, and no file takes time or memory beyond a bound, whatever it has inside."""

import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from vit_core.checkpoints.containers import open_container
from vit_core.checkpoints.containers.tests import hostile
from vit_core.errors import InputError

MEMORY_LIMIT = 2 * 2**30
"""Bytes of address space. Python with NumPy takes a quarter of them."""
SECONDS = 20
"""Enough for a busy machine; on a quiet one none takes more than 3."""


@pytest.fixture(scope="module")
def outcomes() -> dict[str, tuple[str, float, bool]]:
    """For every hostile pickle: the error, the seconds, and whether the weights beside it were read."""
    command = [sys.executable, hostile.__file__, str(MEMORY_LIMIT)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-2000:]
    assert hostile.LOADED not in result.stdout + result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    return {name: tuple(values) for name, *values in rows}


@pytest.mark.parametrize("name", hostile.HOSTILE)
def test_bounded(outcomes: dict[str, tuple[str, float, bool]], name: str) -> None:
    error, seconds, _ = outcomes[name]
    assert seconds < SECONDS
    if error:
        assert "\n" not in error
        assert "does not fit in memory" not in error
        assert 30 < len(error) < 400


REFUSED = {
    "appends to a class",
    "items of a class",
    "calls a list",
    "calls text",
    "calls a tensor",
    "a persistent id of a class",
    "a persistent id of text",
    "an encoding",
}
"""What no pickler writes."""


@pytest.mark.parametrize("name", hostile.CODE)
def test_the_weights_beside_code_are_read(outcomes: dict[str, tuple[str, float, bool]], name: str) -> None:
    error, _, weights = outcomes[name]
    assert weights is (name not in REFUSED)
    assert bool(error) is (name in REFUSED)


def test_the_weights_beside_what_contains_itself_are_read(outcomes: dict[str, tuple[str, float, bool]]) -> None:
    nested = [name for name in hostile.TIME if "nested" in name or "itself" in name or "themselves" in name]
    assert len(nested) > 12
    assert {name: outcomes[name][2] for name in nested} == dict.fromkeys(nested, True)


def test_memory(outcomes: dict[str, tuple[str, float, bool]]) -> None:
    assert outcomes["peak"][1] < 2**30


def test_nothing_is_imported_or_changed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for pickled in hostile.CODE.values():
        try:
            open_container(hostile.write_hostile(tmp_path / "w.pth", pickled))
        except InputError:
            continue
    assert not {"antigravity", "this", "commands"} & set(sys.modules)
    assert capfd.readouterr() == ("", "")


def test_the_same_calls_do_harm_elsewhere(tmp_path: Path) -> None:
    """These tests would see code that runs: Python's own unpickler runs it."""
    pickled = b"\x80\x02" + hostile.call("builtins", "exec", hostile.RAISE) + b"."
    with pytest.raises(SystemExit, match=hostile.LOADED):
        pickle.loads(pickled)
    (tmp_path / "w.pkl").write_bytes(pickled)
    with pytest.raises(
        InputError,
        match=r"can be read without running its code \(kept as plain data.*: objects of builtins.exec\)",
    ):
        open_container(tmp_path / "w.pkl")


def test_a_compressed_pickle_of_zeros(tmp_path: Path) -> None:
    path = hostile.write_hostile(tmp_path / "w.pth", b"\x80\x02" + b"N0" * 20_000_000 + b"N.", zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    with pytest.raises(InputError, match=r"data.pkl has 40,000,004 bytes, more than expected"):
        open_container(path)


def test_shapes_beyond_the_file_are_refused_when_they_are_read(tmp_path: Path) -> None:
    expected = {
        "a shape of 2**80": "partly outside its storage|but the file has fewer elements",
        "a shape of 2**40": "partly outside its storage",
        "a stride of 2**40": "partly outside its storage",
        "an offset of 2**40": "partly outside its storage",
        "a storage that is missing": "bytes, but its storage has 0",
    }
    for name, message in expected.items():
        opened = open_container(hostile.write_hostile(tmp_path / "w.pth", hostile.MEMORY[name]))
        np.testing.assert_array_equal(opened.arrays["weights.w"], [[1, 2], [3, 4]])
        with pytest.raises(InputError, match=message) as caught:
            opened.arrays["x"]
        assert "x" in str(caught.value)
