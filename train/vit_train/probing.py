"""How well classes are told apart by features: scikit-learn's nearest neighbours and logistic regression on them."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vit_core.errors import InputError, abbreviate
from vit_train.classification import wilson_interval


@dataclass(frozen=True)
class Labelled:
    """Features of images whose classes are known."""

    values_ND: np.ndarray
    labels_N: np.ndarray
    """Names of the classes."""
    title: str
    """Where they come from, for people."""

    @classmethod
    def of(cls, values_N: np.ndarray, labels: Sequence[str] | None, title: str) -> "Labelled":
        """InputError for features without labels, of several tokens, or that are not finite."""
        if labels is None:
            raise InputError(
                f"{title}: its images have no labels; write the features of a folder that has a folder for each class"
            )
        if values_N.ndim != 2:
            raise InputError(f"{title}: has features of each token; write them with --pool cls or --pool gap")
        if not np.isfinite(values_N).all():
            raise InputError(f"{title}: some features are not finite")
        return cls(np.asarray(values_N), np.array(labels), title)

    def __len__(self) -> int:
        return len(self.labels_N)


@dataclass(frozen=True)
class Probed:
    """What a classifier on the features answered to the test images."""

    title: str
    correct: int
    total: int
    note: str = ""
    """What people should know of how it was fitted."""

    @property
    def accuracy(self) -> float:
        """Fraction of the test images whose class was answered."""
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % confidence interval of the accuracy."""
        return wilson_interval(self.correct, self.total)


def held_out(data: Labelled, fraction: float, seed: int) -> tuple[Labelled, Labelled]:
    """Two parts of the features: to learn from, and `fraction` of each class to test with (scikit-learn's
    train_test_split, stratified). InputError where a class has too few images."""
    from sklearn.model_selection import train_test_split

    try:
        learn_N, test_N = train_test_split(
            np.arange(len(data)), test_size=fraction, random_state=seed, stratify=data.labels_N
        )
    except ValueError as error:
        raise InputError(f"{data.title}: cannot hold out {fraction:g} of each class: {error}") from None
    shares = ((learn_N, f"{1 - fraction:.0%} of {data.title}"), (test_N, f"{fraction:.0%} of {data.title}"))
    learn, test = (Labelled(data.values_ND[rows], data.labels_N[rows], title) for rows, title in shares)
    return learn, test


def probe(
    train: Labelled, test: Labelled, *, neighbours: int = 20, c: float = 1.0, steps: int = 1000
) -> Iterator[Probed]:
    """Measures both probes, one after the other: each is fitted to `train`, and answers to `test`.

    neighbours: the k nearest by cosine, which vote (KNeighborsClassifier). c, steps: LogisticRegression's C, the
    inverse of its regularization, and its largest number of steps; features are standardized before it. InputError
    where the test images have other classes or features, and where there are fewer images than neighbours or one class
    only.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    _check(train, test, neighbours)
    yield _probed(f"{neighbours} nearest neighbours", KNeighborsClassifier(neighbours, metric="cosine"), train, test)
    linear = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=steps))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        found = _probed("linear", linear, train, test)
    stopped = any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    note = f"linear: stopped after {steps} steps, before it converged; raise --max-steps or lower --c"
    yield Probed(found.title, found.correct, found.total, note if stopped else "")


def _probed(title: str, classifier: Any, train: Labelled, test: Labelled) -> Probed:
    answers_N = classifier.fit(train.values_ND, train.labels_N).predict(test.values_ND)
    return Probed(title, int((answers_N == test.labels_N).sum()), len(test))


def _check(train: Labelled, test: Labelled, neighbours: int) -> None:
    if not len(test) or not len(train):
        raise InputError(f"{(train if len(test) else test).title}: no images")
    if train.values_ND.shape[1] != test.values_ND.shape[1]:
        raise InputError(
            f"{test.title}: {test.values_ND.shape[1]} features, {train.title} has {train.values_ND.shape[1]}; expected "
            "those of one model and layer"
        )
    classes = set(train.labels_N.tolist())
    if unknown := sorted(set(test.labels_N.tolist()) - classes):
        raise InputError(f"{test.title}: no class of that name in {train.title}: {abbreviate(unknown)}")
    if len(classes) < 2:
        raise InputError(f"{train.title}: has one class only; expected two or more")
    if neighbours > len(train):
        raise InputError(f"{train.title}: {len(train)} images for {neighbours} nearest neighbours; lower --neighbours")
