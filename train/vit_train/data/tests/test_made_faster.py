"""Batches have the bits that they had before they were made faster: in threads, and from images in memory."""

import io
import tracemalloc
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vit_core import InputError, ViTConfig
from vit_core.pixels import Pixels
from vit_core.planes import Planes
from vit_core.preprocess import Preprocessing
from vit_train.config import Augmentation, TrainConfig
from vit_train.data import batches as module
from vit_train.data.augmentation import DRAWS, augment_together, augmented, crops_only
from vit_train.data.batches import Batches, EvaluationBatches
from vit_train.data.decoded_images import Decoded, DecodedImages
from vit_train.data.draws import generators, uniforms
from vit_train.data.sources import Split
from vit_train.data.streams import stream

NAMES = tuple("0123456789")
CONFIG = TrainConfig(
    model=ViTConfig(
        image_size=24, patch_size=4, width=16, depth=2, heads=2, mlp_dim=16, num_classes=10, stochastic_depth=0.5
    ),
    augmentation=Augmentation(crop_area=(0.1, 1.0), flip=0.5, rotation=20, shift=0.2, mixup=0.5, cutmix=1.0),
    steps=70,
    batch_size=32,
    label_smoothing=0.1,
    seed=5,
)
WEIGHTED = CONFIG.replace(
    class_weights=("balanced",), augmentation=Augmentation(crop_area=(0.1, 1.0), flip=0.5, mixup=0.2)
)
SEVERAL = CONFIG.replace(loss="sigmoid", class_weights=tuple(range(1, 11)), sampling="balanced")


def examples() -> list[dict[str, Any]]:
    """PNG files, which have the same pixels everywhere, of many sizes."""
    rng, made = np.random.default_rng(0), []
    for i in range(96):
        file = io.BytesIO()
        pixels_HWC = rng.integers(0, 256, (20 + i % 13, 18 + i % 17, 3), np.uint8)
        Image.fromarray(pixels_HWC).save(file, "PNG")
        made.append({"image": file.getvalue(), "label": i % 10})
    return made


def split_of(config: TrainConfig) -> Split:
    if config.loss == "softmax":
        return Split(examples(), NAMES, "generated")
    sets = [tuple({i % 10, i % 7}) if i % 5 else () for i in range(96)]
    labelled = [{**example, "label": label} for example, label in zip(examples(), sets, strict=True)]
    return Split(labelled, NAMES, "generated", multilabel=True)


