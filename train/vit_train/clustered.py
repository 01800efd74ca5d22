"""Statistics of images that depend on each other, because several are of one group, such as a patient.

Images of one patient are often all right or all wrong. Then N images contain less information than N independent ones,
and an interval that takes them as independent is too narrow.
"""

import numpy as np


def variance_of_mean(values_N: np.ndarray, group_N: np.ndarray) -> float:
    """The cluster-robust variance of the mean of whole numbers; 0 where it cannot be estimated, from a single group.

    values_N: int [N], group_N: int [N], the group of each value. With m = sum(values) / N and G groups:

        G / (G - 1) * (sum over the groups of (sum over the group's values of (value - m)) ** 2) / N ** 2

    The mean is the intercept of a regression on nothing else, whose sandwich estimator (Liang & Zeger, Biometrika 1986,
    73:13-22, with independence as the working correlation) sums the residuals of each group before it squares them, so
    that all products within a group are in the sum, and none between groups. The same follows from the mean as the
    ratio of the groups' totals to their sizes, to first order (Kish, Survey Sampling, 1965). G / (G - 1) removes the
    bias for groups of equal size. For groups of one value it is the usual s ** 2 / N; for groups of equal size, the
    variance of the groups' means divided by G.
    """
    _, group_N = np.unique(group_N, return_inverse=True)
    sizes_G = np.bincount(group_N)
    sums_G = np.bincount(group_N, weights=values_N).astype(np.int64)
    count, groups = len(values_N), len(sizes_G)
    if groups == 1:
        return 0.0
    # Residuals times N are whole numbers, so that a variance of 0 is exactly that.
    residuals_G = (count * sums_G - sums_G.sum() * sizes_G) / count**2
    return float(np.square(residuals_G).sum() * groups / (groups - 1))


def effective_number(right_N: np.ndarray, group_N: np.ndarray) -> float:
    """The number of independent images that would give a fraction of correct predictions with the same variance.

    right_N: bool [N]; group_N: int [N]. It is N / deff * (z / t) ** 2. deff is Kish's design effect (Survey Sampling,
    1965): the cluster-robust variance of the fraction p, divided by p (1 - p) / N, its variance for independent images;
    and at least 1, so that a variance that happens to be small never makes an interval narrower. z and t are the 97.5 %
    quantiles of the normal distribution and of Student's t with G - 1 degrees of freedom for G groups: with few groups
    the variance itself is uncertain (Korn & Graubard, Survey Methodology 1998, 24:193-201). If all images are right or
    all wrong, or if there is a single group, deff cannot be estimated: then the result is the number of groups, as if
    all images of a group were one.
    """
    from scipy.stats import norm  # takes a second to import
    from scipy.stats import t as student

    right_N = right_N.astype(np.int64)
    variance, fraction, groups = variance_of_mean(right_N, group_N), right_N.mean(), len(np.unique(group_N))
    if groups == 1 or fraction in (0, 1):
        return float(groups)
    effect = max(1.0, variance * len(right_N) / (fraction * (1 - fraction)))
    return float(len(right_N) / effect * (norm.ppf(0.975) / student.ppf(0.975, groups - 1)) ** 2)


def mean_interval(values_N: np.ndarray, group_N: np.ndarray) -> tuple[float, float] | None:
    """The 95 % interval of the mean of whole numbers: Student's t with G - 1 degrees of freedom for G groups, and the
    cluster-robust variance. None if the variance is 0 or cannot be estimated."""
    from scipy.stats import t as student  # takes a second to import

    variance, mean = variance_of_mean(values_N, group_N), values_N.mean()
    if not variance:
        return None
    half = student.ppf(0.975, len(np.unique(group_N)) - 1) * np.sqrt(variance)
    return float(mean - half), float(mean + half)
