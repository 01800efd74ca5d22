"""Probes against their definitions: votes of neighbours in NumPy, scikit-learn's regression, Wilson's formula."""

from collections import Counter

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from vit_core import InputError
from vit_train.classification import wilson_interval
from vit_train.probing import Labelled, few_shot, held_out, probe


def digits(start: int, stop: int) -> Labelled:
    found = load_digits()
    return Labelled.of(found.data[start:stop], [f"digit {i}" for i in found.target[start:stop]], f"{start}:{stop}")


def test_probes_are_scikit_learns() -> None:
    train, test = digits(0, 500), digits(500, 900)
    neighbours, linear = probe(train, test, neighbours=5, c=0.1)
    unit_train, unit_test = (x.values_ND / np.linalg.norm(x.values_ND, axis=1, keepdims=True) for x in (train, test))
    nearest = np.argsort(-unit_test @ unit_train.T, axis=1)[:, :5]
    votes = [Counter(train.labels_N[row].tolist()) for row in nearest]
    # Where two classes have equally many of the five, the first in the order of text is predicted.
    predictions = [min(count, key=lambda name: (-count[name], name)) for count in votes]
    assert neighbours.correct == sum(a == b for a, b in zip(predictions, test.labels_N, strict=True))
    mean, std = train.values_ND.mean(0), train.values_ND.std(0)
    std[std == 0] = 1
    fitted = LogisticRegression(C=0.1, max_iter=1000).fit((train.values_ND - mean) / std, train.labels_N)
    assert linear.correct == round(400 * fitted.score((test.values_ND - mean) / std, test.labels_N))
    assert (linear.total, linear.note) == (400, "")
    assert linear.interval == wilson_interval(linear.correct, 400)
    assert 0.8 < neighbours.accuracy < 1


@pytest.mark.parametrize("shots", [1, 3, 10, 40, 200])
def test_the_few_shot_probe_is_big_visions(shots: int) -> None:
    """The closed form of its source by the eigenvalues of X^T X or X X^T, whichever is smaller, with its constants; for
    200 shots of classes of very different sizes, so that the bias matters."""
    train, test = digits(0, 500), digits(500, 900)
    if shots == 200:
        kept = np.array([int(name[-1]) > 4 or i % 12 == 0 for i, name in enumerate(train.labels_N)])
        train = Labelled(train.values_ND[kept], train.labels_N[kept], train.title)
    found = few_shot(train, test, shots, seed=3)
    y_N = np.array([int(name.removeprefix("digit ")) for name in train.labels_N])
    rng = np.random.default_rng(3)
    drawn = np.concatenate([rng.permutation(np.where(y_N == i)[0])[:shots] for i in range(10)])
    x, y = train.values_ND[drawn], 2.0 * np.eye(10)[y_N[drawn]] - 1.0
    mean, std = x.mean(axis=0, keepdims=True), x.std(axis=0, keepdims=True) + 1e-5
    x, x_test = (np.pad((z - mean) / std, ((0, 0), (0, 1)), constant_values=100.0) for z in (x, test.values_ND))
    if len(x) >= x.shape[1]:
        values, q = np.linalg.eigh(x.T @ x)
        left, right = q, q.T @ (x.T @ y)
    else:
        values, q = np.linalg.eigh(x @ x.T)
        left, right = x.T @ q, q.T @ y
    weights = left / (values + 2.0**10) @ right
    predictions = (x_test @ weights).argmax(axis=1)
    assert found.correct == sum(f"digit {a}" == name for a, name in zip(predictions, test.labels_N, strict=True))
    assert (found.title, found.total, bool(found.note)) == (f"{shots}-shot ridge", 400, shots == 200)
    assert found.accuracy > (0.3 if shots in (1, 200) else 0.6)


def test_a_class_with_fewer_images_is_said() -> None:
    *_, found = probe(digits(0, 60), digits(60, 90), neighbours=1, shots=[100])
    assert found.note.startswith("100-shot: some class has ")


def test_interval_is_wilsons() -> None:
    """Wilson (1927), with z of 95 %; both round a few times."""
    p, n, z = 0.75, 400, 1.959963984540054
    center, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    expected = [(center - half) / (1 + z * z / n), (center + half) / (1 + z * z / n)]
    assert wilson_interval(300, 400) == pytest.approx(expected, rel=1e-12)


def test_a_regression_that_did_not_converge_is_said() -> None:
    *_, linear = probe(digits(0, 200), digits(200, 300), neighbours=1, steps=2)
    assert linear.note == "linear: stopped after 2 steps, before it converged; raise --max-steps or lower --c"


def test_a_share_of_each_class_is_held_out() -> None:
    data = digits(0, 500)
    train, test = held_out(data, 0.2, seed=1)
    assert (len(train), len(test)) == (400, 100)
    assert (train.title, test.title) == ("80% of 0:500", "20% of 0:500")
    for name, count in Counter(data.labels_N.tolist()).items():
        assert abs((test.labels_N == name).sum() - count * 0.2) <= 1
    again = held_out(data, 0.2, seed=1)[1]
    np.testing.assert_array_equal(test.values_ND, again.values_ND)
    assert not np.array_equal(test.labels_N, held_out(data, 0.2, seed=2)[1].labels_N)
    with pytest.raises(InputError, match=r"^few: classes with one image: b; expected two or more, to hold some out"):
        held_out(Labelled.of(np.zeros((3, 2)), ["a", "a", "b"], "few"), 0.2, 0)
    with pytest.raises(InputError, match=r"cannot hold out 0\.2 of each class"):
        held_out(Labelled.of(np.zeros((4, 2)), ["a", "a", "b", "b"], "few"), 0.2, 0)


def test_bad_features_are_one_line() -> None:
    train = digits(0, 30)
    for values_ND, labels, why in (
        (train.values_ND, None, "bad: not all of its images have labels; write the features of a folder"),
        (train.values_ND[:, None], train.labels_N.tolist(), "bad: has features of each token; write them with --pool"),
        (np.full((2, 64), np.nan), ["a", "b"], "bad: some features are not finite"),
    ):
        with pytest.raises(InputError, match=why):
            Labelled.of(values_ND, labels, "bad")
    for test, options, why in (
        (
            Labelled.of(np.zeros((1, 3)), ["digit 0"], "other"),
            {},
            "other: 3 features, 0:30 has 64; expected those",
        ),
        (Labelled.of(np.zeros((1, 64)), ["cat"], "other"), {}, "other: no class of that name in 0:30: cat"),
        (digits(30, 40), {"neighbours": 31}, "0:30: 30 images for 31 nearest neighbours; lower --neighbours"),
    ):
        with pytest.raises(InputError, match=why):
            list(probe(train, test, **options))
    with pytest.raises(InputError, match="0:1: has one class only"):
        list(probe(digits(0, 1), digits(0, 1), neighbours=1))
