"""A killed run that is started again is the same run, bit for bit."""

import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from vit_core.checkpoints.run_folder import saved_steps
from vit_train.run import RUN, read_request
from vit_train.tests.run_processes import RECIPE, assert_the_same_run, logged, start, start_command
from vit_train.tests.small_run import assert_ended, children, folder_of_images

KINDS: dict[str, tuple[str, ...]] = {
    "classes": (),
    "masked autoencoder": (
        "--mae.mask-ratio", "0.75", "--mae.decoder-width", "16", "--mae.decoder-depth", "1", "--mae.decoder-heads", "2",
        "--model.patch-size", "2", "--augmentation.mixup", "0", "--augmentation.cutmix", "0",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow if kind == "classes" else pytest.mark.release) for kind in KINDS]
)
def test_a_killed_run_that_is_started_again_is_the_same_run(kind: str, tmp_path: Path) -> None:
    """A real process, killed during a step; its workers end too."""
    recipe, torch = tmp_path / "recipe.py", ("--framework", "torch", *KINDS[kind])
    recipe.write_text(RECIPE.format(folder=str(folder_of_images(tmp_path / "images"))))
    process = start(recipe, "cut", *torch)
    while logged(tmp_path / "cut") < 17 and process.poll() is None:
        time.sleep(0.005)
    workers = children(process)
    assert workers
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
    assert 17 <= logged(tmp_path / "cut") < 40
    assert_ended(workers)
    for out in ("cut", "whole"):
        assert start(recipe, out, *torch).wait() == 0, (tmp_path / "log").read_text()
    assert "resuming after step" in (tmp_path / "log").read_text()
    assert_the_same_run(tmp_path / "cut", tmp_path / "whole", 40)


@pytest.mark.release
def test_a_changed_run_that_is_killed_is_the_same_run(tmp_path: Path) -> None:
    """A finished run gets more steps of smaller batches, is killed among them, and goes on by `vit resume`."""
    recipe, log = tmp_path / "recipe.py", tmp_path / "log"
    recipe.write_text(RECIPE.format(folder=str(folder_of_images(tmp_path / "images"))))
    assert start(recipe, "cut", "--framework", "torch").wait() == 0, log.read_text()
    shutil.copytree(tmp_path / "cut", tmp_path / "whole")
    process = start_command(log, "resume", str(tmp_path / "cut"), "--batch-size", "8", "--steps", "80")
    while logged(tmp_path / "cut") < 57 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, log.read_text()
    assert 57 <= logged(tmp_path / "cut") < 80
    assert start_command(log, "resume", str(tmp_path / "cut")).wait() == 0, log.read_text()
    assert start_command(log, "resume", str(tmp_path / "whole"), "--batch-size", "8", "--steps", "80").wait() == 0, (
        log.read_text()
    )
    assert [(segment.step, segment.fields["batch_size"]) for segment in read_request(tmp_path / "cut").segments] == [
        (40, 8)
    ]
    assert (tmp_path / "cut" / RUN).read_bytes() == (tmp_path / "whole" / RUN).read_bytes()
    assert_the_same_run(tmp_path / "cut", tmp_path / "whole", 80)


def trained_since(begin: float, run: Path) -> bool:
    """Whether a run has a saved step, and a process that began then has logged a later one. (As it begins, it only
    removes lines.)"""
    lines = run / "metrics.jsonl"
    saved = [int(step.name) for step in saved_steps(run)]
    return bool(saved) and lines.stat().st_mtime > begin and logged(run) > max(saved) and lines.stat().st_size > 0


KILLS = 20


@pytest.mark.release
def test_a_run_killed_twenty_times_is_the_same_run(tmp_path: Path) -> None:
    """Killed at random moments of training and saving, it resumes by the same command."""
    recipe, steps, rng = tmp_path / "recipe.py", 4000, random.Random(0)
    recipe.write_text(RECIPE.format(folder=str(folder_of_images(tmp_path / "images"))))
    words = ("--steps", str(steps), "--save-every", "10", "--workers", "0", "--evaluate-every", "500")
    lives = []
    for life in range(KILLS):
        begin = time.time()
        process = start(recipe, "cut", *words)
        while not trained_since(begin, tmp_path / "cut") and process.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.6))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
        incomplete = [path.name for path in (tmp_path / "cut" / "steps").iterdir() if not path.name.isdigit()]
        newest = next(iter(saved_steps(tmp_path / "cut"))).name
        lives.append(
            f"life {life + 1}: killed after step {logged(tmp_path / 'cut')}, saved {newest}, incomplete {incomplete}"
        )
    print("\n".join(lives))
    for out in ("cut", "whole"):
        assert start(recipe, out, *words).wait() == 0, (tmp_path / "log").read_text()
    assert (tmp_path / "log").read_text().count("resuming after step") >= KILLS - 1
    assert_the_same_run(tmp_path / "cut", tmp_path / "whole", steps)
