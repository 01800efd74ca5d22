"""Rules that say which foreign arrays hold which of ours: one list for each lineage, read in both directions.

Most are a new name. A rule may also cut one of ours into several of theirs (qkv into query, key and value), put several
of ours below one another in one of theirs, and give the axes of theirs in another order or grouping, as a pattern of
the parameter table's axis names ("width heads head_dim").
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from math import prod

import numpy as np

from vit_core.arrays import LazyArray, LazyArrays, contiguous
from vit_core.config import ViTConfig
from vit_core.errors import InputError, some
from vit_core.parameters import Parameter, groups_of, parameters


@dataclass(frozen=True)
class Rule:
    """The arrays `ours`, one below another, hold what the arrays `theirs` hold, one below another."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    layout: str | None = None
    """Axes of each of theirs ("1": of that length); none: those of ours. One that ours are cut along is left out."""


def rule(ours: str | tuple[str, ...], theirs: str | tuple[str, ...], layout: str | None = None) -> Rule:
    """A Rule; one name need be no tuple."""
    ours, theirs = ((names,) if isinstance(names, str) else names for names in (ours, theirs))
    return Rule(ours, theirs, layout)


def renamed(name: str, names: Mapping[str, str], layers: str) -> str:
    """Theirs for one of ours: `names` has it whole or up to its last part, `layers` stands before a block's number."""
    prefix = ""
    if name.startswith("blocks."):
        _, layer, name = name.split(".", 2)
        prefix = f"{layers}{layer}."
    if name in names:
        return prefix + names[name]
    stem, _, leaf = name.rpartition(".")
    return f"{prefix}{names[stem]}.{leaf}"


def read(rules: Iterable[Rule], config: ViTConfig, theirs: LazyArrays, where: object) -> LazyArrays:
    """Ours from theirs. InputError naming what is missing or has another shape; `where` is the file's name."""
    rows, found, wrong = parameters(config), dict[str, LazyArray](), list[str]()
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
                found[row.name] = LazyArray(row.shape, sources[0].dtype, partial(bound.read, sources, i))
    if wrong:
        raise InputError(f"{where}: its arrays do not fit together: {some(wrong, '; ')}")
    return LazyArrays(found).select(rows)


def write(rules: Iterable[Rule], config: ViTConfig, ours: LazyArrays) -> LazyArrays:
    """Theirs from ours, every one of which has to be in a rule."""
    rows, made, left = parameters(config), dict[str, LazyArray](), set(ours)
    for one in rules:
        bound = _Bound.of(one, rows)
        sources = [ours.entries[name] for name in one.ours]
        if len({source.dtype for source in sources}) > 1:
            raise InputError(f"{', '.join(one.ours)}: expected one type, for they are one array there; convert --dtype")
        for j, (name, shape) in enumerate(zip(one.theirs, bound.shapes, strict=True)):
            made[name] = LazyArray(shape, sources[0].dtype, partial(bound.write, sources, j))
        left -= set(one.ours)
    if left:
        raise AssertionError(f"no rule for {sorted(left)}")
    return LazyArrays(made)


@dataclass(frozen=True)
class _Bound:
    """A rule for the rows of one config."""

    rows: tuple[Parameter, ...]
    parts: int
    """How many of theirs there are."""
    layout: str
    """Axes of each of theirs, and in torch's order; several of ours in one of theirs have none."""
    torch: str

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
        """Of each of theirs."""
        first = self.rows[0]
        if len(self.rows) > 1:
            return [(sum(row.shape[0] for row in self.rows), *first.shape[1:])]
        return [shape_of(self.layout, first.sizes)] * self.parts

    def read(self, theirs: list[LazyArray], i: int) -> np.ndarray:
        """Row i of ours."""
        if len(self.rows) > 1:
            ends = list(accumulate(row.shape[0] for row in self.rows))
            return theirs[0].read()[ends[i] - self.rows[i].shape[0] : ends[i]]
        sizes = self.rows[0].sizes
        pieces = [rearranged(part.read(), self.layout, self.torch, sizes) for part in theirs]
        return pieces[0] if self.parts == 1 else np.concatenate(pieces)

    def write(self, ours: list[LazyArray], j: int) -> np.ndarray:
        """Number j of theirs."""
        if len(self.rows) > 1:
            return np.concatenate([part.read() for part in ours])
        length = self.rows[0].shape[0] // self.parts
        piece = ours[0].read()[j * length : (j + 1) * length]
        return rearranged(piece, self.torch, self.layout, self.rows[0].sizes)


def rearranged(array: np.ndarray, source: str, target: str, sizes: Mapping[str, int]) -> np.ndarray:
    """From one pattern of axes to another; axes of length 1 may be in one of the two only."""
    if source == target:
        return array
    sizes = {**sizes, "1": 1}
    axes, order = ([a for group in groups_of(layout) for a in group if sizes[a] > 1] for layout in (source, target))
    apart = array.reshape([sizes[axis] for axis in axes])
    return contiguous(apart.transpose([axes.index(axis) for axis in order])).reshape(shape_of(target, sizes))


def shape_of(layout: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of an array of these axes."""
    return tuple(prod(1 if axis == "1" else sizes[axis] for axis in group) for group in groups_of(layout))


def _without(axis: str, layout: str) -> str:
    groups = [[name for name in group if name != axis] for group in groups_of(layout)]
    return " ".join(group[0] if len(group) == 1 else f"({' '.join(group)})" for group in groups if group)
