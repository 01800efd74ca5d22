"""Progress bars of narrow terminals, and titles of tables."""

import io

import pytest
from rich.console import Console

from vit_cli import console
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


def test_a_title_is_longer_than_its_table(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(console, "console", Console(width=80, file=file))
    console.table("a title of more characters than the columns have", ("a", "b"), [(1, 2)])
    assert file.getvalue().splitlines()[0] == "a title of more characters than the columns have"