@pytest.mark.parametrize(
    ("config", "prints"),
    [
        (CONFIG, ["7885a94cc5ce4f67", "0324ce36f87b5ed5", "0df897607d0fb0a3"]),
        (WEIGHTED, ["b327d2ab09830266", "072b33438744348a", "deb955a00b89f0a9"]),
        (SEVERAL, ["fb207f0e85fd59be", "4fca4713593c6f1c", "67373e864a99a795"]),
    ],
    ids=["one class", "weighted", "several classes"],
)
def test_batches_are_those_of_earlier_versions(
    config: TrainConfig, prints: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Printed by the version before, whose images were decoded and drawn one by one; with Pillow 13."""
    for changed in (config, config.replace(image_cache=0)):
        batches = Batches(split_of(config), changed)
        for _ in range(2):  # the second time from memory
            assert [batches[i].fingerprint() for i in (0, 1, 50)] == prints
    monkeypatch.setattr(module, "SMALL", 0)  # otherwise one thread makes images of this size
    assert [batches.make(i, threads=5).fingerprint() for i in (0, 1, 50)] == prints
    for threads in (1, 3):
        assert [batch.fingerprint() for batch in stream(batches, slice(0, 2), threads)] == prints[:2]


@pytest.mark.parametrize(("largest", "cache", "expected"), [(36, 1, [3, 1]), (20, 1, [3, 3]), (36, 0, [3, 3])])
def test_one_thread_makes_small_images_that_are_decoded(
    largest: int, cache: int, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sides of the images here are between 18 and 36 pixels, but they begin with 20 x 18."""
    asked: list[int] = []

    def noting(work: Any, count: int, threads: int) -> None:
        asked.append(threads)
        work(range(count))

    monkeypatch.setattr(module, "in_threads", noting)
    monkeypatch.setattr(module, "SMALL", largest)
    batches = Batches(split_of(CONFIG), CONFIG.replace(image_cache=cache, batch_size=96))
    for _ in range(2):
        batches.make(0, threads=3)
    assert asked == expected


def test_each_image_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(module, "decode", lambda *given: calls.append(1) or Pixels(np.zeros((24, 24, 3), np.uint8)))
    for config, expected in ((CONFIG, 96), (CONFIG.replace(image_cache=0), 6 * 32)):
        calls.clear()
        batches = Batches(split_of(CONFIG), config)
        for step in range(6):  # two epochs
            batches[step]
        assert len(calls) == expected


def pixels(height: int) -> Decoded:
    return Decoded(Pixels(np.zeros((height, 10, 1), np.uint8)), np.zeros(1, np.int64))


def test_nothing_is_kept_of_a_set_that_would_not_fit() -> None:
    images = DecodedImages(count=11, limit=1000)
    images.keep(3, pixels(10))  # 100 bytes; eleven of them are more than the limit
    images.keep(4, pixels(1))
    assert images.get(3) is images.get(4) is None


def test_the_limit_holds_where_images_differ_in_size() -> None:
    images = DecodedImages(count=10, limit=1000)
    for i, height in enumerate((10, 80, 20, 10)):
        images.keep(i, pixels(height))
    assert [images.get(i) is not None for i in range(4)] == [True, True, False, True]
    assert images.bytes == 1000


def test_what_cannot_be_read_is_not_kept() -> None:
    images = DecodedImages(count=2, limit=1000)
    images.keep(0, Decoded(None, np.zeros(1, np.int64)))
    images.keep(1, Decoded(Planes.of(np.zeros((2, 2, 4), np.uint8), 8), np.zeros(1, np.int64)))
    assert images.get(0) is images.get(1) is None


def test_an_error_in_a_thread_is_raised() -> None:
    broken = examples()
    broken[7] = {"image": b"", "label": 3}
    with pytest.raises(InputError, match=r"generated\[7\]: cannot decode image bytes: it is empty"):
        EvaluationBatches(Split(broken, NAMES, "generated"), CONFIG.preprocessing, 32).make(0, threads=3)
    broken[7] = {**broken[6], "label": 77}
    with pytest.raises(InputError, match=r"generated\[7\]: label 77"):
        Batches(Split(broken, NAMES, "generated"), CONFIG.replace(batch_size=96)).make(0, threads=3)


@pytest.mark.slow
def test_few_batches_wait_however_many_threads() -> None:
    """16 threads once held 32 batches. Now two are in the making, two wait, and one is used."""
    config = CONFIG.replace(
        model=CONFIG.model.replace(image_size=256), augmentation=Augmentation(), image_cache=0, batch_size=48
    )
    batches = Batches(split_of(CONFIG), config.replace(preprocessing=None))
    size = batches[0].images_BHWC.nbytes
    tracemalloc.start()
    try:
        made = stream(batches, slice(0, 18), threads=16)
        for _ in range(12):
            next(made)
        peak = tracemalloc.get_traced_memory()[1]
        assert len(list(made)) == 6  # tracemalloc of Python 3.11 may crash if a thread allocates while it is stopped
    finally:
        tracemalloc.stop()
    assert size < peak < 7 * size


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(24, 40), (40, 24)], ids=str)
def test_images_made_together_are_those_made_one_by_one(
    interpolation: Any, channels: int, size: tuple[int, int]
) -> None:
    """Also where no try of a crop fits, for which the central one is taken."""
    rng = np.random.default_rng(0)
    images = [Pixels(rng.integers(0, 256, (*size, channels), np.uint8)) for _ in range(64)]
    made = Preprocessing(image_size=(16, 24), channels=channels, interpolation=interpolation)
    for augmentation in (
        Augmentation(crop_area=(0.05, 1.0), flip=0.5),
        Augmentation(crop_area=(0.9, 1.0), crop_ratio=(0.9, 1.1), flip=1.0),
    ):
        found = np.zeros((64, 16, 24, channels), np.uint8)
        assert crops_only(made, augmentation)
        assert augment_together(images, made, augmentation, uniforms(3, 1, range(64), DRAWS), found)
        for image, found_HWC, each in zip(images, found, generators(3, 1, range(64)), strict=True):
            np.testing.assert_array_equal(found_HWC, augmented(image, made, augmentation, each))
    images[7] = Pixels(np.zeros((16, 24, channels), np.uint8))
    assert not augment_together(images, made, augmentation, uniforms(3, 1, range(64), DRAWS), found)


def test_what_needs_more_than_crops_is_made_one_by_one() -> None:
    made, crops = Preprocessing(image_size=16), Augmentation(crop_area=(0.3, 1.0), flip=0.5, mixup=0.2)
    for change in ({"rotation": 5.0}, {"shift": 0.1}, {"three_augment": True}, {"erasing": 0.2}, {"crop_area": None}):
        assert not crops_only(made, crops.replace(**change))
