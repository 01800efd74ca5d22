"""Groups of runs, their intervals and the power law, compared with scipy and NumPy."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t, ttest_1samp, ttest_ind

from vit_core.errors import InputError
from vit_train.config import TrainConfig
from vit_train.metrics import METRICS
from vit_train.run import RUN, Request
from vit_train.run_groups import (
    PowerLaw,
    grouped,
    half_width,
    read_finished_run,
    runs_under,
)
from vit_train.segments import Segment
from vit_train.tests.small_run import CONFIG

ROUNDING = 1e-9
"""Relative; quantiles of Student's t are computed iteratively."""


def write_run(
    folder: Path,
    config: TrainConfig,
    top1: float,
    engine: str = "torch",
    earlier: Sequence[float] = (),
    **request: object,
) -> Path:
    """Writes the files of a finished run, without its weights. earlier: accuracy after steps 1, 2, ..."""
    folder.mkdir(parents=True)
    (folder / RUN).write_text(json.dumps(Request(config=config, **request).model_dump(mode="json")))
    lines = [
        {"step": 1, "loss": 1.0, "engine": engine},
        *({"step": step, "top1": each} for step, each in enumerate(earlier, start=1)),
        {"step": config.steps, "top1": top1, "top1_interval": [top1 - 0.1, top1 + 0.1], "top1_ema": top1 / 2},
    ]
    (folder / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_two_groups_are_students_t_test() -> None:
    a, b = [0.31, 0.34, 0.29], [0.38, 0.41]
    width = half_width([a, b], 3, 2)
    expected = ttest_ind(b, a, equal_var=True).confidence_interval(0.95)
    assert width == pytest.approx((expected.high - expected.low) / 2, rel=ROUNDING)


def test_one_group_is_students_interval_of_the_mean() -> None:
    scores = [0.31, 0.34, 0.29]
    expected = ttest_1samp(scores, 0).confidence_interval(0.95)
    assert half_width([scores], 3) == pytest.approx((expected.high - expected.low) / 2, rel=ROUNDING)
    assert half_width([[0.31], [0.34]], 1) is None, "no seed twice"


def test_the_power_law_is_numpys_line_through_logarithms() -> None:
    costs, errors = [2e12, 8e12, 4e13, 1e14], [0.60, 0.47, 0.36, 0.31]
    law, cost = PowerLaw.fitted(costs, errors), 1.5e16
    x, y = np.log(costs), np.log(errors)
    (slope, intercept), covariance = np.polyfit(x, y, 1, cov=True)
    at = np.array([np.log(cost), 1])
    residual = np.square(y - slope * x - intercept).sum() / 2
    deviation = np.sqrt(at @ covariance @ at + residual)
    low, high = law.error_interval(cost)
    assert law.error(cost) == pytest.approx(np.exp(intercept + slope * np.log(cost)), rel=ROUNDING)
    # polyfit's covariance is not centered: the mean of log(cost), 30, squared over its spread loses three digits.
    assert high / law.error(cost) == pytest.approx(np.exp(t.ppf(0.975, 2) * deviation), rel=1e-6)
    assert low * high == pytest.approx(law.error(cost) ** 2, rel=ROUNDING)


def test_an_exact_law_is_found() -> None:
    law = PowerLaw.fitted([1e12, 1e13, 1e14], [0.8, 0.4, 0.2])
    assert law.error(1e15) == pytest.approx(0.1, rel=ROUNDING)
    assert law.slope == pytest.approx(-np.log10(2), rel=ROUNDING)


@pytest.mark.parametrize(
    ("costs", "errors"), [((1e12, 1e12, 1e13), (0.5, 0.4, 0.3)), ((1.0, 2.0, 3.0), (0.1, 0.1, 0.0))]
)
def test_what_no_law_fits_is_refused(costs: tuple[float, ...], errors: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="three or more, and to errors above 0"):
        PowerLaw.fitted(costs, errors)


def test_runs_are_grouped_by_all_but_their_seed(tmp_path: Path) -> None:
    """The framework distinguishes groups; the seed, and fields that do not change the weights, do not."""
    other = CONFIG.replace(label_smoothing=0.2)
    write_run(tmp_path / "a-0", CONFIG, 0.5)
    write_run(tmp_path / "a-1", CONFIG.replace(seed=1, log_every=7), 0.7)
    write_run(tmp_path / "b", other, 0.4)
    write_run(tmp_path / "c", CONFIG, 0.4, engine="jax")
    write_run(tmp_path / "d", CONFIG, 0.4, examples=("1234",))
    (tmp_path / "notes").mkdir()
    groups = grouped([read_finished_run(run) for run in runs_under(tmp_path)])
    assert [[run.folder.name for run in each.runs] for each in groups] == [["a-0", "a-1"], ["b"], ["c"], ["d"]]
    assert (groups[0].mean, groups[0].average_top1) == (0.6, [0.25, 0.35])
    assert [each.changes_from(groups[0]) for each in groups[1:]] == [
        {"label_smoothing": 0.2},
        {"framework": "jax"},
        {"examples": ("1234",)},
    ]
    assert runs_under(tmp_path / "b") == [tmp_path / "b"]


def test_steps_to_the_accuracy_that_the_first_run_of_the_seed_ends_with(tmp_path: Path) -> None:
    """Seed 0 has to reach 0.5 and seed 1 0.6; the first evaluation that does counts, whatever comes later. A seed that
    the first group has not, and a run without evaluations on the way, cannot be compared."""
    other = CONFIG.replace(label_smoothing=0.2)
    for seed, top1 in enumerate((0.5, 0.6)):
        write_run(tmp_path / f"a-{seed}", CONFIG.replace(seed=seed), top1, earlier=(0.1, top1, 0.2))
    write_run(tmp_path / "b-0", other, 0.7, earlier=(0.4, 0.49, 0.5, 0.3))
    write_run(tmp_path / "b-1", other.replace(seed=1), 0.59, earlier=(0.59,))
    write_run(tmp_path / "b-2", other.replace(seed=2), 0.9, earlier=(0.9,))
    write_run(tmp_path / "c", CONFIG.replace(label_smoothing=0.3), 0.9)
    first, second, third = grouped([read_finished_run(run) for run in runs_under(tmp_path)])
    assert second.steps_to(first) == {0: 3, 1: None}
    assert first.steps_to(first) == {0: 2, 1: 2}
    assert third.steps_to(first) == {}


def test_the_cost_counts_the_images_of_every_segment(tmp_path: Path) -> None:
    config = CONFIG.replace(steps=12, batch_size=16)
    segment = Segment(step=4, examples=64, fields={"batch_size": 8, "steps": 12})
    run = read_finished_run(write_run(tmp_path / "a", config, 0.5, segments=(segment,)))
    assert run.images == 4 * 16 + 8 * 8
    assert run.training_flops == 3 * sum(config.forward_flops.values()) * run.images


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", CONFIG, 0.5)
    (folder / METRICS).write_text('{"step": 5, "top1": 0.5, "engine": "jax"}\n')
    with pytest.raises(InputError, match=f"no accuracy after its last step, {CONFIG.steps}: it is not finished"):
        read_finished_run(folder)
    with pytest.raises(InputError, match="no training run, and no folder of training runs"):
        runs_under(tmp_path / "nothing")


def test_a_run_of_images_with_several_classes_is_compared_by_its_mean_average_precision(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", CONFIG.replace(loss="sigmoid"), 0.5)
    lines = [
        {"step": 1, "loss": 1.0, "engine": "torch"},
        {"step": 4, "mean_average_precision": 0.6, "macro_f1": 0.5},
        {"step": CONFIG.steps, "mean_average_precision": 0.8, "mean_average_precision_ema": 0.9, "exact": 0.4},
    ]
    (folder / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = read_finished_run(folder)
    assert (run.top1, run.average_top1, run.interval, run.multilabel) == (0.8, 0.9, None, True)
    assert run.evaluations == ((4, 0.6), (CONFIG.steps, 0.8))


def test_one_seed_is_not_counted_twice(tmp_path: Path) -> None:
    first = read_finished_run(write_run(tmp_path / "a", CONFIG, 0.5))
    assert [len(group.runs) for group in grouped([first, read_finished_run(tmp_path / "a")])] == [1], "one folder"
    copy = read_finished_run(write_run(tmp_path / "b", CONFIG, 0.5))
    with pytest.raises(InputError, match=r"a and .*b: the same run, of seed 0; name one"):
        grouped([first, copy])
