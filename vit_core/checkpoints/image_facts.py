"""The mean and the std of images, where a file states both in one mapping or in one module beside the model."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import isclose, prod
from typing import Any

from vit_core.arrays import LazyArray, LazyArrays
from vit_core.checkpoints.formats.interface import Reading
from vit_core.checkpoints.formats.timm.config_json import preprocessing_of
from vit_core.errors import abbreviate, one_line

_PAIRS = tuple((f"{of}mean", f"{of}std") for of in ("", "image_", "img_", "norm_", "pixel_"))
"""Names that scripts give to a mean and the std of the same images."""
_BESIDE = ("interpolation", "crop_pct", "crop_mode")
"""What else is taken from the mapping of a mean and a std, by timm's names."""
_NOT_IMAGES = re.compile(
    r"target|label|action|output|unnorm|denorm|inverse|latent|reward|embed|feature|init(?!_args)|depth|text|audio|teacher"
    r"|student|decoder|predictor|head|loss",
    re.IGNORECASE,
)
"""Names of mappings and modules whose mean and std are those of something else."""
_RGB, _BGR = ("to_rgb", "bgr_to_rgb"), ("bgr", "to_bgr", "use_bgr", "is_bgr", "rgb_to_bgr")
"""Names of options that are false, or true, where the channels are in the order blue, green, red."""
_WHITE = 255
"""White, where a mean is that of bytes."""
_LEAST_STD = 0.02
"""Of pixels from 0 to 1, where a std is that of bytes: 5 of 255."""


@dataclass(frozen=True)
class _Stated:
    """A mean and a std as one mapping or module states them; None: it states one of them alone."""

    mean: Any
    std: Any
    more: Mapping[str, Any]
    where: str
    """For people: "hyper_parameters: mean, std"."""
    used: frozenset[str]
    """The keys of the file's tree, or the names of arrays, that it consists of."""

    @property
    def is_complete(self) -> bool:
        return self.mean is not None and self.std is not None


def with_preprocessing(
    reading: Reading, mappings: Sequence[tuple[tuple[str, ...], Mapping[Any, Any]]], beside: LazyArrays
) -> tuple[Reading, list[str], set[str]]:
    """A reading with the preprocessing that a file states, where the format's own reading found none; notes; and the
    names of what is used.

    mappings: those in the file, with the keys that lead to each. beside: arrays beside the model, among which a module
    that normalises images has a mean and a std. What is stated and not taken is named.
    """
    if reading.config.preprocessing is not None:
        return reading, [], set()
    stated = [one for path, values in mappings for one in _of_mapping(path, values)] + list(_of_modules(beside))
    channels = reading.config.model.channels
    fitting, reasons = list[_Stated](), list[str]()
    for one in stated:
        scaled, reason = _scaled(one, channels)
        fitting += [scaled] if scaled else []
        reasons += [f"preprocessing left out: {one.where} {reason}"] if reason else []
    if not fitting:
        return reading, reasons[:1], set()
    first = fitting[0]
    if not all(_agree(one, first) for one in fitting):
        where = abbreviate([one.where for one in fitting], most=3)
        return reading, [f"preprocessing left out: {where} state different values"], set()
    if bgr := next((name for _, values in mappings for name in _blue_first(values)), None):
        return reading, [f"preprocessing left out: {first.where} are of blue, green, red, by {bgr}"], set()
    try:
        made, notes = preprocessing_of(reading.config.model, {"mean": first.mean, "std": first.std, **first.more})
    except (TypeError, ValueError, OverflowError) as error:
        made, notes = None, [f"left out: preprocessing ({error})"]
    if made is None:
        return reading, [f"{note}: stated by {first.where}" for note in notes], set()
    shown = {"interpolation": made.interpolation, "crop_pct": made.crop_fraction}
    assumed = [f"{name} {value}" for name, value in shown.items() if name not in first.more]
    more = f"; assumed as in timm: {', '.join(assumed)}" if assumed else ""
    config = reading.config.replace(preprocessing=made)
    used = {name for one in fitting for name in one.used}
    return replace(reading, config=config), [f"preprocessing: stated by {first.where}{more}", *notes], used


