"""Repeated augmentation deals images out as timm's sampler does; old configs keep their batches."""

from typing import Any

import numpy as np
import pytest
import timm.data.distributed_sampler as timm
import torch

from vit_core import InputError
from vit_train.config import Augmentation
from vit_train.data.batches import Batches
from vit_train.data.repeats import RepeatedOrder
from vit_train.data.streams import stream
from vit_train.tests.small_run import CONFIG, quadrants

BEFORE = ["5e191935a1399435", "582523bffc205930"]


class Shuffled:
    """Another order in each epoch of `length` examples."""

    def __init__(self, length: int) -> None:
        self.length = length

    def epoch(self, number: int) -> np.ndarray:
        return np.random.default_rng(number).permutation(self.length)

    def take(self, numbers_B: np.ndarray) -> np.ndarray:
        epochs_B, places_B = np.divmod(numbers_B, self.length)
        return np.array([self.epoch(epoch)[place] for epoch, place in zip(epochs_B, places_B, strict=True)])


@pytest.mark.parametrize(("length", "repeats"), [(1000, 3), (256, 2), (770, 16), (2049, 1)])
def test_it_equals_timms_sampler_over_sixteen_processes(
    length: int, repeats: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    order, used = RepeatedOrder(Shuffled(length), length, repeats), length // 256 * 256  # type: ignore[arg-type]
    for epoch in range(3):
        monkeypatch.setattr(torch, "randperm", lambda n, generator, e=epoch: torch.tensor(Shuffled(n).epoch(e)))
        processes = []
        for rank in range(16):
            sampler: Any = timm.RepeatAugSampler(range(length), 16, rank, num_repeats=repeats)
            processes.append(list(sampler))
        # Blocks of 256: sixteen examples of each process, one process after the other.
        expected = np.array(processes).reshape(16, -1, 16).transpose(1, 0, 2).ravel()
        np.testing.assert_array_equal([order[epoch * used + i] for i in range(used)], expected)


def test_neighbours_are_different_images() -> None:
    """They may be mixed with each other."""
    order = RepeatedOrder(Shuffled(600), 600, 16)  # type: ignore[arg-type]
    numbers = np.array([order[i] for i in range(5 * 512)]).reshape(-1, 2)
    assert (numbers[:, 0] != numbers[:, 1]).all()


def test_copies_are_changed_differently_and_evenly() -> None:
    changes = Augmentation(crop_area=(0.3, 1.0), repeats=4)
    config = CONFIG.replace(augmentation=changes, batch_size=256)
    batch = Batches(quadrants(256), config)[0]
    ids, counts = np.unique(batch.ids_B, return_counts=True)
    assert (len(ids), set(counts)) == (64, {4})
    copies = batch.images_BHWC[batch.ids_B == ids[0]]
    assert len({copy.tobytes() for copy in copies}) == 4


def test_few_images_and_balanced_sampling_are_refused() -> None:
    repeated = CONFIG.replace(augmentation=Augmentation(repeats=3))
    with pytest.raises(InputError, match=r"augmentation\.repeats: 3 for 64 images; expected 256 or more"):
        _ = Batches(quadrants(64), repeated)
    with pytest.raises(InputError, match=r"augmentation\.repeats: 17: expected at most 16"):
        _ = Batches(quadrants(256), repeated.replace(augmentation=Augmentation(repeats=17)))
    with pytest.raises(InputError, match="is for sampling 'shuffled'"):
        repeated.replace(sampling="balanced")


@pytest.mark.slow
def test_worker_processes_make_the_same_batches() -> None:
    changes = Augmentation(crop_area=(0.3, 1.0), repeats=4, erasing=0.5, erasing_fill="noise", mixup=0.2)
    batches = Batches(quadrants(256), CONFIG.replace(augmentation=changes, batch_size=32))
    by_workers = stream(batches, slice(0, 3), threads=1, workers=1)
    assert [batch.fingerprint() for batch in by_workers] == [batches[step].fingerprint() for step in range(3)]


def test_configs_of_before_keep_their_batches() -> None:
    """Hashes of what was made before there were RandAugment, colors, erasing and repeats."""
    assert [Batches(quadrants(), CONFIG)[step].fingerprint() for step in range(2)] == BEFORE


@pytest.mark.parametrize("mixing", [{"mixup": 0.8}, {"cutmix": 1.0}])
def test_all_targets_of_a_mixture(mixing: dict[str, float]) -> None:
    """DeiT III's: one wherever the mixed target is above zero."""
    config = CONFIG.replace(augmentation=Augmentation(**mixing), loss="sigmoid")
    split = quadrants()
    shares = Batches(split, config)
    every = Batches(split, config.replace(augmentation=config.augmentation.replace(mixed_targets="all")))
    for step in range(4):
        np.testing.assert_array_equal(every[step].targets_BC, (shares[step].targets_BC > 0).astype(np.float32))
        np.testing.assert_array_equal(every[step].images_BHWC, shares[step].images_BHWC)
