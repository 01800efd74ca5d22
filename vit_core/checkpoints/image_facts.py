"""Reads the mean and the standard deviation of images from a file that states both in one mapping or one module."""

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
"""Pairs of names that scripts give to the mean and the standard deviation of images."""
_BESIDE = ("interpolation", "crop_pct", "crop_mode")
"""Other values that are read from the mapping with the mean and the std; timm's names."""
_NOT_IMAGES = re.compile(
    r"target|label|action|output|unnorm|denorm|inverse|latent|reward|embed|feature|init(?!_args)|depth|text|audio|teacher"
    r"|student|decoder|predictor|head|loss",
    re.IGNORECASE,
)
"""Names of mappings and modules whose mean and std are not those of images."""
_RGB, _BGR = ("to_rgb", "bgr_to_rgb"), ("bgr", "to_bgr", "use_bgr", "is_bgr", "rgb_to_bgr")
"""Options that mean the order blue, green, red: those that are then false, and those that are then true."""
_WHITE = 255
"""Value of white, if the mean and the std are of pixels from 0 to 255."""
_LEAST_STD = 0.02
"""Minimum std, for pixels scaled to 0..1, at which values are accepted as those of bytes (5 of 255)."""


@dataclass(frozen=True)
class _Stated:
    """A mean and a std that one mapping or module states. One of them is None if only the other is stated."""

    mean: Any
    std: Any
    more: Mapping[str, Any]
    where: str
    """The place in the file, for messages: "hyper_parameters: mean, std"."""
    used: frozenset[str]
    """The keys of the file's tree, or the names of the arrays, that state them."""

    @property
    def is_complete(self) -> bool:
        return self.mean is not None and self.std is not None


def with_preprocessing(
    reading: Reading, mappings: Sequence[tuple[tuple[str, ...], Mapping[Any, Any]]], beside: LazyArrays
) -> tuple[Reading, list[str], set[str]]:
    """The reading with the preprocessing that the file states, if the format's own reading found none; notes; and the
    names of the keys and arrays that were used.

    mappings: those in the file, with the keys that lead to each. beside: arrays beside the model, where a module that
    normalizes images stores its mean and std. A note names what is stated but not used.
    """
    if reading.config.preprocessing is not None:
        return reading, [], set()
    stated = [one for path, values in mappings for one in _of_mapping(path, values)] + list(_of_modules(beside))
    channels = reading.config.model.channels
    fitting, reasons = list[_Stated](), list[str]()
    for one in stated:
        scaled, reason = _scaled(one, channels)
        fitting += [scaled] if scaled else []
        reasons += [f"preprocessing left out: {one.where}: {reason}"] if reason else []
    if not fitting:
        return reading, reasons[:1], set()
    first = fitting[0]
    if not all(_agree(one, first) for one in fitting):
        where = abbreviate([one.where for one in fitting], most=3)
        return reading, [f"preprocessing left out: {where} state different values"], set()
    if bgr := next((name for _, values in mappings for name in _blue_first(values)), None):
        return (
            reading,
            [f"preprocessing left out: {first.where} are in the order blue, green, red, according to {bgr}"],
            set(),
        )
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
    """The arrays of a model, and apart the buffers by which it normalizes its images itself: `mean` and `std`."""
    names = {name for one in _of_modules(arrays) for name in one.used}
    return arrays.select(name for name in arrays if name not in names), {name: arrays.entries[name] for name in names}


def _of_mapping(path: tuple[str, ...], values: Mapping[Any, Any]) -> Iterator[_Stated]:
    """The means and stds of images that a mapping states. A single number without its counterpart is ignored, because
    it is probably of something else."""
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
    """The means and stds in buffers of modules that normalize images: `normalize.mean`, `normalize.std`."""
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
    """The mean and std for pixels from 0 to 1, and an empty text; or None, and the reason."""
    if not one.is_complete:
        return None, f"no {'mean' if one.mean is None else 'std'} is stated"
    mean, std = one.mean, one.std
    for name, values in (("mean", mean), ("std", std)):
        if not _are_numbers(values) or len(values) != channels:
            return None, f"the {name} is not a list of {channels} numbers"
    if all(0 <= x <= 1 for x in mean) and all(0 < x <= 1 for x in std):
        return one, ""
    is_in_bytes = (not any(mean) or max(mean) > 1) and all(0 <= x <= _WHITE for x in (*mean, *std))
    if is_in_bytes and min(std) >= _LEAST_STD * _WHITE:
        mean, std = ([x / _WHITE for x in values] for values in (mean, std))
        return replace(one, mean=mean, std=std, where=f"{one.where}, of bytes"), ""
    return None, "the values fit neither pixels from 0 to 1 nor from 0 to 255"


def _agree(one: _Stated, other: _Stated) -> bool:
    """Whether the values are equal up to rounding to bfloat16 or a more precise type."""
    pairs = zip((*one.mean, *one.std), (*other.mean, *other.std), strict=True)
    return all(isclose(a, b, rel_tol=2**-8) for a, b in pairs)


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) in (int, float) for value in values)


def _blue_first(values: Mapping[Any, Any]) -> Iterable[str]:
    """The options in a mapping that mean the order blue, green, red, as text."""
    for name, value in values.items():
        off, on = str(name).lower() in _RGB and value is False, str(name).lower() in _BGR and value is True
        if off or on or (isinstance(value, str) and value.strip().upper() == "BGR"):
            yield one_line(f"{name}={value}")[:60]


def _plain(value: Any) -> Any:
    """Numbers as a list, if the value is a tuple, a small array or a text in JSON; any other value unchanged."""
    if isinstance(value, LazyArray) and prod(value.shape) <= 3:
        value = value.read().reshape(-1).tolist()
    if isinstance(value, str) and value.startswith("["):
        with suppress(ValueError, RecursionError):
            value = json.loads(value[:200])
    return list(value) if isinstance(value, tuple) else value
