"""Progress bars of narrow terminals, and titles of tables."""

import io
import operator
from functools import partial

import pytest
from rich.console import Console

from vit_cli import console
from vit_cli.reports import training
from vit_cli.reports.training import TerminalDisplay

NOTE = "loss 1.597  lr 6.0e-05  298 images/s  data 1%  MFU 5%"


@pytest.mark.parametrize(("width", "note"), [(80, "loss 1.597  lr 6.0e-0…"), (120, NOTE), (160, NOTE)])
def test_progress_shows_steps_and_times_whole(width: int, note: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(console, "console", Console(width=width, file=file))
    with console.progress() as bar:
        bar.add_task("pretrain (torch)", total=187_500, completed=1400, note=NOTE)
    (line,) = file.getvalue().strip("\n").splitlines()
    assert line.startswith("pretrain (torch) ")
    assert line.rstrip().endswith(f" 1400/187500 {note} 0:00:00 < -:--:--")


def test_a_bar_in_another_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(console, "console", Console(width=120, file=file))
    display = TerminalDisplay()
    with display.task("pretrain", 1) as outer, display.task("evaluate", 1) as inner:
        inner.update(1, "photos/val")
        outer.update(1, "loss 1")
    with display.task("evaluate", 1) as last:
        last.update(1, "photos/test")
    assert [line.split()[0] for line in file.getvalue().splitlines()] == ["pretrain", "evaluate"]


def test_a_line_a_minute_is_written_to_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """400 steps of 10 s, from step 100 on: every sixth makes a line, but not the last; none in a terminal."""
    for terminal in (False, True):
        file, seconds = io.StringIO(), [0.0]
        monkeypatch.setattr(console, "console", Console(width=160, file=file, force_terminal=terminal))
        monkeypatch.setattr(training, "monotonic", partial(operator.getitem, seconds, 0))
        with TerminalDisplay().task("pretrain (torch)", 500, 100) as task:
            for step in range(101, 501):
                seconds[0] += 10.0
                task.update(step, NOTE if step % 50 == 0 else None)
        lines = [line for line in file.getvalue().splitlines() if " left" in line]
        assert len(lines) == (0 if terminal else 66)
        if lines:
            assert lines[0] == "pretrain (torch): 106 of 500, starting, 1:05:40 left"
            assert lines[-1] == f"pretrain (torch): 496 of 500, {NOTE}, 0:00:40 left"


def test_a_title_is_longer_than_its_table(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(console, "console", Console(width=80, file=file))
    console.table("a title of more characters than the columns have", ("a", "b"), [(1, 2)])
    assert file.getvalue().splitlines()[0] == "a title of more characters than the columns have"
