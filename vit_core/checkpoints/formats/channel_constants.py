"""The mean and standard deviation of images in files of other projects, if there is not one value for each channel."""

from collections.abc import Mapping


def per_channel(values: object, channels: int) -> object:
    """One value for each channel. A single number is used for every channel; three equal values become one if the model
    has one channel. Any other value is returned unchanged, and Preprocessing validates it."""
    if isinstance(values, int | float):
        return (values,) * channels
    return (values[0],) if channels == 1 and _three_equal(values) else values  # type: ignore[index]


def equal_in_one(file: str, constants: Mapping[str, object], channels: int) -> list[str]:
    """A list with one note on the constants whose three equal values become one; empty if there are none."""
    names = [name for name, values in constants.items() if channels == 1 and _three_equal(values)]
    return [f"{file}: {' and '.join(names)}: three equal values, used as one value for one channel"] if names else []


def _three_equal(values: object) -> bool:
    return isinstance(values, list | tuple) and len(values) == 3 and values[0] == values[1] == values[2]
