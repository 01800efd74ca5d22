"""The groups of examples that depend on each other, such as the images of one patient."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vit_core.errors import InputError


@dataclass(frozen=True, eq=False)
class Groups:
    """The group of each of N examples: examples of one group, such as the images of one patient, resemble each other
    more than those of different groups."""

    column: str
    """The column that names the groups, such as patient_id."""
    names: tuple[str, ...]
    """Names of the groups; not all of them need to occur."""
    group_N: np.ndarray
    """int [N]: the group of each example, as an index of `names`."""

    @classmethod
    def of(cls, column: str, cells: Sequence[str]) -> "Groups":
        """The groups of examples whose group is written in `cells`."""
        names, group_N = np.unique(np.array(cells), return_inverse=True)
        return cls(column, tuple(names.tolist()), group_N)

    def take(self, indices_M: np.ndarray | Sequence[int]) -> "Groups":
        """The groups of the examples with these indices, in this order."""
        return Groups(self.column, self.names, self.group_N[indices_M])

    @cached_property
    def count(self) -> int:
        """Number of different groups that occur."""
        return len(np.unique(self.group_N))

    def __len__(self) -> int:
        return len(self.group_N)

    def __str__(self) -> str:
        return f"{len(self):,} images of {self.count:,} groups ({self.column})"


class NoGroupsError(InputError):
    """The data have no column of the name that is asked for as that of the groups, or no columns at all."""
