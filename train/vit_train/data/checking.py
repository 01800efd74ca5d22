"""Checks of the data before a run begins: unreadable images, missing classes, images that are in both splits."""

import hashlib
import io
import os
import warnings
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image

from vit_core.errors import InputError, abbreviate
from vit_core.preprocess import Preprocessing, decode, register_formats
from vit_core.storage import Location, is_local
from vit_train.config import Data
from vit_train.data.classes import Occurrences
from vit_train.data.sources import Split
from vit_train.data.sources.opening import data_path
from vit_train.data.sources.split import Listed, Source
from vit_train.display import SILENT, Display, Task

UNEVEN = 10
"""A note is made if one class has this many times more images than another."""
DECODED = 10_000
"""Largest number of images of a split whose pixels are decoded; for the others only the header is read."""
HEAD = 65536
"""Number of bytes at the start of an image file that are read for its header and to recognize copies."""
COMPARED = 20_000
"""Largest number of images that are read to find images common to two data sets."""


class ImageCheck(NamedTuple):
    """Result of checking one image file."""

    digest: int
    turned: bool = False
    reason: str | None = None
    """The reason why it cannot be read; None if it can."""


@dataclass
class Checked:
    """Results of checking the images of a split."""

    split: Split
    decoded: int = 0
    headers: int = 0
    """Number of images whose header alone was read."""
    digests_N: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Hashes of each file's first bytes; 0: not read."""
    unreadable: dict[int, str] = field(default_factory=dict)
    """Reasons, by example."""
    turned: int = 0
    """Number of images with an EXIF rotation."""

    @property
    def summary(self) -> str:
        """What was checked: "photos/train: pixels of 10,000 images, headers of 90,000"."""
        total = len(self.split)
        every = "all" if self.decoded == total else "of"
        text = f"{self.split.title}: pixels {every} {self.decoded:,} images"
        text += f", headers of {self.headers:,}" if self.headers else ""
        rest = total - self.decoded - self.headers
        return text + (f"; {rest:,} were not opened" if rest else "")


def check_split(
    split: Split, preprocessing: Preprocessing, display: Display = SILENT, share: tuple[int, int] = (0, 1)
) -> Checked:
    """Decodes the images of a split, at most `DECODED` drawn at random, and reads the headers of the others if this
    does not need the whole record.

    share: (index, count) of this process, which checks one of every `count` images.
    """
    count, found = len(split), Checked(split)
    order = np.random.default_rng(0).permutation(count)
    limit = count if isinstance(split.examples, Listed) else min(count, DECODED)
    found.digests_N = np.zeros(count, np.int64)
    mine = np.arange(share[0], limit, share[1])
    with display.task(f"check {split.title}", len(mine)) as task, ThreadPoolExecutor(os.cpu_count()) as threads:
        checks = _in_threads(threads, split, preprocessing, [(int(order[n]), bool(n < DECODED)) for n in mine], task)
        for i, whole, check in checks:
            found.digests_N[i] = check.digest
            found.decoded += whole
            found.headers += not whole
            found.turned += check.turned
            if check.reason is not None:
                found.unreadable[i] = check.reason
    return found


def _in_threads(
    threads: ThreadPoolExecutor,
    split: Split,
    preprocessing: Preprocessing,
    wanted: Sequence[tuple[int, bool]],
    task: Task,
) -> Iterator[tuple[int, bool, ImageCheck]]:
    """(example, whether its pixels were decoded, result) for each wanted example."""
    done = 0
    for start in range(0, len(wanted), 256):  # in small groups, so that an interrupt takes effect soon
        some = wanted[start : start + 256]
        with warnings.catch_warnings(action="ignore"):
            found = list(threads.map(lambda one: _check_image(split, one[0], one[1], preprocessing), some))
        done += len(some)
        task.update(done, "")
        yield from ((i, whole, check) for (i, whole), check in zip(some, found, strict=True))


def _check_image(split: Split, i: int, whole: bool, preprocessing: Preprocessing) -> ImageCheck:
    """Reads example i: the whole image, or only its first bytes if they suffice."""
    digest = 0
    try:
        if not whole and isinstance(split.examples, Listed):
            head = split.examples.head(i, HEAD)
            digest, orientation = _digest(head), _orientation(head)
            if orientation is not None:
                return ImageCheck(digest, orientation > 1)
        image = split.examples[i]["image"]
        digest = _digest(image)
        decode(image, preprocessing)
    except InputError as error:
        return ImageCheck(digest, reason=str(error))
    return ImageCheck(digest, (_orientation(image[:HEAD]) or 1) > 1)


def _digest(image: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(image[:HEAD], digest_size=7).digest(), "little") or 1


def _orientation(head: bytes) -> int | None:
    """The EXIF orientation of an image, 1 without one; None if the first bytes of its file do not suffice for Pillow to
    recognize it. (A TIFF's directory may be at its end.)"""
    register_formats()
    try:
        with Image.open(io.BytesIO(head)) as image:
            turned_by_pillow = image.format == "TIFF"
            return 1 if turned_by_pillow else int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # decoders raise SyntaxError, struct.error and others for broken files
        return None


def unreadable_line(checked: Checked) -> str:
    """One line with the images that cannot be read, and the reasons."""
    named = [checked.split.fault(i, reason) for i, reason in sorted(checked.unreadable.items())]
    count = f"{len(named):,} image{'s' * (len(named) != 1)} of {checked.split.title}"
    return f"{count} cannot be read: {abbreviate(named, '; ', most=3)}"