def without_image_constants(arrays: LazyArrays) -> tuple[LazyArrays, dict[str, LazyArray]]:
    """The arrays of a model, and apart the buffers by which it normalises its images itself: `mean` and `std`."""
    names = {name for one in _of_modules(arrays) for name in one.used}
    return arrays.select(name for name in arrays if name not in names), {name: arrays.entries[name] for name in names}


def _of_mapping(path: tuple[str, ...], values: Mapping[Any, Any]) -> Iterator[_Stated]:
    """What a mapping states of images; a number alone, without the other one, is of something else."""
    if any(_NOT_IMAGES.search(name) for name in path):
        return
    given = {name: value for name in (*sum(_PAIRS, ()), *_BESIDE) if _is_stated(value := values.get(name))}
    more = {name: given[name] for name in _BESIDE if name in given}
    for pair in _PAIRS:
        names = [name for name in pair if name in given]
        if names and not (len(names) == 1 and isinstance(given[names[0]], int | float)):
            where = ": ".join([*(one_line(key)[:60] for key in path), ", ".join(names)])
            mean, std = (_plain(given.get(name)) for name in pair)
            yield _Stated(mean, std, more, where, frozenset(path[:1] or names))


def _of_modules(beside: LazyArrays) -> Iterator[_Stated]:
    """The buffers of modules that normalise images before the model: `normalize.mean`, `normalize.std`."""
    entries = beside.entries
    for name in entries:
        module, _, last = name.rpartition(".")
        pair = next((pair for pair in _PAIRS if pair[0] == last), None)
        if pair is None or _NOT_IMAGES.search(module):
            continue
        names = [f"{module}.{one}" if module else one for one in pair]
        if all(one in entries and prod(entries[one].shape) <= 3 for one in names):
            mean, std = (_plain(entries[one]) for one in names)
            yield _Stated(mean, std, {}, one_line(", ".join(names)), frozenset(names))


def _is_stated(value: Any) -> bool:
    return value is not None and not (isinstance(value, str) and not value)


def _scaled(one: _Stated, channels: int) -> tuple[_Stated | None, str]:
    """For pixels from 0 to 1; or None, and why."""
    if not one.is_complete:
        return None, f"without a {'mean' if one.mean is None else 'std'}"
    mean, std = one.mean, one.std
    for name, values in (("mean", mean), ("std", std)):
        if not _are_numbers(values) or len(values) != channels:
            return None, f"state a {name} that is no list of {channels} numbers"
    if all(0 <= x <= 1 for x in mean) and all(0 < x <= 1 for x in std):
        return one, ""
    is_in_bytes = (not any(mean) or max(mean) > 1) and all(0 <= x <= _WHITE for x in (*mean, *std))
    if is_in_bytes and min(std) >= _LEAST_STD * _WHITE:
        mean, std = ([x / _WHITE for x in values] for values in (mean, std))
        return replace(one, mean=mean, std=std, where=f"{one.where}, of bytes"), ""
    return None, "fit neither pixels from 0 to 1 nor bytes"


def _agree(one: _Stated, other: _Stated) -> bool:
    """Whether the values are the same where a buffer was rounded to bfloat16, or to a finer type."""
    pairs = zip((*one.mean, *one.std), (*other.mean, *other.std), strict=True)
    return all(isclose(a, b, rel_tol=2**-8) for a, b in pairs)


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) in (int, float) for value in values)


def _blue_first(values: Mapping[Any, Any]) -> Iterable[str]:
    """The options of a mapping by which channels are in the order blue, green, red."""
    for name, value in values.items():
        off, on = str(name).lower() in _RGB and value is False, str(name).lower() in _BGR and value is True
        if off or on or (isinstance(value, str) and value.strip().upper() == "BGR"):
            yield one_line(f"{name}={value}")[:60]


def _plain(value: Any) -> Any:
    """Numbers as a list, of a tuple, a small array or a text in JSON; anything else as it is."""
    if isinstance(value, LazyArray) and prod(value.shape) <= 3:
        value = value.read().reshape(-1).tolist()
    if isinstance(value, str) and value.startswith("["):
        with suppress(ValueError, RecursionError):
            value = json.loads(value[:200])
    return list(value) if isinstance(value, tuple) else value
