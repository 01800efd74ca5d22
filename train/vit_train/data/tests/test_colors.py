"""3-Augment equals timm's operations, color jitter torchvision's, bit for bit on the same draws."""

from itertools import permutations
from typing import Any

import numpy as np
import pytest
import timm.data.auto_augment as timm
import torch
import torchvision
from PIL import Image

from vit_core.preprocess import Preprocessing
from vit_train.config import Augmentation
from vit_train.data.augmentation import augmented
from vit_train.data.colors import jittered, three_augmented
from vit_train.data.tests.fixed_draws import FEW_OR_MANY, PythonRandom, picture


@pytest.mark.parametrize("count", FEW_OR_MANY)
def test_three_augment_equals_timms(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operations of timm's policy "3a", which stands for DeiT III's augment.py; there gray comes first."""
    solarize, gray, blur = (policy for (policy,) in timm.auto_augment_policy("3a", {"img_mean": (0, 0, 0)}))
    for seed in range(count):
        draws, image = np.random.default_rng(seed).random(2).tolist(), picture(seed)
        monkeypatch.setattr(timm, "random", PythonRandom([draws[1]]))
        expected = (gray, solarize, blur)[int(3 * draws[0])](image)
        np.testing.assert_array_equal(np.asarray(three_augmented(image, draws)), np.asarray(expected))


class TorchOf:
    """The part of torch that torchvision's ColorJitter uses, in float64, with given draws."""

    def __init__(self, draws: list[float]) -> None:
        self.draws = draws

    def randperm(self, _: int) -> torch.Tensor:
        return torch.tensor(tuple(permutations(range(4)))[int(24 * self.draws.pop(0))])

    def empty(self, _: int) -> Any:
        return self

    def uniform_(self, low: float, high: float) -> float:
        return low + (high - low) * self.draws.pop(0)


@pytest.mark.parametrize("count", FEW_OR_MANY)
@pytest.mark.parametrize("channels", [1, 3])
def test_color_jitter_equals_torchvisions(count: int, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    jitters = [(0.3, 0.3, 0.3, 0.0), (0.8, 1.5, 0.2, 0.5), (0.4, 0.0, 0.4, 0.1)]
    for seed in range(count // 2):
        jitter, image = jitters[seed % 3], picture(seed, channels)
        draws = np.random.default_rng(seed).random(5).tolist()
        asked = [draws[0], *(draw for draw, largest in zip(draws[1:], jitter, strict=True) if largest)]
        monkeypatch.setattr(torchvision.transforms.transforms, "torch", TorchOf(asked))
        monkeypatch.setattr(torchvision.transforms.ColorJitter, "__init__", torch.nn.Module.__init__)
        theirs = torchvision.transforms.ColorJitter()
        for name, largest, center in zip(
            ("brightness", "contrast", "saturation", "hue"), jitter, (1, 1, 1, 0), strict=True
        ):
            limits = {"center": center, "bound": (-0.5, 0.5) if name == "hue" else (0, float("inf"))}
            value = theirs._check_input(largest, name, clip_first_on_zero=name != "hue", **limits)
            setattr(theirs, name, value)
        expected = np.asarray(theirs(image))
        ours = jittered(image, Augmentation(color_jitter=jitter), draws)
        np.testing.assert_array_equal(np.asarray(ours), expected, err_msg=f"seed {seed}")


def test_colors_come_after_crop_and_flip() -> None:
    """On the resized image, by draws that no other change uses."""
    preprocessing = Preprocessing(image_size=(9, 12))
    both = Augmentation(crop_area=(0.2, 1.0), flip=0.5, three_augment=True, color_jitter=(0.3, 0.3, 0.3, 0.1))
    cropped = both.replace(three_augment=False, color_jitter=(0.0, 0.0, 0.0, 0.0))
    for seed in range(20):
        draws = np.random.default_rng(seed).random(44 + 9).tolist()
        plain = Image.fromarray(augmented(picture(seed), preprocessing, cropped, np.random.default_rng(seed)))
        expected = jittered(three_augmented(plain, draws[46:48]), both, draws[48:53])
        found = augmented(picture(seed), preprocessing, both, np.random.default_rng(seed))
        np.testing.assert_array_equal(found, np.asarray(expected))
