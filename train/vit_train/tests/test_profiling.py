"""`profile`: the recorded steps are the wanted ones, and the files are those that the programs for them open."""

import gzip
import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vit_train.loop import batches_for, fit
from vit_train.profiling import FIRST, Profile
from vit_train.tests.small_run import CONFIG, ENGINES, SGD, quadrants, run_in


def events(folder: Path) -> list[dict[str, Any]]:
    """The events that Perfetto finds in the only trace of a folder."""
    (trace,) = (*folder.rglob("perfetto_trace.json.gz"), *folder.glob("*.pt.trace.json"))
    text = gzip.decompress(trace.read_bytes()) if trace.suffix == ".gz" else trace.read_bytes()
    found: list[dict[str, Any]] = json.loads(text)["traceEvents"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ENGINES)
def test_steps_are_recorded(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = CONFIG.replace(steps=9, profile=2, optimizer=SGD)
    engine, split = ENGINES[name](config), quadrants()
    with caplog.at_level(logging.INFO, "vit"):
        fit(engine, run_in(tmp_path, config), batches_for(engine, split), split)
    (line,) = (record.message for record in caplog.records if "profile" in record.message)
    assert line.startswith(f"profile of steps 6 to 7: {tmp_path / 'profile'}; open with ")
    assert "perfetto" in line
    names = [str(event.get("name", "")) for event in events(tmp_path / "profile")]
    if name == "jax":
        assert list((tmp_path / "profile" / "plugins" / "profile").glob("*/*.xplane.pb")), "TensorBoard's and XProf's"
        assert any("PjitFunction" in event or "jit_" in event for event in names)
    else:
        steps = sum(event == "autograd::engine::evaluate_function: AddmmBackward0" for event in names)
        assert steps
        assert steps % 2 == 0, "of two steps"


@pytest.mark.parametrize(
    ("start", "end", "wanted", "expected"),
    [
        (0, 100, 3, range(FIRST, FIRST + 3)),
        (50, 100, 3, range(50 + FIRST, 53 + FIRST)),
        (0, 6, 3, range(3, 6)),
        (0, 2, 3, range(2)),
        (0, 100, 0, range(0)),
    ],
)
def test_which_steps(start: int, end: int, wanted: int, expected: range) -> None:
    """After the first five; fewer are left out where the run has too few."""
    log: list[str] = []

    class Recording:
        def __enter__(self) -> None:
            log.append("begin")

        def __exit__(self, *error: object) -> None:
            log.append("end")

    engine: Any = SimpleNamespace(
        config=SimpleNamespace(profile=wanted), process=0, profiled=lambda folder: Recording(), profile_opened_by=""
    )
    profile, recorded = Profile(engine, Path("run"), start, end), []
    with profile:
        for step in range(start, end):
            profile.before_step(step)
            if log == ["begin"]:
                recorded.append(step)
            if profile.ends_after(step + 1):
                profile.stop()
    assert recorded == list(expected)
    assert log == (["begin", "end"] if wanted else [])
