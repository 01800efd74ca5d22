"""ImageNet-ReaL (arXiv:2006.07159): reassessed labels of the validation images: several classes, one or none."""

import json
import re
from dataclasses import dataclass

import numpy as np

from vit_core.errors import InputError
from vit_core.storage import Location
from vit_train.classification import wilson_interval
from vit_train.clustered import effective_number
from vit_train.data.sources import Split

CLASSES = 1000
_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})")


@dataclass(frozen=True)
class RealAccuracy:
    """Accuracy by reassessed labels; images without any are not counted."""

    correct: int
    total: int
    effective: float | None = None
    """The number of independent images that these are worth (`effective_number`), if the data name groups."""

    @property
    def top1(self) -> float:
        """Fraction of the images whose prediction is one of their labels."""
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % confidence interval of the top-1."""
        return wilson_interval(self.correct, self.total, self.effective)


@dataclass(frozen=True)
class RealLabels:
    """The reassessed labels: for image i + 1 of the validation split, the numbers of its classes."""

    classes_of: tuple[frozenset[int], ...]

    @classmethod
    def read(cls, path: Location) -> "RealLabels":
        """The labels in the file real.json of google-research/reassessed-imagenet. Raises InputError for any other
        file."""
        try:
            lists = json.loads(path.read_text())
            valid = all(type(number) is int and 0 <= number < CLASSES for numbers in lists for number in numbers)
            found = tuple(frozenset(numbers) for numbers in lists)
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise InputError(f"{path}: cannot read reassessed labels ({error}); expected real.json") from None
        if not valid or not found:
            raise InputError(f"{path}: expected a list of lists of class numbers from 0 to {CLASSES - 1}, as real.json")
        return cls(found)

    def check(self, split: Split) -> None:
        """Raises InputError unless a split has ImageNet's 1000 classes and its files ImageNet's names."""
        if len(split.labels) != CLASSES:
            raise InputError(
                f"{split.title}: {len(split.labels)} classes; reassessed labels are of ImageNet's {CLASSES}"
            )
        self.of(split, 0)

    def of(self, split: Split, i: int) -> frozenset[int]:
        """The classes of example i of a split, by the number in its file's name. Raises InputError if there is none."""
        found = _NUMBER.search(split.name(i))
        if found is None or not 1 <= int(found[1]) <= len(self.classes_of):
            raise InputError(
                f"{split.name(i)}: has no reassessed labels; expected files named ILSVRC2012_val_00000001.JPEG to "
                f"ILSVRC2012_val_{len(self.classes_of):08d}.JPEG"
            )
        return self.classes_of[int(found[1]) - 1]

    def accuracy(self, split: Split, ids_N: np.ndarray, predictions_N: np.ndarray) -> RealAccuracy:
        """The accuracy of predictions (numbers of the split's classes) for images of these indices in the split.
        InputError where none of them has a label."""
        right = {
            int(i): int(prediction) in classes
            for i, prediction in zip(ids_N, predictions_N, strict=True)
            if (classes := self.of(split, int(i)))
        }
        if not right:
            raise InputError(f"{split.title}: none of its images has a reassessed label")
        hits_N, groups = np.array([*right.values()]), split.groups
        effective = None if groups is None else effective_number(hits_N, groups.take([*right]).group_N)
        return RealAccuracy(int(hits_N.sum()), len(hits_N), effective)
