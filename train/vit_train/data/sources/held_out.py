"""Draws the examples that are held out for evaluation, if the data have no split for it."""

import os
import zlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from vit_core.errors import InputError, one_line
from vit_train.config import Data
from vit_train.data.sources.groups import Groups
from vit_train.data.sources.split import Listed, Which
from vit_train.data.sources.split_names import KNOWN

L = TypeVar("L", bound=Listed)


def part(examples: L, labels: Sequence[str], data: Data, which: Which, where: str) -> L:
    """The examples that are held out or, if `which` is "train", the others; see `rows_of_part`, without groups."""
    return examples.take(rows_of_part(examples, labels, data, which, where))


def rows_of_part(
    examples: Listed, labels: Sequence[str], data: Data, which: Which, where: str, groups: Groups | None = None
) -> np.ndarray:
    """Indices, ascending, of the examples that are held out or, if `which` is "train", of the others. examples: sorted
    by label.

    Without groups: a fraction of each class (at least one of two or more; all only for a fraction of 1), or of all
    examples together if they may have several classes. With groups: whole groups are held out, of all classes together,
    so that the fraction of each class is only about the one that is asked for.
    Raises InputError if nothing is left.
    """
    if groups is not None:
        held_N = _by_group(groups, data, where)
    elif examples.labels_N.dtype == object:
        held_N = _by_class(np.zeros(len(examples), np.int32), ("",), data)
    else:
        held_N = _by_class(examples.labels_N, labels, data)
    rows_M = np.flatnonzero(held_N == (which != "train"))
    if not len(rows_M):
        purpose = "train" if which == "train" else "evaluate"
        raise InputError(
            f"{where}: data.held_out {data.held_out:g} leaves nothing to {purpose} on; set another fraction, or give "
            f"splits ({', '.join(KNOWN)})"
        )
    return rows_M


def share_title(title: str, data: Data, which: Which) -> str:
    """A title with the part that `part` returns: "photos (held out)"."""
    if which == "train":
        return title
    return f"{title} (all images)" if data.held_out == 1 else f"{title} (held out)"


def _by_class(labels_N: np.ndarray, labels: Sequence[str], data: Data) -> np.ndarray:
    """bool [N]: whether an example is held out, the same fraction of each class."""
    held_N = np.zeros(len(labels_N), bool)
    bounds = np.searchsorted(labels_N, np.arange(len(labels) + 1))
    for label, start, stop in zip(labels, bounds, bounds[1:], strict=False):
        count = round(data.held_out * (stop - start))
        if 0 < data.held_out < 1:
            count = max(min(max(count, 1), stop - start - 1), 0)
        # Seeded by the class's name, not its number, so that adding another class does not change the draw in this one.
        rng = np.random.default_rng([data.split_seed, zlib.crc32(os.fsencode(label))])
        held_N[start + rng.permutation(stop - start)[:count]] = True
    return held_N


def _by_group(groups: Groups, data: Data, where: str) -> np.ndarray:
    """bool [N]: whether an example's group is held out. Groups are taken in a random order until the number of examples
    is nearest to the fraction (at least one group and not all, unless the fraction is 0 or 1). Raises InputError for a
    fraction of a single group."""
    names, sizes = groups.names, np.bincount(groups.group_N, minlength=len(groups.names))
    if len(names) == 1 and 0 < data.held_out < 1:
        raise InputError(
            f"{where}: data.group '{data.group}' is '{one_line(names[0])}' for every image, and whole groups are "
            "held out; leave it out, or name a column of several values"
        )
    # The draw of a group depends only on its name, so that adding another group does not change the order.
    draws = [np.random.default_rng([data.split_seed, zlib.crc32(name.encode())]).random() for name in names]
    order = np.argsort(draws, kind="stable")
    totals = np.concatenate(([0], np.cumsum(sizes[order])))
    count = int(np.argmin(np.abs(totals - data.held_out * len(groups))))
    if 0 < data.held_out < 1:
        count = max(min(max(count, 1), len(names) - 1), 0)
    return np.isin(groups.group_N, order[:count])
