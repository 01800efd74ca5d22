"""Images and draws on which our augmentations are compared with those of other libraries."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

FEW_OR_MANY = [200, pytest.param(10_000, marks=pytest.mark.release)]
"""Numbers of fixed draws."""


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def picture(seed: int, channels: int = 3) -> Image.Image:
    """A small image of smooth colors with noise: operations on histograms and edges do more to it than to noise."""
    rng = np.random.default_rng([7, seed])
    height, width = (int(side) for side in rng.integers(6, 24, 2))
    y_H1, x_1W = np.mgrid[:height, :width]
    waves = [np.sin(y_H1 * rng.random() + x_1W * rng.random() + rng.random()) for _ in range(channels)]
    pixels_HWC = 127 + 90 * np.stack(waves, -1) + rng.integers(-30, 31, (height, width, channels))
    pixels = pixels_HWC.clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


class PythonRandom:
    """Python's module `random` for code of others, with draws from a list, one after the other."""

    def __init__(self, draws: Sequence[float]) -> None:
        self.draws = list(draws)

    def random(self) -> float:
        return self.draws.pop(0)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.random()

    def randint(self, low: int, high: int) -> int:
        return low + int(self.random() * (high - low + 1))

    def gauss(self, mean: float, deviation: float) -> float:
        from scipy.stats import norm

        return float(norm.ppf(self.random(), mean, deviation))

    def choice(self, choices: Sequence[Any]) -> Any:
        return choices[int(self.random() * len(choices))]
