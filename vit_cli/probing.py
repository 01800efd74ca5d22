"""The features for `vit probe`: from files, or computed for the images of a data set."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vit_cli import console
from vit_cli.inference import Extraction, each_image, import_twin, warnings_said
from vit_cli.option_types import Computing, Reading
from vit_cli.reports.groups import groups_line
from vit_cli.requirements import TRAINING, require
from vit_core.errors import InputError
from vit_core.feature_files import read_features
from vit_core.features import Pool
from vit_core.field_text import parse_preprocessing
from vit_core.storage import Location
from vit_train.probing import Labelled, Probed, held_out

if TYPE_CHECKING:
    from vit_train.config import Data
    from vit_train.data.sources import Split


def from_files(source: Location, test: Location | None, fraction: float, seed: int) -> tuple[Labelled, Labelled]:
    """Training and test features of one file, of which a fraction is held out, or of two."""
    train, *rest = (_labelled(path) for path in (source, test) if path is not None)
    return (train, rest[0]) if rest else held_out(train, fraction, seed)


def _labelled(path: Location) -> Labelled:
    found = read_features(path)
    return Labelled.of(found.values_N, found.labels, str(path))


@dataclass(frozen=True)
class Model:
    """The model whose features are computed, from the options of the command line."""

    checkpoint: Location
    reading: Reading
    computing: Computing
    dtype: str

    def extraction(self, layer: int, pool: Pool | None, norm: bool) -> Extraction:
        """The features of this model."""
        twin = import_twin(self.computing.framework, self.dtype)
        checkpoint = self.reading.open_and_report(self.checkpoint)
        changes = parse_preprocessing(self.computing.preprocessing)
        with warnings_said():
            return Extraction.of(
                twin,
                checkpoint.adapt(image_size=self.computing.image_size),
                layer=layer,
                pool=pool,
                norm=norm,
                dtype=self.dtype,
                preprocessing=changes,
            )


def from_images(model: Model, data: "Data", *, layer: int, pool: Pool | None, norm: bool) -> tuple[Labelled, Labelled]:
    """Training and test features of the images of a data set."""
    splits, extraction = _splits(data), model.extraction(layer, pool, norm)
    train, test = (_features_of(split, model.computing, extraction) for split in splits)
    return train, test


def _splits(data: "Data") -> "tuple[Split, Split]":
    """Training and test images. Raises InputError if images may have several classes."""
    require("train", *TRAINING)
    from vit_cli.reports.training import TerminalDisplay
    from vit_train.data.sources import open_split

    train, test = open_split(data, "train"), open_split(data, "test")
    for split in (train, test):
        if split.multilabel:
            raise InputError(f"{split.title}: its images may have several classes; a probe expects one for each")
        split.make_ready(TerminalDisplay())
    for note in dict.fromkeys((*train.notes, *test.notes)):
        console.say(note)
    return train, test


def _features_of(split: "Split", computing: Computing, extraction: Extraction) -> Labelled:
    values_ND = np.empty((len(split), *extraction.shape), np.float32)
    label_of, rows = dict[int, str](), list[int]()

    def encoded(numbers: Iterable[int]) -> Iterator[bytes | InputError]:
        for i in numbers:
            try:
                example = split.examples[i]
            except InputError as error:
                yield error
                continue
            label_of[i] = split.labels[int(example["label"])]
            yield example["image"]

    def use(i: int, values: np.ndarray) -> None:
        values_ND[i] = values
        rows.append(i)

    each_image(
        f"features of {split.title} ({computing.framework})",
        range(len(split)),
        len(split),
        lambda numbers: extraction.stream(encoded(numbers), computing.batch_size, computing.threads),
        use,
        name=split.name,
        unreadable=computing.unreadable,
        batch_size=computing.batch_size,
        hardware=extraction.function.hardware,
    )
    groups = None if split.groups is None else split.groups.take(rows)
    return Labelled.of(values_ND[rows], [label_of[i] for i in rows], split.title, groups)


def print_probes(train: Labelled, test: Labelled, probes: Iterable[Probed]) -> None:
    """Prints the accuracy of each probe as a table, and notes."""
    with console.working(f"fitting probes to {len(train):,} images"):
        found = list(probes)
    rows = ((each.title, f"{each.accuracy:.2%}", "{:.2%} - {:.2%}".format(*each.interval)) for each in found)
    classes, width = len(set(train.labels_N.tolist())), train.values_ND.shape[1]
    console.table(f"probes of {width} features on {test.title}", ("", "accuracy", "95 % interval"), rows)
    console.say(f"fitted to {len(train):,} images of {classes} classes ({train.title}), tested on {len(test):,}")
    if test.groups is not None:
        console.say(groups_line(test.groups, [each.effective for each in found]))
    for each in found:
        if each.note:
            console.say(each.note)
