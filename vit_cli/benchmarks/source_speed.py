"""`vit bench sources`: speed of reading examples in random order from each kind of source, compared with a prepared set
of the same images. They are not decoded, because decoding takes a hundred times as long and would hide differences."""

import io
import statistics
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vit_cli.benchmarks.generated_jpegs import jpegs
from vit_train.config import Data
from vit_train.data.prepare import prepare
from vit_train.data.sources import Split, open_split

PREPARED, PARQUET, TAR, FOLDERS = "ArrayRecord (vit prepare)", "parquet, unpacked once", "tar shards", "class folders"
CLASSES = "cat", "dog"
DIFFERENT = 64
"""Number of different images; further images are copies, because reading does not depend on their contents."""


def measure(images: int, rounds: int) -> dict[str, list[float]]:
    """Examples/s that one thread reads from each kind of source, in each round. All take turns in a round; every second
    round has the opposite order."""
    with tempfile.TemporaryDirectory() as folder:
        splits = sources(Path(folder), images)
        order = np.random.default_rng(0).permutation(images).tolist()
        speeds: dict[str, list[float]] = {name: [] for name in splits}
        for i in range(rounds + 1):
            for name in list(splits)[:: 1 if i % 2 else -1]:
                seconds = _seconds(splits[name], order)
                if i:  # the first round fills the file system's cache
                    speeds[name].append(images / seconds)
    return speeds


def times_prepared(speeds: Mapping[str, Sequence[float]], name: str) -> float:
    """Speed relative to the prepared set: the median over the rounds."""
    pairs = zip(speeds[name], speeds[PREPARED], strict=True)
    return statistics.median(ours / prepared for ours, prepared in pairs)


def sources(folder: Path, images: int) -> dict[str, Split]:
    """The same images in each kind of source, written into a folder, opened, and unpacked if needed."""
    different = jpegs(min(images, DIFFERENT))
    files = {f"{CLASSES[i % 2]}/{i:06}.jpg": different[i % len(different)] for i in range(images)}
    for name, content in files.items():
        (folder / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "photos" / name).write_bytes(content)
    prepare(folder / "photos", folder / "sets", name="photos", held_out=0.0, workers=1)
    _write_parquet(folder / "photos.parquet", files)
    _write_tar(folder / "photos.tar", files)
    cache = str(folder / "cache")
    data = {
        PREPARED: Data(name="photos", directory=str(folder / "sets")),
        PARQUET: Data(name=str(folder / "photos.parquet"), directory=cache, held_out=0.0),
        TAR: Data(name=str(folder / "photos.tar"), directory=cache, held_out=0.0),
        FOLDERS: Data(name=f"{folder / 'photos'}/", held_out=0.0),
    }
    splits = {name: open_split(each, "train") for name, each in data.items()}
    for split in splits.values():
        split.make_ready()
    return splits


def _write_parquet(path: Path, files: Mapping[str, bytes]) -> None:
    import pyarrow
    from pyarrow import parquet

    image = [{"bytes": content, "path": name} for name, content in files.items()]
    label = [name.partition("/")[0] for name in files]
    parquet.write_table(pyarrow.table({"image": image, "label": label}), path)


def _write_tar(path: Path, files: Mapping[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            label, _, file = name.partition("/")
            for member, written in ((file, content), (f"{Path(file).stem}.cls", label.encode())):
                entry = tarfile.TarInfo(member)
                entry.size = len(written)
                archive.addfile(entry, io.BytesIO(written))


def _seconds(split: Split, order: Sequence[int]) -> float:
    start = time.perf_counter()
    for i in order:
        split.examples[i]
    return time.perf_counter() - start
