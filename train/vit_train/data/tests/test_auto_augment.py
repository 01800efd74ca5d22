"""AutoAugment equals torchvision's bit for bit on the same draws, and changes no batch of a run without it."""

from typing import Literal

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision.transforms import AutoAugmentPolicy, InterpolationMode

from vit_core import InputError
from vit_core.pixels import Pixels
from vit_core.preprocess import Preprocessing
from vit_train.config import Augmentation, RandAugment
from vit_train.data.augmentation import augmented
from vit_train.data.auto_augment import POLICIES, POLICY_DRAWS, auto_augmented
from vit_train.data.batches import Batches
from vit_train.data.tests.fixed_draws import FEW_OR_MANY, picture
from vit_train.tests.small_run import CONFIG, quadrants

Policy = Literal["cifar10", "imagenet"]
FILL = (124, 116, 104)
MEAN = (0.485, 0.456, 0.406)


def torchvisions(
    image: Image.Image, policy: Policy, interpolation: str, draws: list[float], patch: pytest.MonkeyPatch
) -> Image.Image:
    """What torchvision makes of an image with the same draws."""
    which, *rest = torch.tensor(draws, dtype=torch.float64)
    chosen = int(which * 25), torch.stack(rest[:2]), torch.stack(rest[2:]) >= 0.5
    patch.setattr(torchvision.transforms.AutoAugment, "get_params", staticmethod(lambda _: chosen))
    fill = list(FILL[: len(image.getbands())])
    theirs = torchvision.transforms.AutoAugment(AutoAugmentPolicy(policy), InterpolationMode(interpolation), fill)
    changed: Image.Image = theirs(image)
    return changed


@pytest.mark.parametrize("count", FEW_OR_MANY)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("policy", ["cifar10", "imagenet"])
def test_it_equals_torchvisions(
    policy: Policy, channels: Literal[1, 3], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    for seed in range(count // 2 if channels == 1 else count):
        interpolation = ("bicubic", "bilinear", "nearest")[seed % 3]
        preprocessing = Preprocessing(
            image_size=8, channels=channels, mean=MEAN[:channels], std=MEAN[:channels], interpolation=interpolation
        )  # type: ignore[arg-type]
        draws = np.random.default_rng(seed).random(POLICY_DRAWS).tolist()
        image = picture(seed, channels)
        ours = auto_augmented(Pixels.of(image), policy, preprocessing, draws).image()
        theirs = torchvisions(image, policy, interpolation, draws, monkeypatch)
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs), err_msg=f"seed {seed}")
        seen.add(int(25 * draws[0]))
    assert seen == set(range(25)), "some pair of operations was never drawn"


@pytest.mark.parametrize("policy", POLICIES)
def test_the_policies_are_torchvisions(policy: str) -> None:
    theirs = torchvision.transforms.AutoAugment()._get_policies(AutoAugmentPolicy(policy))
    assert POLICIES[policy] == tuple(
        tuple((name, probability, level or 0) for name, probability, level in pair) for pair in theirs
    )


def test_it_comes_after_crop_and_flip_by_draws_of_its_own() -> None:
    """In the place of RandAugment: the draws of crop, flip and color jitter are those of images without it."""
    preprocessing = Preprocessing(image_size=(9, 12))
    wanted = Augmentation(crop_area=(0.2, 1.0), flip=0.5, auto_augment="cifar10")
    changed = 0
    for seed in range(20):
        cropped = augmented(
            picture(seed), preprocessing, wanted.replace(auto_augment=None), np.random.default_rng(seed)
        )
        draws = np.random.default_rng(seed).random(200).tolist()
        last = len(draws_of(wanted))
        expected = auto_augmented(Pixels(cropped), "cifar10", preprocessing, draws[last - POLICY_DRAWS : last])
        found = augmented(picture(seed), preprocessing, wanted, np.random.default_rng(seed))
        np.testing.assert_array_equal(found, expected.pixels_HWC)
        changed += int((found != cropped).any())
    assert changed > 10


class Counting:
    """A generator that remembers what was drawn from it."""

    def __init__(self) -> None:
        self.drawn: list[float] = []

    def random(self, count: int) -> np.ndarray:
        self.drawn += [0.5] * count
        return np.full(count, 0.5)


def draws_of(augmentation: Augmentation) -> list[float]:
    rng = Counting()
    augmented(picture(0), Preprocessing(image_size=12), augmentation, rng)  # type: ignore[arg-type]
    return rng.drawn


def test_a_run_without_it_draws_what_it_drew_before() -> None:
    """44 numbers for crops and the like, 50 for colors and erasing; then those of RandAugment, or of AutoAugment."""
    layers = RandAugment(layers=2)
    counts = [len(draws_of(Augmentation(**each))) for each in ({}, {"erasing": 0.5}, {"rand_augment": layers})]  # type: ignore[arg-type]
    assert counts == [44, 44 + 50, 44 + 50 + 12]
    assert len(draws_of(Augmentation(auto_augment="imagenet"))) == 44 + 50 + 5


def test_the_batches_of_a_run_are_changed() -> None:
    changes = Augmentation(auto_augment="cifar10")
    with_it, without = (
        Batches(quadrants(), CONFIG.replace(augmentation=each))[0].images_BHWC for each in (changes, Augmentation())
    )
    assert (with_it != without).any()


def test_both_policies_at_once_are_refused() -> None:
    with pytest.raises(InputError, match="auto_augment: RandAugment is on too"):
        Augmentation(auto_augment="cifar10", rand_augment=RandAugment(layers=2))
