"""Metrics of classes equal scikit-learn's, from given logits."""

import json
import warnings

import numpy as np
import pytest
from scipy.special import expit, log_softmax, softmax
from sklearn import metrics
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.preprocessing import label_binarize

from vit_core import parity
from vit_train.classification import ClassReport, average_precision, one_hot, report_of_predictions, report_of_sets

EXACT = parity.FLOAT64_BOUND
"""A sum of 400 terms of order one has at most 400 roundings of 2**-53, which is 4e-14."""
LABELS = tuple(f"class {i}" for i in range(7))
N, C = 400, len(LABELS)


def single(seed: int = 0, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Labels, of which class 5 is rare and class 6 missing, and logits that favor them; with ties, of few values."""
    rng = np.random.default_rng(seed)
    classes_N = rng.choice(C, N, p=[0.3, 0.3, 0.15, 0.15, 0.09, 0.01, 0.0])
    logits_NC = rng.normal(size=(N, C)) + 1.5 * one_hot(classes_N, C)
    return classes_N, np.round(logits_NC) if ties else logits_NC


def report(classes_N: np.ndarray, logits_NC: np.ndarray) -> ClassReport:
    return report_of_predictions(LABELS, classes_N, logits_NC.argmax(axis=1), log_softmax(logits_NC, axis=1))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_one_class_each(seed: int, ties: bool) -> None:
    classes_N, logits_NC = single(seed, ties)
    found, predictions_N = report(classes_N, logits_NC), logits_NC.argmax(axis=1)
    every = {"labels": range(C), "zero_division": np.nan}
    np.testing.assert_array_equal(
        found.confusion_matrix, metrics.confusion_matrix(classes_N, predictions_N, labels=range(C))
    )
    for ours, theirs in ((found.recall_C, metrics.recall_score), (found.precision_C, metrics.precision_score)):
        np.testing.assert_allclose(ours, theirs(classes_N, predictions_N, average=None, **every), rtol=EXACT)
    np.testing.assert_allclose(
        found.f1_C, metrics.f1_score(classes_N, predictions_N, average=None, **every), rtol=EXACT
    )
    for ours, mean in ((found.macro_f1, "macro"), (found.micro_f1, "micro")):
        assert ours == pytest.approx(metrics.f1_score(classes_N, predictions_N, average=mean, **every), rel=EXACT)
    assert found.micro_f1 == pytest.approx(metrics.accuracy_score(classes_N, predictions_N), rel=EXACT)
    # By probability, or where rounding would break ties apart, by its logarithm.
    is_class_NC, scores_NC = (
        label_binarize(classes_N, classes=range(C)),
        (log_softmax if ties else softmax)(logits_NC, 1),
    )
    expected_C = [metrics.average_precision_score(is_class_NC[:, c], scores_NC[:, c]) for c in range(6)]
    assert found.average_precision_C is not None
    np.testing.assert_allclose(found.average_precision_C[:6], expected_C, rtol=EXACT)
    assert np.isnan(found.average_precision_C[6]), "no example has it"
    assert found.mean_average_precision == pytest.approx(np.mean(expected_C), rel=EXACT)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_any_number_of_classes(seed: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    has_NC = rng.random((N, C)) < [0.6, 0.4, 0.3, 0.2, 0.1, 0.01, 0.3]
    assert (has_NC.sum(axis=1) == 0).any()
    logits_NC = rng.normal(size=(N, C)) + has_NC - 0.5
    logits_NC = np.round(logits_NC) if ties else logits_NC
    found, predicted_NC = report_of_sets(LABELS, has_NC, logits_NC), expit(logits_NC) > 0.5
    np.testing.assert_array_equal(
        np.stack([found.examples_C - found.correct_C, found.correct_C, found.predictions_C - found.correct_C]).T,
        metrics.multilabel_confusion_matrix(has_NC, predicted_NC)[:, [1, 1, 0], [0, 1, 1]],
    )
    for ours, mean in ((found.f1_C, None), (found.macro_f1, "macro"), (found.micro_f1, "micro")):
        expected = metrics.f1_score(has_NC, predicted_NC, average=mean, zero_division=np.nan)
        np.testing.assert_allclose(ours, expected, rtol=EXACT)
    for ours, mean in ((found.average_precision_C, None), (found.mean_average_precision, "macro")):
        expected = metrics.average_precision_score(has_NC, expit(logits_NC), average=mean)
        np.testing.assert_allclose(ours, expected, rtol=EXACT)
    assert found.confusion_matrix is None
    assert found.best_f1 is not None
    for c in range(C):
        precision_T, recall_T, thresholds_T = metrics.precision_recall_curve(has_NC[:, c], expit(logits_NC[:, c]))
        with np.errstate(invalid="ignore"):
            f1_T = np.nan_to_num(2 * precision_T * recall_T / (precision_T + recall_T))[:-1]
        assert found.best_f1.f1_C[c] == pytest.approx(f1_T.max(), rel=EXACT)
        # Of equally good thresholds the largest.
        best = np.flatnonzero(f1_T > f1_T.max() * (1 - EXACT))[-1]
        assert found.best_f1.thresholds_C[c] == pytest.approx(thresholds_T[best], rel=EXACT)
        at_threshold = expit(logits_NC[:, c]) >= found.best_f1.thresholds_C[c]
        assert metrics.f1_score(has_NC[:, c], at_threshold) == pytest.approx(f1_T.max(), rel=EXACT)
    written = json.loads(json.dumps(found.to_json(), allow_nan=False))["classes"]
    assert [each["best_f1_threshold"] for each in written] == found.best_f1.thresholds_C.tolist()


def test_equal_scores_share_a_threshold() -> None:
    """Their order in the split does not count: all scores equal give the frequency of the class."""
    has_N1 = np.array([[True], [False], [False], [True], [False]])
    for order in ([0, 1, 2, 3, 4], [4, 2, 1, 0, 3]):
        assert average_precision(has_N1[order], np.zeros((5, 1))) == pytest.approx([0.4])


def test_predictions_that_are_no_class_of_the_split() -> None:
    """The model has an eighth output: a last column; scikit-learn's matrix of eight classes without its last row."""
    classes_N, logits_NC = single()
    predictions_N = np.append(logits_NC, np.full((N, 1), 1.0), axis=1).argmax(axis=1)
    assert (predictions_N == C).sum() > 50
    found = report_of_predictions(LABELS, classes_N, predictions_N)
    expected = metrics.confusion_matrix(classes_N, predictions_N, labels=range(C + 1))
    np.testing.assert_array_equal(found.confusion_matrix, expected[:C])
    f1 = {"labels": range(C), "zero_division": np.nan}
    assert found.macro_f1 == pytest.approx(metrics.f1_score(classes_N, predictions_N, average="macro", **f1), rel=EXACT)
    assert found.micro_f1 == pytest.approx(metrics.f1_score(classes_N, predictions_N, average="micro", **f1), rel=EXACT)
    assert found.mean_average_precision is None
    assert found.to_json()["confusion_matrix"]["columns"][-1] == "(no class of the data set)"


def test_json_has_every_number_and_no_nan() -> None:
    found = report(*single())
    read = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert read["mean_average_precision"] == found.mean_average_precision
    assert [each["label"] for each in read["classes"]] == list(LABELS)
    assert read["classes"][6]["recall"] is None
    assert read["classes"][6]["average_precision"] is None
    assert read["classes"][0]["f1"] == found.f1_C[0]
    np.testing.assert_array_equal(read["confusion_matrix"]["counts"], found.confusion_matrix)


def test_a_split_in_which_nothing_occurs() -> None:
    nothing = report_of_sets(LABELS, np.zeros((4, C), bool), np.full((4, C), -1.0))
    assert np.isnan([nothing.macro_f1, nothing.micro_f1, nothing.mean_average_precision]).all()
    assert nothing.to_json()["macro_f1"] is None
    assert nothing.to_json()["classes"][0]["best_f1"] is None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        reference = metrics.f1_score(np.zeros((4, C)), np.zeros((4, C)), average="micro", zero_division=np.nan)
    assert np.isnan(reference)
