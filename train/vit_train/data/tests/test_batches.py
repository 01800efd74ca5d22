"""Batch i is a function of (seed, i) alone; examples count once; unreadable ones are skipped and shift nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from vit_core import InputError, ViTConfig
from vit_core.preprocess import Preprocessing
from vit_train.config import Augmentation, Data, TrainConfig
from vit_train.data import digits
from vit_train.data.batches import (
    Batch,
    Batches,
    EvaluationBatches,
    evaluation_pixels,
)
from vit_train.data.sources import Split, open_split
from vit_train.data.streams import stream
from vit_train.data.targets import smooth_targets

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
    augmentation=Augmentation(crop_area=(0.5, 1.0), flip=0.5, rotation=20, shift=0.2, mixup=0.5, cutmix=1.0),
    steps=70,
    batch_size=32,
    label_smoothing=0.1,
    seed=5,
)
PLAIN = CONFIG.replace(augmentation=Augmentation(), label_smoothing=0.0)


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Split, Split]:
    where = Data(name="digits", directory=str(tmp_path_factory.mktemp("data")))
    return open_split(where, "train"), open_split(where, "eval")


def joined(parts: list[Batch]) -> Batch:
    """The parts of a batch that several processes made, joined."""
    masks = {
        site: np.concatenate([part.masks[site] for part in parts], axis=0 if site == "pos_drop" else 1)
        for site in parts[0].masks
    }
    arrays = [np.concatenate([part[i] for part in parts]) for i in range(5)]
    return Batch(*arrays, masks, np.concatenate([part.ids_B for part in parts]))


def test_digits_equal_scikit_learns(splits: tuple[Split, Split]) -> None:
    train, test = splits
    assert (len(train), len(test), train.labels) == (1437, 360, tuple("0123456789"))
    pixels = Preprocessing(image_size=8, channels=1)
    seen = [evaluation_pixels(example, pixels)[..., 0].tobytes() for split in splits for example in split.examples]
    expected = np.round(load_digits().images * 255 / 16).astype(np.uint8)
    assert sorted(seen) == sorted(image.tobytes() for image in expected)
    held_out = {evaluation_pixels(example, pixels).tobytes() for example in test.examples}
    assert held_out <= {image.tobytes() for image in expected[::5]}


def test_a_prepared_set_is_used_again(splits: tuple[Split, Split], tmp_path: Path) -> None:
    first, again = digits.prepare(tmp_path)[0], digits.prepare(tmp_path)[0]
    assert first[7]["image"] == again[7]["image"] == splits[0].examples[7]["image"]


@pytest.mark.slow
def test_batches_are_a_function_of_seed_and_index(splits: tuple[Split, Split]) -> None:
    """The same by index, from a stream of 1 or 2 threads, of 1 or 2 workers, and from any step on."""
    batches = Batches(splits[0], CONFIG)
    prints = [batches[i].fingerprint() for i in range(70)]
    assert len(set(prints)) == 70
    assert [batch.fingerprint() for batch in stream(batches, slice(0, 70), threads=2)] == prints
    for start in (1, 41, 69):
        streamed = stream(batches, slice(start, start + 4), threads=1)
        assert [batch.fingerprint() for batch in streamed] == prints[start : start + 4]
    for workers in (1, 2):
        streamed = stream(batches, slice(43, 70), threads=1, workers=workers)
        assert [batch.fingerprint() for batch in streamed] == prints[43:]
    assert Batches(splits[0], CONFIG.replace(seed=6))[3].fingerprint() != prints[3]


def test_processes_make_parts_of_the_same_batches(splits: tuple[Split, Split]) -> None:
    whole = Batches(splits[0], CONFIG)
    for hosts in (2, 4):
        parts = [Batches(splits[0], CONFIG, rows) for rows in np.split(np.arange(CONFIG.batch_size), hosts)]
        for i in (0, 50):
            assert {len(part[i].images_BHWC) for part in parts} == {32 // hosts}
            assert joined([part[i] for part in parts]).fingerprint() == whole[i].fingerprint()


def test_a_fingerprint_depends_on_every_field(splits: tuple[Split, Split]) -> None:
    batch = Batches(splits[0], CONFIG)[0]
    for i, name in enumerate(Batch._fields[:5]):
        changed = np.array(batch[i])
        changed.flat[0] += 1
        assert batch._replace(**{name: changed}).fingerprint() != batch.fingerprint()
    for site in batch.masks:
        changed = batch.masks[site] + 1
        assert batch._replace(masks={**batch.masks, site: changed}).fingerprint() != batch.fingerprint()


def test_an_epoch_has_each_example_once(splits: tuple[Split, Split]) -> None:
    batches = Batches(splits[0], PLAIN.replace(batch_size=479))
    first, second = (
        [image.tobytes() for i in epoch for image in batches[i].images_BHWC] for epoch in ((0, 1, 2), (3, 4, 5))
    )
    everything = sorted(evaluation_pixels(example, PLAIN.preprocessing).tobytes() for example in splits[0].examples)
    assert sorted(first) == sorted(second) == everything
    assert first != second


def test_contents_of_a_batch(splits: tuple[Split, Split]) -> None:
    batch = Batches(splits[0], CONFIG.replace(augmentation=Augmentation()))[0]
    assert batch.images_BHWC.dtype == np.uint8
    assert batch.images_BHWC.shape == (32, 8, 8, 1)
    np.testing.assert_allclose(np.unique(batch.targets_BC), [0.01, 0.91], rtol=1e-7)  # float32 of 0.1/10, 0.9 + 0.1/10
    assert (batch.targets_BC.argmax(axis=1) == [splits[0].examples[i]["label"] for i in batch.ids_B]).all()
    assert (batch.own_share_B == 1).all()
    assert not batch.boxes_B4.any()
    assert set(batch.masks) == {"pos_drop", "attn.proj_drop", "mlp.drop1", "mlp.drop2", "drop_path1", "drop_path2"}
    assert batch.masks["drop_path1"].shape == (2, 32)
    assert set(np.unique(batch.masks["drop_path1"][1])) == {0.0, 2.0}
    assert (batch.masks["drop_path1"][0] == 1).all()


def test_both_images_of_a_pair_are_mixed_equally(splits: tuple[Split, Split]) -> None:
    mixed, plain = Batches(splits[0], CONFIG)[3], Batches(splits[0], CONFIG.replace(augmentation=Augmentation()))[3]
    assert (mixed.ids_B == plain.ids_B).all()
    assert (mixed.own_share_B[::2] == mixed.own_share_B[1::2]).all()
    assert (mixed.boxes_B4[::2] == mixed.boxes_B4[1::2]).all()
    cut = mixed.boxes_B4.any(axis=1)
    assert 0 < cut.sum() < 32, "both kinds occur"
    assert len(np.unique(mixed.own_share_B)) > 4
    top, left, bottom, right = mixed.boxes_B4.T
    share_B1 = np.where(cut, 1 - (bottom - top) * (right - left) / 64, mixed.own_share_B)[:, None]
    partner_BC = plain.targets_BC.reshape(16, 2, 10)[:, ::-1].reshape(32, 10)
    # float32 of a float64 sum of two float32 targets.
    np.testing.assert_allclose(mixed.targets_BC, share_B1 * plain.targets_BC + (1 - share_B1) * partner_BC, atol=1e-7)


def test_no_augmentation_is_the_evaluation_transform(splits: tuple[Split, Split]) -> None:
    batch = Batches(splits[0], PLAIN)[0]
    for i, image_HWC in zip(batch.ids_B, batch.images_BHWC, strict=True):
        np.testing.assert_array_equal(image_HWC, evaluation_pixels(splits[0].examples[int(i)], PLAIN.preprocessing))


def test_unreadable_images_are_skipped_and_shift_nothing(splits: tuple[Split, Split]) -> None:
    train = splits[0]
    whole = Batches(train, CONFIG)[0]
    broken = list(train.examples)
    lost = int(whole.ids_B[6])
    broken[lost] = {"image": broken[lost]["image"][:40], "label": broken[lost]["label"]}
    batch = Batches(Split(broken, train.labels, train.title), CONFIG)[0]
    assert batch.weights_B.tolist() == [1.0] * 6 + [0.0] + [1.0] * 25
    assert not batch.images_BHWC[6].any()
    others = np.arange(32) // 2 != 3
    for field in ("images_BHWC", "targets_BC", "own_share_B", "boxes_B4", "ids_B"):
        np.testing.assert_array_equal(getattr(batch, field)[others], getattr(whole, field)[others])
    assert batch.own_share_B[7] == 1, "its partner is not mixed with an empty image"
    assert not batch.boxes_B4[6:8].any()
    label = broken[int(batch.ids_B[7])]["label"]
    np.testing.assert_array_equal(batch.targets_BC[7], smooth_targets(np.array([label]), CONFIG)[0])


@pytest.mark.parametrize("batch_size", [100, 360, 500])
def test_evaluation_counts_each_example_once(splits: tuple[Split, Split], batch_size: int) -> None:
    labels: list[int] = []
    batches = EvaluationBatches(splits[1], PLAIN.preprocessing, batch_size)
    for batch in stream(batches, slice(None)):
        assert {len(array) for array in batch} == {batch_size}
        labels += list(batch.labels_B[batch.counts_B])
    assert labels == [int(example["label"]) for example in splits[1].examples]


def test_evaluation_needs_every_image_unless_allowed(splits: tuple[Split, Split]) -> None:
    broken = list(splits[1].examples)
    broken[3] = {"image": b"", "label": 3}
    split = Split(broken, splits[1].labels, "mine test")
    with pytest.raises(InputError, match=r"mine test\[3\]: cannot decode image bytes: it is empty"):
        EvaluationBatches(split, PLAIN.preprocessing, 8)[0]
    batch = EvaluationBatches(split, PLAIN.preprocessing, 8, allow_undecodable=True)[0]
    assert batch.counts_B.tolist() == [True] * 3 + [False] + [True] * 4


def test_a_label_that_is_no_class_is_refused(splits: tuple[Split, Split]) -> None:
    for label in (10, -1):
        examples = [{**example, "label": label} for example in list(splits[0].examples)[:40]]
        split = Split(examples, splits[0].labels, "mine")
        for made in (Batches(split, CONFIG), EvaluationBatches(split, CONFIG.preprocessing, 8)):
            with pytest.raises(InputError, match=rf"mine\[\d+\]: label {label}, expected 0 to 9"):
                made[0]


def test_impossible_batches_are_refused(splits: tuple[Split, Split]) -> None:
    wide = PLAIN.replace(batch_size=256, model=MODEL.replace(width=1024, mlp_dim=2**18))
    with pytest.raises(InputError, match=r"model.dropout: the masks of a batch of 256 take [\d.]+ GiB"):
        Batches(splits[0], wide)
    with pytest.raises(InputError, match="batch_size: 2000 is more than the 1437 examples of digits train"):
        Batches(splits[0], CONFIG.replace(batch_size=2000))


def test_images_are_decoded_from_files_of_any_kind(tmp_path: Path) -> None:
    Image.new("RGB", (20, 10), (255, 0, 0)).save(tmp_path / "a.jpg")
    example: dict[str, Any] = {"image": (tmp_path / "a.jpg").read_bytes(), "label": 0}
    assert evaluation_pixels(example, Preprocessing(image_size=8)).shape == (8, 8, 3)
