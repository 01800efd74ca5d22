"""The line on groups of images below a table of accuracies."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from vit_core.errors import one_line

if TYPE_CHECKING:
    from vit_train.data.sources import Groups


def groups_line(groups: "Groups", effective: Iterable[float | None]) -> str:
    """The number of images and of their groups, and the number of independent images that they are worth by each of the
    accuracies above."""
    numbers = dict.fromkeys(f"{number:,.0f}" for number in effective if number is not None)
    return one_line(f"95 % interval: {groups}, worth {' and '.join(numbers)} independent images")
