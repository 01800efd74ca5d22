"""Small checkpoints of random values, for the tests."""

from pathlib import Path
from typing import Any

import numpy as np

from vit_core import Checkpoint, CheckpointConfig, ViTConfig, parity, save_checkpoint

MODEL = ViTConfig(image_size=8, patch_size=4, width=8, depth=1, heads=2, mlp_dim=8, num_classes=3)


def save_random(folder: Path, model: ViTConfig = MODEL, **changed: Any) -> Path:
    """A checkpoint of random values; `changed`: name with _ for . -> a function that changes the array in place."""
    arrays = {name: array.astype(np.float32) for name, array in parity.randomized(model, 0).items()}
    for name, change in changed.items():
        change(arrays[name.replace("_", ".")])
    save_checkpoint(folder, Checkpoint.of(CheckpointConfig(model=model), arrays))
    return folder


def set_to(value: float, *place: int) -> Any:
    """Sets one element of an array, or all of them."""

    def change(array: np.ndarray) -> None:
        array[place or ...] = value

    return change
