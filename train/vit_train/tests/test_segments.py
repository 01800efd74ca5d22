"""A run that is changed when it is resumed: what goes on, what changes, and that run.json alone determines it."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vit_core import InputError, open_checkpoint
from vit_train.config import Augmentation, Data, Schedule
from vit_train.data.batches import Batches
from vit_train.metrics import METRICS, curve, read_metrics
from vit_train.run import RUN, Request, read_request
from vit_train.segments import config_at, with_change
from vit_train.stages import Launch, pretrain, resume
from vit_train.tests.small_run import CONFIG, folder_of_images, quadrants

BEGUN = CONFIG.replace(
    schedule=Schedule(warmup_steps=5), save_every=3, keep=100, log_every=1, fingerprints=True, evaluate_every=0
)


def test_after_a_change_the_examples_go_on_where_they_were() -> None:
    """None is left out or used twice, and each is augmented and mixed as if the batches had never changed."""
    whole = Batches(quadrants(), BEGUN)
    after = config_at(BEGUN, with_change(BEGUN, (), 3, {"batch_size": 8}), 3)
    assert after.steps == 3 + 2 * 9, "as many examples as before"
    halves = Batches(quadrants(), after)
    for step in range(3, 12):
        first, second = halves[2 * step - 3], halves[2 * step - 2]
        for name in ("images_BHWC", "targets_BC", "weights_B", "own_share_B", "boxes_B4", "ids_B"):
            found = np.concatenate([getattr(first, name), getattr(second, name)])
            np.testing.assert_array_equal(found, getattr(whole[step], name))
        np.testing.assert_array_equal(halves.ids(2 * step - 3), whole.ids(step)[:8])


@pytest.mark.parametrize("name", ["cosine", "linear", "constant", "rsqrt"])
def test_the_learning_rate_is_that_of_a_run_with_the_new_values_from_its_start(name: Any) -> None:
    schedule = Schedule(name=name, warmup_steps=5, cooldown_steps=0 if name in ("cosine", "linear") else 3, timescale=7)
    begun = BEGUN.replace(schedule=schedule)
    longer = config_at(begun, with_change(begun, (), 9, {"steps": 40}), 9)
    rates = [longer.learning_rate(step) for step in range(9, 40)]
    assert rates == [begun.replace(steps=40).learning_rate(step) for step in range(9, 40)]
    # Of half the batch, every second step is at a number of examples at which the run had a step before.
    halved = config_at(begun, with_change(begun, (), 3, {"batch_size": 8}), 3)
    assert [halved.learning_rate(3 + 2 * i) for i in range(9)] == [begun.learning_rate(3 + i) for i in range(9)]
    between = [halved.learning_rate(step) for step in range(3, 21)]
    assert max(between) <= begun.optimizer.learning_rate, "also in the warm-up's last step"
    twice = {"batch_size": 8, "optimizer.learning_rate": 1e-3}
    assert config_at(begun, with_change(begun, (), 3, twice), 3).learning_rate(9) == pytest.approx(
        begun.learning_rate(6) / 3, rel=1e-15
    )


def test_changes_at_one_step_are_one_segment() -> None:
    first = with_change(BEGUN, (), 6, {"batch_size": 32})
    assert [segment.model_dump() for segment in first] == [
        {"step": 6, "examples": 96, "fields": {"batch_size": 32, "steps": 9}}
    ]
    both = with_change(BEGUN, first, 6, {"steps": 20})
    assert [segment.fields for segment in both] == [{"batch_size": 32, "steps": 20}]
    assert with_change(BEGUN, both, 6, {"steps": 12, "batch_size": 16}) == (), "as it was"
    assert with_change(BEGUN, both, 8, {"steps": 20}) == both, "no change"
    third = with_change(BEGUN, both, 8, {"compute_dtype": "bfloat16"})
    assert [(segment.step, segment.examples) for segment in third] == [(6, 96), (8, 160)]
    assert config_at(BEGUN, third, 7).compute_dtype is None
    assert (config_at(BEGUN, third, 8).compute_dtype, config_at(BEGUN, third, 8).batch_size) == ("bfloat16", 32)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 6}, "steps: 6, but the run has gone further: 6 steps are done"),
        ({"seed": 1}, "seed: cannot change within a run; only accumulation"),
        ({"batch_size": 7}, "batch_size: 7 examples taken at once cannot be paired"),
        ({"steps": 2**30}, "steps"),
    ],
)
def test_a_change_that_cannot_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        with_change(BEGUN, (), 6, fields)
    with pytest.raises(InputError, match="the run is finished: 12 steps are done; set --steps"):
        with_change(BEGUN, (), 12, {"batch_size": 8})


def test_run_json_of_earlier_versions_opens_as_one_segment(tmp_path: Path) -> None:
    request = Request(config=BEGUN)
    fields = json.loads(request.model_dump_json())
    del fields["segments"], fields["config"]["continues"]
    (tmp_path / RUN).write_text(json.dumps(fields))
    assert read_request(tmp_path) == request
    assert (request.steps, request.end_of_segment(0), request.config_at(5)) == (12, 12, BEGUN)


CHANGES: tuple[dict[str, Any], ...] = (
    {"steps": 20, "batch_size": 8},
    {"compute_dtype": "bfloat16", "batch_size": 24, "optimizer.learning_rate": 1e-3},
)


@pytest.fixture(scope="module")
def changed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was finished, got more steps in smaller batches, was stopped (its newest steps are removed), and went
    on in larger batches and another precision."""
    folder = tmp_path_factory.mktemp("segments")
    data = Data(name=f"{folder_of_images(folder / 'images')}/")
    run, launch = folder / "run", Launch("torch")
    pretrain(BEGUN.replace(data=data), run, launch)
    resume(run, CHANGES[0], launch)
    keep_steps(run, 15)
    resume(run, CHANGES[1], launch)
    return run


