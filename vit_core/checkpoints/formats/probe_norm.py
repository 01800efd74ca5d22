"""Merges the batch norm before a linear probe, as in MAE's main_linprobe.py, into the Linear.

In evaluation BatchNorm1d(affine=False) is (x - mean) / sqrt(var + epsilon) with the running mean and variance.
"""

import re
from collections.abc import Mapping

import numpy as np

from vit_core.arrays import LazyArray
from vit_core.checkpoints.formats.expressing import at_least_float32

EPSILON = 1e-6
"""The epsilon in MAE's code; arrays do not show it."""
_STATISTICS = ("running_mean", "running_var")
_PLACE = re.compile(r"(.+)\.([0-9]{1,4})")


def norm_before(members: Mapping[str, LazyArray], linear: str) -> str | None:
    """The name of a batch norm without weights that is directly before a Linear in the same Sequential; None if there
    is none."""
    place = _PLACE.fullmatch(linear)
    norms = {name.removesuffix(".running_mean") for name in members if name.endswith(".running_mean")}
    if not place or len(norms) != 1:
        return None
    (norm,) = norms
    there = _PLACE.fullmatch(norm)
    if not there or there[1] != place[1] or int(there[2]) + 1 != int(place[2]):
        return None
    inputs = members[f"{linear}.weight"].shape[1:]
    fits = all(members[f"{norm}.{one}"].shape == inputs for one in _STATISTICS if f"{norm}.{one}" in members)
    return norm if fits and f"{norm}.running_var" in members and f"{norm}.weight" not in members else None


def names_of(norm: str) -> set[str]:
    """The names of a batch norm's arrays."""
    return {f"{norm}.{leaf}" for leaf in (*_STATISTICS, "num_batches_tracked")}


def joined(members: Mapping[str, LazyArray], norm: str, linear: str) -> dict[str, LazyArray]:
    """`weight` and `bias` of one Linear that computes the batch norm and then the given Linear."""
    mean, variance = (members[f"{norm}.{one}"] for one in _STATISTICS)
    weight, bias = members[f"{linear}.weight"], members.get(f"{linear}.bias")
    dtype = at_least_float32(weight.dtype)

    def scaled_CD() -> np.ndarray:
        return weight.read().astype("float64") / np.sqrt(variance.read().astype("float64") + EPSILON)

    def shifted_C() -> np.ndarray:
        before = 0.0 if bias is None else bias.read().astype("float64")
        return (before - scaled_CD() @ mean.read().astype("float64")).astype(dtype)

    return {
        "weight": LazyArray(weight.shape, dtype, lambda: scaled_CD().astype(dtype)),
        "bias": LazyArray(weight.shape[:1], dtype, shifted_C),
    }
