"""Decoded images in mapped files: shared, reused, limited in size, and replaced if the data have changed."""

import errno
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vit_core import InputError
from vit_train.config import Augmentation, Data, TrainConfig
from vit_train.data import batches as module
from vit_train.data.batches import Batches
from vit_train.data.mapped_images import MappedImages, cache_folder
from vit_train.data.sources import Split, open_split
from vit_train.data.streams import stream
from vit_train.tests.small_run import CONFIG, folder_of_images, quadrants

COUNT = 36
"""Training examples of 40 images, of which some are held out."""
AUGMENTATION = Augmentation(crop_area=(0.4, 1.0), flip=0.5, mixup=0.2)


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    images = folder_of_images(tmp_path / "images", 40)
    return CONFIG.replace(
        data=Data(name=str(images)), augmentation=AUGMENTATION, image_cache_folder=str(tmp_path / "cache")
    )


def opened(config: TrainConfig) -> Batches:
    return Batches(open_split(config.data, "train"), config)


def prints(batches: Batches) -> list[str]:
    """Fingerprints of the batches of three epochs."""
    return [batches[i].fingerprint() for i in range(6)]


def refuse_to_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "decode", lambda *given: pytest.fail("decoded again"))


def kept(images: Any, count: int) -> list[int]:
    return [i for i in range(count) if images.get(i) is not None]


def test_batches_are_those_without_it_and_the_next_run_decodes_nothing(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = prints(opened(config.replace(image_cache_folder=None)))
    first, second = opened(config), opened(config)
    assert prints(first) == expected
    refuse_to_decode(monkeypatch)
    assert prints(second) == expected, "what another process has kept"
    assert prints(opened(config)) == expected, "after a restart"
    assert prints(pickle.loads(pickle.dumps(first))) == expected, "in a worker process"
    assert [batch.fingerprint() for batch in stream(opened(config), slice(0, 3), threads=2)] == expected[:3]


def test_a_changed_file_is_noticed(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    before, files = prints(opened(config)), sorted(Path(config.data.name).glob("*/*.png"))
    content = files[0].read_bytes()
    files[0].write_bytes(files[1].read_bytes())
    os.utime(files[0], ns=(1, 1))
    changed = prints(opened(config))
    assert changed != before
    assert changed == prints(opened(config.replace(image_cache_folder=None)))
    files[0].write_bytes(content)
    assert prints(opened(config)) == before
    assert len(list(Path(str(config.image_cache_folder)).iterdir())) == 1, "in the same place"


def test_damaged_bytes_are_decoded_again(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = prints(opened(config))
    (file,) = Path(str(config.image_cache_folder)).glob("*/pixels")
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    assert len(kept(opened(config).decoded, COUNT)) == COUNT - 1
    file.write_bytes(content[:200])
    assert prints(opened(config)) == expected
    file.with_name("index").write_bytes(np.full((COUNT, 6), 2**62).tobytes())
    assert prints(opened(config)) == expected


def test_the_limit_holds(config: TrainConfig) -> None:
    split, example = (
        open_split(config.data, "train"),
        opened(config.replace(image_cache_folder=None))._example(0, np.random.default_rng(0)),
    )
    folder, size = Path(str(config.image_cache_folder)), 8 * 8 * 1 + 8
    tight = MappedImages(folder / "a", split, config.preprocessing, COUNT * size)
    for i in range(COUNT):
        tight.keep(i, example)
    assert len(kept(tight, COUNT)) == COUNT
    smaller = MappedImages(folder / "a", split, config.preprocessing, 10 * size)
    assert len(kept(smaller, COUNT)) == 10, "those in the first bytes"
    none = MappedImages(folder / "b", split, config.preprocessing, COUNT * size - 1)
    none.keep(0, example)
    assert kept(none, COUNT) == []
    assert (folder / "b").is_dir()


def test_a_full_disk_costs_time_only(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*given: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    assert prints(opened(config)) == prints(opened(config.replace(image_cache_folder=None)))
    assert caplog.text.count("No space left on device; no more images are kept") == 1


def test_examples_in_memory_are_refused(config: TrainConfig) -> None:
    with pytest.raises(InputError, match="image_cache_folder: quadrants is in memory; leave it out"):
        Batches(quadrants(), config)
    assert isinstance(quadrants(), Split)


def test_a_worker_does_not_read_what_another_run_has_put_there(config: TrainConfig) -> None:
    """Its run goes on with the images and classes that it began with."""
    first = opened(config)
    expected = prints(first)
    packed = pickle.dumps(first)
    file = sorted(Path(config.data.name).glob("*/*.png"))[0]
    os.utime(file, ns=(1, 1))  # other files, by their times: the second run begins the cache anew
    prints(opened(config))
    worker = pickle.loads(packed)
    assert kept(worker.decoded, COUNT) == []
    assert prints(worker) == expected


def test_a_folder_in_a_store_is_refused(config: TrainConfig) -> None:
    with pytest.raises(InputError, match=r"--image-cache-folder memory://b/x: expected a folder on this machine"):
        opened(config.replace(image_cache_folder="memory://b/x"))


def test_a_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    """Before anything is written; a folder that is missing is none yet."""
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file/below"):
        expected = rf"--image-cache-folder {folder}: {tmp_path}/file is a file; expected a folder"
        with pytest.raises(InputError, match=expected):
            cache_folder(str(folder))
    assert cache_folder(str(tmp_path / "new/folder")) == tmp_path / "new/folder"
    assert not (tmp_path / "new").exists()