def keep_steps(run: Path, last: int) -> None:
    """Leaves a run as if it had been killed before it saved a step after the `last`."""
    shutil.rmtree(run / "checkpoint", ignore_errors=True)
    for step in (run / "steps").iterdir():
        if int(step.name) > last:
            shutil.rmtree(step)


def assert_equal_runs(found: Path, expected: Path) -> None:
    assert (found / RUN).read_text() == (expected / RUN).read_text()
    for what in ("loss", "fingerprint", "learning_rate"):
        assert curve(read_metrics(found / METRICS), what) == curve(read_metrics(expected / METRICS), what)
    for name in ("checkpoint", "checkpoint_ema"):
        ours, theirs = (open_checkpoint(run / name) for run in (found, expected))
        assert ours.config.replace(provenance=theirs.config.provenance) == theirs.config
        for parameter, array in theirs.arrays.items():
            np.testing.assert_array_equal(ours.arrays[parameter], array)


def test_the_segments_are_recorded(changed_run: Path) -> None:
    request = read_request(changed_run)
    assert [segment.model_dump() for segment in request.segments] == [
        {"step": 12, "examples": 192, "fields": {"steps": 20, "batch_size": 8}},
        # 40 of 256 examples are left: two batches of 24.
        {"step": 15, "examples": 216, "fields": {**CHANGES[1], "steps": 17}},
    ]
    assert (request.config.batch_size, request.steps) == (16, 17)
    assert curve(read_metrics(changed_run / METRICS), "loss")[0] == list(range(1, 18))
    assert open_checkpoint(changed_run / "checkpoint").config.provenance.step == 17


@pytest.mark.parametrize("last", [0, 6, 12, 15])
def test_killed_anywhere_it_ends_with_equal_bits(changed_run: Path, tmp_path: Path, last: int) -> None:
    """0: run.json alone determines the run."""
    again = tmp_path / "run"
    shutil.copytree(changed_run, again)
    keep_steps(again, last)
    if not last:
        (again / METRICS).unlink()
    assert resume(again, {}, Launch("torch")).fit.step == 17
    assert_equal_runs(again, changed_run)


def test_the_command_that_began_a_run_goes_on_with_its_segments(changed_run: Path, tmp_path: Path) -> None:
    again = tmp_path / "run"
    shutil.copytree(changed_run, again)
    keep_steps(again, 12)
    config = read_request(changed_run).config
    assert pretrain(config, again, Launch("torch")).fit.step == 17
    assert_equal_runs(again, changed_run)
    with pytest.raises(InputError, match=r"steps is 12 there and 13 here; vit resume .* continues it"):
        pretrain(config.replace(steps=13), again, Launch("torch"))


@pytest.mark.release
def test_jax_goes_on_with_a_changed_run_to_the_same_bits(tmp_path: Path) -> None:
    """Across a change, in one process and in two."""
    plain = BEGUN.replace(
        augmentation=Augmentation(mixup=0.1), steps=4, schedule=Schedule(warmup_steps=1), save_every=2
    )
    data, launch = Data(name=f"{folder_of_images(tmp_path / 'images')}/"), Launch("jax")
    pretrain(plain.replace(data=data), tmp_path / "run", launch)
    resume(tmp_path / "run", {"batch_size": 8, "steps": 8}, launch)
    (tmp_path / "again").mkdir()
    shutil.copy(tmp_path / "run" / RUN, tmp_path / "again")
    assert resume(tmp_path / "again", {}, launch).fit.step == 8
    assert_equal_runs(tmp_path / "again", tmp_path / "run")


def test_a_field_that_makes_another_run_is_refused_and_nothing_is_written(changed_run: Path) -> None:
    before = (changed_run / RUN).read_text()
    with pytest.raises(InputError, match=r"seed: cannot change in a run; .* batch_size, compute_dtype"):
        resume(changed_run, {"seed": 2, "batch_size": 8}, Launch("torch"))
    with pytest.raises(InputError, match="batch_size: 500 is more than"):
        resume(changed_run, {"batch_size": 500, "steps": 100}, Launch("torch"))
    assert (changed_run / RUN).read_text() == before
    with pytest.raises(InputError, match=r"no training run \(no run.json in it\)"):
        resume(changed_run / "steps", {}, Launch("torch"))
