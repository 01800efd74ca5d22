"""Intervals for images of groups, compared with scipy's for the groups' means, by hand, and with simulated data."""

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_1samp

from vit_train.classification import report_of_predictions, wilson_interval
from vit_train.clustered import effective_number, mean_interval, variance_of_mean
from vit_train.data.sources import Groups
from vit_train.evaluation import Accuracy
from vit_train.paired import PairedDifference

RNG = np.random.default_rng(0)


def test_wilsons_interval_is_scipys_bit_for_bit() -> None:
    for total in (1, 2, 7, 40, 99, 10000):
        for correct in {*range(min(total, 99) + 1), total - 1, total}:
            expected = binomtest(correct, total).proportion_ci(0.95, method="wilson")
            assert wilson_interval(correct, total) == (expected.low, expected.high)
    assert wilson_interval(30, 40, 20.0) == wilson_interval(15, 20)


def test_groups_of_one_are_independent_images() -> None:
    values_N = RNG.integers(-1, 2, 50)
    expected = ttest_1samp(values_N, 0).confidence_interval(0.95)
    assert mean_interval(values_N, np.arange(50)) == pytest.approx((expected.low, expected.high), rel=1e-12)


def test_groups_of_equal_size_are_their_means() -> None:
    values_GM, order = RNG.integers(-1, 2, (9, 4)), RNG.permutation(36)
    expected = ttest_1samp(values_GM.mean(axis=1), 0).confidence_interval(0.95)
    found = mean_interval(values_GM.reshape(-1)[order], np.repeat(np.arange(9), 4)[order])
    assert found == pytest.approx((expected.low, expected.high), rel=1e-12)


def test_unequal_groups_by_hand() -> None:
    """Right: 3 of 4, 0 of 1, 1 of 1; the mean is 2/3. Residuals of the groups: 1/3, -2/3, 1/3; squares: 6/9."""
    right_N, group_N = np.array([1, 1, 1, 0, 0, 1], bool), np.array([7, 7, 7, 7, 2, 5])
    assert variance_of_mean(right_N.astype(int), group_N) == pytest.approx(6 / 9 * 3 / 2 / 36, rel=1e-12)
    # A variance below the binomial one, 1/27, does not count. 4.303: t with 2 degrees of freedom, and 12.706 with 1.
    assert effective_number(right_N, group_N) == pytest.approx(6 * (1.959964 / 4.302653) ** 2, rel=1e-6)
    whole_N = np.array([1, 1, 1, 1, 0, 0], bool)
    # Right: 4 of 4, 0 of 2. Residuals: 4/3, -4/3; variance 32/9 * 2 / 36 = 16/81; deff = 16/81 * 27 = 16/3.
    found = effective_number(whole_N, np.array([0, 0, 0, 0, 1, 1]))
    assert found == pytest.approx(6 * 3 / 16 * (1.959964 / 12.7062) ** 2, rel=1e-5)


def test_without_variance_the_groups_are_counted() -> None:
    group_N = np.repeat(np.arange(5), 3)
    for right_N in (np.ones(15, bool), np.zeros(15, bool)):
        assert effective_number(right_N, group_N) == 5
    equal_N = np.tile([True, False, True], 200)  # the same fraction in every group, or nearly the same, is no extreme
    nearly_N = np.where(np.arange(600) == 1, True, equal_N)
    found = [effective_number(right_N, np.repeat(np.arange(5), 120)) for right_N in (equal_N, nearly_N)]
    assert found[0] == pytest.approx(found[1], rel=1e-12)
    assert found[0] == pytest.approx(600 * (1.959964 / 2.776445) ** 2, rel=1e-6)
    assert effective_number(np.array([True, False]), np.zeros(2, int)) == 1
    assert mean_interval(np.tile([1, 0, -1], 5), group_N) is None


def test_intervals_contain_the_truth_as_often_as_they_say() -> None:
    """Patients whose probability of correct predictions differs: the interval for independent images contains it
    seldom."""
    rng, hits = np.random.default_rng(0), np.zeros(3)
    for _ in range(400):
        group_N = np.repeat(np.arange(40), rng.integers(2, 6, 40))
        right_N = rng.random(len(group_N)) < rng.beta(1.4, 0.6, 40)[group_N]
        correct, total = int(right_N.sum()), len(right_N)
        mean = mean_interval(right_N.astype(int), group_N)
        assert mean is not None
        for i, (low, high) in enumerate(
            (wilson_interval(correct, total), wilson_interval(correct, total, effective_number(right_N, group_N)), mean)
        ):
            hits[i] += low <= 0.7 <= high
    assert hits[0] < 0.88 * 400
    assert (abs(hits[1:] / 400 - 0.95) < 0.033).all(), "three standard errors of 400 simulations"


def test_accuracies_and_their_difference_know_the_groups() -> None:
    """The evaluations lack different images; the groups follow those that both have."""
    groups, classes_N = Groups.of("patient", list("aaabbbccddd")), np.arange(11) % 2
    predictions = [np.array([0, 1, 0, 1, 1, 0, 0, 0, 0, 1, 0]), np.array([0, 1, 0, 1, 0, 0, 1, 0, 0, 1, 0])]
    found = []
    for predictions_N, ids_N in zip(predictions, (np.arange(1, 11), np.arange(10)), strict=True):
        report = report_of_predictions(("x", "y"), classes_N[ids_N], predictions_N[ids_N])
        right = int((classes_N == predictions_N)[ids_N].sum())
        found.append(Accuracy(right, None, 10, 0.0, report, None, ids_N, groups.take(ids_N)))
    right_N, other_N = (classes_N == each for each in predictions)
    assert found[0].effective == effective_number(right_N[1:], groups.group_N[1:])
    assert found[0].interval == wilson_interval(int(right_N[1:].sum()), 10, found[0].effective)
    difference = PairedDifference.of(*found)
    assert str(difference.groups) == "9 images of 4 groups (patient)"
    assert difference.interval == mean_interval((right_N.astype(int) - other_N)[1:10], groups.group_N[1:10])
