"""Probes of features: accuracy of scikit-learn's nearest neighbours, logistic regression, and ridge regression on a few
images of each class."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_core.errors import InputError, abbreviate
from vit_core.labels import composed
from vit_train.classification import wilson_interval
from vit_train.clustered import effective_number

if TYPE_CHECKING:
    from vit_train.data.sources import Groups

RIDGE = 2.0**10
"""big_vision's regularization of its few-shot probe."""
BIAS = 100.0
"""big_vision's constant feature, whose weight is the bias; it is so large that the bias is hardly regularized."""


@dataclass(frozen=True)
class Labelled:
    """Features of images whose classes are known."""

    values_ND: np.ndarray
    labels_N: np.ndarray
    """Names of the classes."""
    title: str
    """The source of the features, as text."""
    groups: "Groups | None" = None
    """The group of each image, if the data name groups."""

    @classmethod
    def of(
        cls, values_N: np.ndarray, labels: Sequence[str] | None, title: str, groups: "Groups | None" = None
    ) -> "Labelled":
        """Features of N images with their labels. Raises InputError for features without labels, of several tokens, or
        that are not finite."""
        if labels is None:
            raise InputError(
                f"{title}: not all of its images have labels; write the features of a folder that has a folder for "
                "each class, or of a table with a column of labels"
            )
        if values_N.ndim != 2:
            raise InputError(f"{title}: has features of each token; write them with --pool cls or --pool gap")
        if not np.isfinite(values_N).all():
            raise InputError(f"{title}: some features are not finite")
        return cls(np.asarray(values_N), np.array([composed(label) for label in labels]), title, groups)

    def __len__(self) -> int:
        return len(self.labels_N)


@dataclass(frozen=True)
class Probed:
    """The accuracy of a classifier on the features of the test images."""

    title: str
    correct: int
    total: int
    note: str = ""
    """A note about the fit, or empty."""
    effective: float | None = None
    """The number of independent images that the tested ones are worth (`effective_number`), if they have groups."""

    @property
    def accuracy(self) -> float:
        """Fraction of the test images whose class was predicted."""
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % confidence interval of the accuracy, of the effective number of images if they have groups."""
        return wilson_interval(self.correct, self.total, self.effective)

    @classmethod
    def of(cls, title: str, predictions_N: np.ndarray, test: Labelled, note: str = "") -> "Probed":
        """The accuracy of the predictions for the test images."""
        right_N = predictions_N == test.labels_N
        effective = None if test.groups is None else effective_number(right_N, test.groups.group_N)
        return cls(title, int(right_N.sum()), len(test), note, effective)


def held_out(data: Labelled, fraction: float, seed: int) -> tuple[Labelled, Labelled]:
    """Two parts of the features: to learn from, and `fraction` of each class to test with (scikit-learn's
    train_test_split, stratified). Raises InputError if a class has too few images."""
    from sklearn.model_selection import train_test_split

    classes, counts = np.unique(data.labels_N, return_counts=True)
    if single := classes[counts < 2].tolist():
        raise InputError(
            f"{data.title}: classes with one image: {abbreviate(map(str, single))}; expected two or more, to hold some "
            "out; remove these images, or give a second file or split to test on"
        )
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
    train: Labelled,
    test: Labelled,
    *,
    neighbours: int = 20,
    c: float = 1.0,
    steps: int = 1000,
    shots: Sequence[int] = (),
    seed: int = 0,
) -> Iterator[Probed]:
    """Measures the probes, one after the other: each is fitted to `train`, and predicts the classes of `test`.

    neighbours: the k nearest by cosine, which vote (KNeighborsClassifier). c, steps: LogisticRegression's C, the
    inverse of its regularization, and its largest number of steps; features are standardized before it. shots, seed:
    see `few_shot`, once for each number of shots. Raises InputError if the test images have other classes or features,
    and where there are fewer images than neighbours or one class only.
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
    yield replace(found, note=note if stopped else "")
    for count in shots:
        yield few_shot(train, test, count, seed)


def few_shot(train: Labelled, test: Labelled, shots: int, seed: int) -> Probed:
    """big_vision's few-shot probe (evaluators/fewshot_lsr.py): ridge regression on `shots` images of each class, drawn
    by the seed, toward 1 for the class and -1 for the others; the class with the largest value is predicted.

    Features are standardized by the drawn images, and a constant feature of 100 represents the bias. Of a class with
    fewer images, all are used.
    """
    from sklearn.linear_model import Ridge

    classes, labels_N = np.unique(train.labels_N, return_inverse=True)
    rng = np.random.default_rng(seed)
    drawn = np.concatenate([rng.permutation(np.flatnonzero(labels_N == i))[:shots] for i in range(len(classes))])
    values_MD = train.values_ND[drawn].astype(np.float64)
    mean_D, std_D = values_MD.mean(axis=0), values_MD.std(axis=0) + 1e-5

    def prepared(values_ND: np.ndarray) -> np.ndarray:
        return np.pad((values_ND - mean_D) / std_D, ((0, 0), (0, 1)), constant_values=BIAS)

    wanted_MC = 2.0 * (labels_N[drawn, None] == np.arange(len(classes))) - 1
    ridge = Ridge(alpha=RIDGE, fit_intercept=False, solver="cholesky").fit(prepared(values_MD), wanted_MC)
    predictions_N = classes[ridge.predict(prepared(test.values_ND)).argmax(axis=1)]
    smallest = int(np.bincount(labels_N[drawn]).min())
    note = f"{shots}-shot: some class has {smallest} images only" if smallest < shots else ""
    return Probed.of(f"{shots}-shot ridge", predictions_N, test, note)


def _probed(title: str, classifier: Any, train: Labelled, test: Labelled) -> Probed:
    return Probed.of(title, classifier.fit(train.values_ND, train.labels_N).predict(test.values_ND), test)


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
