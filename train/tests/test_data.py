"""Batch i is a function of (seed, i) alone; examples count once; what augmentation and targets are."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from train import data, digits
from train.config import Augmentation, TrainConfig
from vit_core import ViTConfig
from vit_core.preprocess import Preprocessing

MODEL = ViTConfig(
    image_size=8,
    patch_size=4,
    channels=1,
    width=16,
    depth=2,
    heads=2,
    mlp_dim=16,
    num_classes=10,
    stochastic_depth=0.5,
    dropout=0.1,
)
CONFIG = TrainConfig(
    model=MODEL,
    preprocessing=Preprocessing(image_size=8, channels=1),
    augmentation=Augmentation(rotation=20, shift=0.2),
    steps=70,
    batch_size=32,
    label_smoothing=0.1,
    seed=5,
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return digits.prepare(tmp_path_factory.mktemp("data"))


def fingerprint(batch: data.Batch) -> str:
    arrays = [
        batch.images_BHWC,
        batch.targets_BC,
        batch.weights_B,
        *(batch.masks[site] for site in sorted(batch.masks)),
    ]
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def test_digits_are_scikit_learns(prepared: Any) -> None:
    train, test, labels = prepared
    assert (len(train), len(test), labels) == (1437, 360, tuple("0123456789"))
    seen = [data.read(example, CONFIG.preprocessing)[..., 0] for split in (train, test) for example in split]
    expected = np.round(load_digits().images * 255 / 16).astype(np.uint8)
    assert sorted(image.tobytes() for image in seen) == sorted(image.tobytes() for image in expected)
    held_out = {data.read(example, CONFIG.preprocessing).tobytes() for example in test}
    assert held_out <= {image.tobytes() for image in expected[::5]}


def test_a_prepared_set_is_read_again(prepared: Any, tmp_path: Path) -> None:
    first, again = digits.prepare(tmp_path)[0], digits.prepare(tmp_path)[0]
    assert first[7]["image"] == again[7]["image"] == prepared[0][7]["image"]


def test_batches_are_a_function_of_seed_and_index(prepared: Any) -> None:
    by_index = data.batches(prepared[0], CONFIG)
    alone = {i: fingerprint(by_index[i]) for i in (69, 3, 50)}
    streamed = [fingerprint(batch) for batch in data.stream(data.batches(prepared[0], CONFIG), 0, 70)]
    assert len(streamed) == len(set(streamed)) == 70
    assert {i: streamed[i] for i in alone} == alone
    resumed = [fingerprint(batch) for batch in data.stream(data.batches(prepared[0], CONFIG), 41, 70)]
    assert resumed == streamed[41:]
    assert fingerprint(data.batches(prepared[0], CONFIG.replace(seed=6))[3]) != alone[3]


def test_an_epoch_shows_each_example_once(prepared: Any) -> None:
    plain = CONFIG.replace(augmentation=Augmentation(), batch_size=479)
    batches = data.batches(prepared[0], plain)
    first, second = (
        [image.tobytes() for i in epoch for image in batches[i].images_BHWC] for epoch in ((0, 1, 2), (3, 4, 5))
    )
    everything = sorted(data.read(example, plain.preprocessing).tobytes() for example in prepared[0])
    assert sorted(first) == sorted(second) == everything
    assert first != second


def test_what_a_batch_holds(prepared: Any) -> None:
    batch = data.batches(prepared[0], CONFIG)[0]
    assert batch.images_BHWC.dtype == np.uint8
    assert batch.images_BHWC.shape == (32, 8, 8, 1)
    np.testing.assert_allclose(np.unique(batch.targets_BC), [0.01, 0.91], rtol=1e-7)  # float32 of 0.1/10, 0.9 + 0.1/10
    np.testing.assert_allclose(batch.targets_BC.sum(axis=1), 1, rtol=1e-6)  # ten float32 roundings
    assert set(batch.masks) == {"pos_drop", "attn.proj_drop", "mlp.drop1", "mlp.drop2", "drop_path1", "drop_path2"}
    assert batch.masks["drop_path1"].shape == (2, 32)
    assert set(np.unique(batch.masks["drop_path1"][1])) == {0.0, 2.0}
    assert (batch.masks["drop_path1"][0] == 1).all()


@pytest.mark.parametrize(("angle", "turns"), [(90, 1), (180, 2)])
def test_augmentation_rotates_as_numpy_does(angle: float, turns: int) -> None:
    class Always:
        def uniform(self, *_: float) -> np.ndarray:
            return np.array([1.0, 0.0, 0.0])

    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    turned = data.augment(pixels, Augmentation(rotation=angle), Always())  # type: ignore[arg-type]
    expected = [np.rot90(pixels, turns), np.rot90(pixels, -turns)]
    # Bicubic at points that fall on pixels up to rounding: off by one level at most.
    assert min(np.abs(turned[1:-1, 1:-1].astype(int) - e[1:-1, 1:-1]).max() for e in expected) <= 1


def test_augmentation_shifts_by_whole_pixels_exactly() -> None:
    class Always:
        def uniform(self, *_: float) -> np.ndarray:
            return np.array([0.0, 0.5, -0.5])

    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 1), np.uint8)
    moved = data.augment(pixels, Augmentation(shift=0.5), Always())  # type: ignore[arg-type]
    np.testing.assert_array_equal(moved[:6, 2:], pixels[2:, :6])


def test_no_augmentation_is_the_evaluation_transform(prepared: Any) -> None:
    batch = data.batches(prepared[0], CONFIG.replace(augmentation=Augmentation()))[0]
    everything = {data.read(example, CONFIG.preprocessing).tobytes() for example in prepared[0]}
    assert {image.tobytes() for image in batch.images_BHWC} <= everything


@pytest.mark.parametrize("batch_size", [100, 360, 500])
def test_evaluation_counts_each_example_once(prepared: Any, batch_size: int) -> None:
    labels: list[int] = []
    for images_BHWC, labels_B, counts_B in data.evaluation_batches(prepared[1], CONFIG.preprocessing, batch_size):
        assert len(images_BHWC) == len(labels_B) == len(counts_B) == batch_size
        labels += list(labels_B[counts_B])
    assert labels == [int(example["label"]) for example in prepared[1]]


def test_images_are_decoded_from_files_of_any_kind(tmp_path: Path) -> None:
    Image.new("RGB", (20, 10), (255, 0, 0)).save(tmp_path / "a.jpg")
    example: Mapping[str, Any] = {"image": (tmp_path / "a.jpg").read_bytes(), "label": 0}
    assert data.read(example, Preprocessing(image_size=8)).shape == (8, 8, 3)
