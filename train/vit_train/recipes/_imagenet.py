"""What the recipes for ImageNet share: its splits, how its images are prepared, how a large run is logged."""

from typing import Any

from vit_core.preprocess import Preprocessing
from vit_train.config import Data, RandAugment

IMAGENET_1K = Data(name="imagenet2012", eval_split="validation")
IMAGENET_1K_99 = Data(name="imagenet2012", train_split="train[:99%]", eval_split="validation")
"""Google's split: the last percent of the training images is for choosing hyperparameters."""
IMAGENET_21K = Data(name="imagenet21k", train_split="full[51200:]", eval_split="full[25600:51200]")
"""big_vision's split of a set that has none."""
TRAIN_1K, TRAIN_1K_99, TRAIN_21K = 1_281_167, 1_268_355, 14_197_122 - 51_200
"""Training images of these three."""

RESIZE_256 = Preprocessing(image_size=224, crop_fraction=224 / 256)
"""224 pixels out of 256, in [-1, 1]."""
META = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
"""The normalization of torchvision, timm and DeiT."""
RAND_M9 = RandAugment(layers=2, operations="timm_increasing", magnitude=9.0, deviation=0.5)
"""timm's rand-m9-mstd0.5-inc1."""

LARGE_RUN: dict[str, Any] = {
    "compute_dtype": "bfloat16",
    "threads": 16,
    "log_every": 50,
    "evaluate_every": 5000,
    "save_every": 1000,
}
"""Fields of a run of days on accelerators that change nothing but its speed and what it records."""


def rand_augment_of_big_vision(layers: int, magnitude: float) -> RandAugment:
    """big_vision's `randaug(layers, magnitude)`."""
    return RandAugment(
        layers=layers, operations="big_vision", magnitude=magnitude, limit=max(magnitude, 10.0), probability=1.0
    )


def steps_of(epochs: int, images: int, batch_size: int) -> int:
    """Number of steps in a number of epochs."""
    return round(epochs * images / batch_size)
