"""The mean and deviation of images in files of other projects, where their number is not that of the channels."""

from collections.abc import Mapping


def per_channel(values: object, channels: int) -> object:
    """One value for each channel: a single number counts for every channel, and three equal values count as one where
    the model has one channel. Any other value is returned unchanged, to be validated by Preprocessing."""
    if isinstance(values, int | float):
        return (values,) * channels
    return (values[0],) if channels == 1 and _three_equal(values) else values  # type: ignore[index]


def equal_in_one(file: str, constants: Mapping[str, object], channels: int) -> list[str]:
    """A note of the constants of which three equal values are taken as one; none where there are none."""
    names = [name for name, values in constants.items() if channels == 1 and _three_equal(values)]
    return [f"{file}: {' and '.join(names)}: three equal values, taken as one for one channel"] if names else []


def _three_equal(values: object) -> bool:
    return isinstance(values, list | tuple) and len(values) == 3 and values[0] == values[1] == values[2]