def missing_classes(split: Split) -> tuple[str, ...]:
    """Classes without an image in a split. None for prepared sets, whose labels are in the records."""
    if not isinstance(split.examples, Listed):
        return ()
    counts_C = Occurrences.of(split).counts_C
    return tuple(label for label, count in zip(split.labels, counts_C, strict=True) if not count)


def imbalance_line(training: Split, evaluation: Split) -> str | None:
    """A note if the most frequent class has at least `UNEVEN` times more training images than the rarest.

    None for other data, for multi-label data, and for prepared sets, whose labels are in the records.
    """
    if training.multilabel or not all(isinstance(split.examples, Listed) for split in (training, evaluation)):
        return None
    counts_C, held_C = (Occurrences.of(split).counts_C for split in (training, evaluation))
    rarest, most = int(counts_C.argmin()), int(counts_C.argmax())
    if counts_C[most] < UNEVEN * max(counts_C[rarest], 1):
        return None
    rare, frequent = training.labels[rarest], training.labels[most]
    share = held_C[evaluation.labels.index(frequent)] / held_C.sum() if frequent in evaluation.labels else 0.0
    return (
        f"{training.title}: {counts_C[most]:,} images of {frequent}, {counts_C[rarest]:,} of {rare}; "
        f"always predicting {frequent} is right for {share:.1%} of {evaluation.title}; --class-weights balanced and "
        "--sampling balanced count rare classes more"
    )


def duplicates(training: Checked, evaluation: Checked) -> list[tuple[int, int]]:
    """(training example, evaluation example) for each evaluation image that is a training image too, byte for byte."""
    both = _by_digest(training).keys() & _by_digest(evaluation).keys()
    first = {content: i for i, content in reversed(_contents(training, both))}
    return [(first[content], i) for i, content in _contents(evaluation, both) if content in first]


def copies(checked: Checked) -> list[tuple[int, int]]:
    """(first example, later example) for each image of a split that is there before, byte for byte."""
    several = {digest for digest, examples in _by_digest(checked).items() if len(examples) > 1}
    first: dict[bytes, int] = {}
    pairs = [(first.setdefault(content, i), i) for i, content in _contents(checked, several)]
    return [(a, b) for a, b in pairs if a != b]


def copies_line(checked: Checked) -> str | None:
    """A note on the copies in a split, and on those with another class; None if there are none."""
    if not (pairs := copies(checked)):
        return None
    split, opened = checked.split, checked.decoded + checked.headers
    are = "is a copy of another" if len(pairs) == 1 else "are copies of others"
    of = f"{opened:,} images of {split.title}{'' if opened == len(split) else ' that were opened'}"
    line = f"{len(pairs):,} of the {of} {are}, byte for byte"
    named = {i: _classes(split, i) for pair in pairs for i in pair}
    apart = [(a, b) for a, b in pairs if named[a] != named[b]]
    if not apart:
        a, b = pairs[0]
        return f"{line} ({split.name(b)} is {split.name(a)})"
    a, b = apart[0]
    texts = [f"{split.name(i)}: {' and '.join(named[i]) or 'none'}" for i in (a, b)]
    return f"{line}, {len(apart):,} of them with another class ({', '.join(texts)})"


def _classes(split: Split, i: int) -> list[str]:
    """The names of an example's classes, sorted."""
    label = split.examples.labels_N[i] if isinstance(split.examples, Listed) else split.examples[i]["label"]
    return sorted(split.labels[one] for one in ((label,) if np.ndim(label) == 0 else label))


def _by_digest(checked: Checked) -> dict[int, list[int]]:
    """The readable examples with each digest."""
    found: dict[int, list[int]] = {}
    for i, digest in enumerate(checked.digests_N.tolist()):
        if digest and i not in checked.unreadable:
            found.setdefault(digest, []).append(i)
    return found


def _contents(checked: Checked, digests: Set[int]) -> list[tuple[int, bytes]]:
    """(example, hash of its whole image) for the readable examples with some digests, in their order."""
    examples = sorted(i for digest, found in _by_digest(checked).items() if digest in digests for i in found)
    read = ((i, _bytes(checked.split, i)) for i in examples)
    return [(i, hashlib.sha256(image).digest()) for i, image in read if image]


def _bytes(split: Split, i: int) -> bytes:
    try:
        return bytes(split.examples[i]["image"])
    except InputError:
        return b""


def check_outside_data(out: Location, data: Data) -> None:
    """Raises InputError for an output folder inside the data folder: its files would become images of the next run."""
    folder = data_path(data)
    if folder is None or not folder.is_dir() or not is_local(out):
        return
    inside, around = out.resolve(), folder.resolve()
    if around in (inside, *inside.parents):
        raise InputError(
            f"{out}: this output folder is inside the data folder {folder}, where its files would be read as data; "
            f"choose another, such as --out {around.parent / 'runs' / inside.name}"
        )


def images_in_common(training: Split, examples: Split) -> int:
    """Number of examples that are training images too: the same files or records, or, in sets that are not large, files
    with the same bytes."""
    if isinstance(training.examples, Source) and isinstance(examples.examples, Source):
        places = set(training.examples.places())
        if same := sum(place in places for place in examples.examples.places()):
            return same
    if len(training) + len(examples) > COMPARED:
        return 0
    contents = {hashlib.sha256(_bytes(training, i)).digest() for i in range(len(training))}
    return sum(hashlib.sha256(_bytes(examples, i)).digest() in contents for i in range(len(examples)))
