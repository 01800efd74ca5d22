"""Rules that map a foreign checkpoint's arrays to the parameter table: one list per format, applied in both directions.

Most rules are a new name. A rule may also split one parameter into several arrays (qkv into query, key and value), join
several parameters into one array along the first axis, and give the axes of the foreign array in another order or
grouping, as a pattern of the parameter table's axis names ("width heads head_dim").
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from math import prod

import numpy as np

from vit_core.arrays import LazyArray, LazyArrays, contiguous
from vit_core.config import ViTConfig
from vit_core.errors import InputError, abbreviate
from vit_core.parameters import Parameter, groups_of, parameters


@dataclass(frozen=True)
class Rule:
    """States that the parameters `ours`, concatenated along their first axis, equal the arrays `theirs`, concatenated
    along theirs."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    layout: str | None = None
    """Axes of each foreign array ("1": an axis of length 1), without the axis along which our parameter is split. None:
    the same axes as ours."""


def rule(ours: str | tuple[str, ...], theirs: str | tuple[str, ...], layout: str | None = None) -> Rule:
    """A Rule; a single name may be given as text."""
    ours, theirs = ((names,) if isinstance(names, str) else names for names in (ours, theirs))
    return Rule(ours, theirs, layout)


def renamed(name: str, names: Mapping[str, str], layers: str) -> str:
    """The foreign name of a parameter. names: ours -> theirs, either whole names or names without their last part.
    layers: the foreign prefix before a block's number."""
    prefix = ""
    if name.startswith("blocks."):
        _, layer, name = name.split(".", 2)
        prefix = f"{layers}{layer}."
    if name in names:
        return prefix + names[name]
    stem, _, leaf = name.rpartition(".")
    return f"{prefix}{names[stem]}.{leaf}"


def read_by_rules(
    rules: Iterable[Rule],
    config: ViTConfig,
    theirs: LazyArrays,
    where: object,
    rows: Mapping[str, Parameter] | None = None,
) -> LazyArrays:
    """The parameters of a config (or the parameters `rows`) from foreign arrays. Values are not read yet.

    where: the file, for messages. Raises InputError that names missing arrays, wrong shapes and mixed types.
    """
    rows, found, wrong = rows or parameters(config), dict[str, LazyArray](), list[str]()
    for one in rules:
        bound = _Bound.of(one, rows)
        for name, shape in zip(one.theirs, bound.shapes, strict=True):
            if name not in theirs:
                wrong.append(f"missing {name} {list(shape)}")
            elif theirs.entries[name].shape != shape:
                wrong.append(f"{name} expected {list(shape)} found {list(theirs.entries[name].shape)}")
        if not wrong:
            sources = [theirs.entries[name] for name in one.theirs]
            if len(types := {source.dtype for source in sources}) > 1:
                wrong.append(f"{', '.join(one.theirs)} are {' and '.join(sorted(types))}, expected one type")
            for i, row in enumerate(bound.rows):
                found[row.name] = LazyArray(row.shape, sources[0].dtype, partial(bound.parameter, sources, i))
    if wrong:
        no_norm = all(one.startswith(("missing norm.weight ", "missing norm.bias ")) for one in wrong)
        step = "; use --set final_norm=none for a model without a last norm" if no_norm else ""
        raise InputError(f"{where}: its arrays do not form one model: {abbreviate(wrong, '; ')}{step}")
    return LazyArrays(found).select(rows)


def write_by_rules(
    rules: Iterable[Rule], config: ViTConfig, ours: LazyArrays, rows: Mapping[str, Parameter] | None = None
) -> LazyArrays:
    """Foreign arrays from the parameters of a config (or the parameters `rows`). Raises InputError for parameters of
    different types that form one array, and AssertionError for a parameter that is in no rule."""
    rows, made, left = rows or parameters(config), dict[str, LazyArray](), set(ours)
    for one in rules:
        bound = _Bound.of(one, rows)
        sources = [ours.entries[name] for name in one.ours]
        if len({source.dtype for source in sources}) > 1:
            raise InputError(
                f"{', '.join(one.ours)}: expected one type, because they form one array; convert with --dtype"
            )
        for j, (name, shape) in enumerate(zip(one.theirs, bound.shapes, strict=True)):
            made[name] = LazyArray(shape, sources[0].dtype, partial(bound.foreign_array, sources, j))
        left -= set(one.ours)
    if left:
        raise AssertionError(f"no rule for {sorted(left)}")
    return LazyArrays(made)


@dataclass(frozen=True)
class _Bound:
    """A rule with the rows of the parameter table for its names."""

    rows: tuple[Parameter, ...]
    parts: int
    """Number of foreign arrays."""
    layout: str
    """Axes of each foreign array."""
    torch: str
    """The same axes in the order of our layout on disk."""

    @classmethod
    def of(cls, one: Rule, rows: Mapping[str, Parameter]) -> "_Bound":
        ours = tuple(rows[name] for name in one.ours)
        torch, layout = ours[0].torch, one.layout or ours[0].torch
        if len(one.theirs) > 1:
            cut = next(groups_of(torch))[0]
            torch, layout = _without(cut, torch), _without(cut, layout)
        assert len(ours) == 1 or (len(one.theirs) == 1 and one.layout is None)
        return cls(ours, len(one.theirs), layout, torch)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shape of each foreign array."""
        first = self.rows[0]
        if len(self.rows) > 1:
            return [(sum(row.shape[0] for row in self.rows), *first.shape[1:])]
        return [shape_of(self.layout, first.sizes)] * self.parts

    def parameter(self, theirs: list[LazyArray], i: int) -> np.ndarray:
        """The value of parameter `i`."""
        if len(self.rows) > 1:
            ends = list(accumulate(row.shape[0] for row in self.rows))
            return theirs[0].read()[ends[i] - self.rows[i].shape[0] : ends[i]]
        sizes = self.rows[0].sizes
        pieces = [rearranged(part.read(), self.layout, self.torch, sizes) for part in theirs]
        return pieces[0] if self.parts == 1 else np.concatenate(pieces)

    def foreign_array(self, ours: list[LazyArray], j: int) -> np.ndarray:
        """The value of foreign array `j`."""
        if len(self.rows) > 1:
            return np.concatenate([part.read() for part in ours])
        length = self.rows[0].shape[0] // self.parts
        piece = ours[0].read()[j * length : (j + 1) * length]
        return rearranged(piece, self.torch, self.layout, self.rows[0].sizes)


def rearranged(array: np.ndarray, source: str, target: str, sizes: Mapping[str, int]) -> np.ndarray:
    """The array transposed and reshaped from one pattern of axes to another. Axes of length 1 may be missing in
    either."""
    if source == target:
        return array
    sizes = {**sizes, "1": 1}
    axes, order = ([a for group in groups_of(layout) for a in group if sizes[a] > 1] for layout in (source, target))
    apart = array.reshape([sizes[axis] for axis in axes])
    return contiguous(apart.transpose([axes.index(axis) for axis in order])).reshape(shape_of(target, sizes))


def shape_of(layout: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of an array with these axes."""
    return tuple(prod(1 if axis == "1" else sizes[axis] for axis in group) for group in groups_of(layout))


def _without(axis: str, layout: str) -> str:
    groups = [[name for name in group if name != axis] for group in groups_of(layout)]
    return " ".join(group[0] if len(group) == 1 else f"({' '.join(group)})" for group in groups if group)
