"""A run's folder: what it contains and refuses, at which step a run resumes, and which steps are kept."""

import logging
from pathlib import Path

import pytest

from vit_core import InputError, open_checkpoint
from vit_core.checkpoints.run_folder import checkpoint_in, saved_steps
from vit_core.storage import exclusive
from vit_train import step_folders
from vit_train.run import Request, Run
from vit_train.step_folders import STATISTICS
from vit_train.tests.small_run import CONFIG, ENGINES, LABELS, run_in, save_step

TorchEngine = ENGINES["torch"]


@pytest.mark.parametrize("name", ENGINES)
def test_a_saved_step_is_a_checkpoint(name: str, tmp_path: Path) -> None:
    folder = save_step(run_in(tmp_path / "my-run"), ENGINES[name](CONFIG), 12)
    opened = open_checkpoint(folder)
    assert (opened.config.provenance.run, opened.config.provenance.step) == ("my-run", 12)
    assert opened.config.labels == LABELS
    assert opened.config.probabilities == "softmax"
    assert checkpoint_in(tmp_path / "my-run") == folder


@pytest.mark.parametrize("name", ENGINES)
def test_a_run_resumes_at_step_zero(name: str, tmp_path: Path) -> None:
    save_step(run_in(tmp_path), ENGINES[name](CONFIG), 0)
    for make in ENGINES.values():
        assert run_in(tmp_path).start(make, None)[1] == 0


def test_only_the_newest_steps_are_kept(tmp_path: Path) -> None:
    run, engine = run_in(tmp_path, CONFIG.replace(keep=3)), TorchEngine(CONFIG)
    for step in (2, 4, 6, 8, 10):
        save_step(run, engine, step)
    assert [int(folder.name) for folder in saved_steps(tmp_path)] == [10, 8, 6]
    assert sorted(path.name for path in (tmp_path / "steps").iterdir()) == ["000006", "000008", "000010"]


def test_an_interrupted_save_leaves_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, run = TorchEngine(CONFIG), run_in(tmp_path)
    run.save(engine, 9)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(step_folders, "write_folder", killed)
        with pytest.raises(KeyboardInterrupt):
            run.save(engine, 10)
    assert checkpoint_in(tmp_path).name == "000009"
    run.save(engine, 10)
    assert run.start(TorchEngine, None)[1] == 10


def test_a_step_that_exists_is_not_written_again(tmp_path: Path) -> None:
    """It is the same step: writing it again could only lose it."""
    engine, run = TorchEngine(CONFIG), run_in(tmp_path)
    before = (run.save(engine, 9) / "model.safetensors").stat().st_ino
    assert (run.save(engine, 9) / "model.safetensors").stat().st_ino == before


def test_a_damaged_step_gives_way_to_the_one_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vit")
    engine, run = TorchEngine(CONFIG), run_in(tmp_path)
    for step in (9, 10):
        run.save(engine, step)
    newest = tmp_path / "steps" / "000010"
    (newest / STATISTICS).write_bytes((newest / STATISTICS).read_bytes()[:-100])
    assert run.start(TorchEngine, None)[1] == 9
    assert "000010/optimizer.safetensors: not a complete safetensors file" in caplog.text
    assert "going back to the step before" in caplog.text
    assert saved_steps(tmp_path) == [tmp_path / "steps" / "000009"], "or it would count as the newest again"
    (tmp_path / "steps" / "000009" / STATISTICS).write_bytes(b"half")
    with pytest.raises(InputError, match=r"000009/optimizer.safetensors: not a complete"):
        run.start(TorchEngine, None)


def test_a_run_of_another_config_is_refused(tmp_path: Path) -> None:
    run_in(tmp_path)
    other = CONFIG.replace(optimizer=CONFIG.optimizer.replace(learning_rate=0.5), seed=3)
    with pytest.raises(InputError) as error:
        Run(tmp_path, Request(config=other, labels=LABELS)).resumed()
    assert "optimizer.learning_rate is 0.003 there and 0.5 here; seed is 0 there and 3 here" in str(error.value)
    Run(tmp_path, Request(config=CONFIG.replace(log_every=1, workers=2), labels=LABELS)).resumed()
    with pytest.raises(InputError, match="labels is "):
        Run(tmp_path, Request(config=CONFIG, labels=LABELS[::-1])).resumed()
    Run(tmp_path, Request(config=CONFIG, labels=LABELS, framework="torch")).resumed()
    moved = CONFIG.replace(data=CONFIG.data.replace(name="./elsewhere/", directory="/data"))
    Run(tmp_path, Request(config=moved, labels=LABELS, init="other/path")).resumed()
    with pytest.raises(InputError, match="the images or their labels are others"):
        Run(tmp_path, Request(config=CONFIG, labels=LABELS, examples=("abc", "def"))).resumed()
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run.json: cannot be read"):
        Run(tmp_path, Request(config=CONFIG, labels=LABELS)).resumed()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        exclusive(tmp_path / "run"),
        pytest.raises(InputError, match="another process is using it"),
        exclusive(tmp_path / "run"),
    ):
        pass
    with exclusive(tmp_path / "run"):
        pass


def test_what_interrupted_saves_left_is_removed(tmp_path: Path) -> None:
    run, engine = run_in(tmp_path), ENGINES["jax"](CONFIG)
    for name in ("000003", "000009.orbax-checkpoint-tmp"):
        (tmp_path / "steps" / name / "d").mkdir(parents=True)
    save_step(run, engine, 4)
    assert [path.name for path in (tmp_path / "steps").iterdir()] == ["000004"]


@pytest.mark.parametrize(
    ("kept", "left"),
    [((2, 0, 0), [50, 60]), ((1, 20, 0), [20, 40, 60]), ((1, 0, 2), [10, 40, 60]), ((1, 50, 1), [40, 50, 60])],
)
def test_which_steps_are_kept(kept: tuple[int, int, int], left: list[int]) -> None:
    """The newest, every k-th, the best; of two equally good steps the later one."""
    have, scores = [10, 20, 30, 40, 50, 60], {10: 0.8, 20: 0.7, 40: 0.8, 60: 0.1}
    assert sorted(set(have) - set(step_folders.steps_to_remove(have, *kept, scores))) == left
