"""Checkpoints whose images keep their aspect (NaFlex), in the formats that have such models."""

from math import prod

from vit_core.checkpoints.checkpoint import CheckpointConfig
from vit_core.config import ViTConfig
from vit_core.preprocess import Preprocessing


def is_any_aspect(config: CheckpointConfig) -> bool:
    """Whether images keep their aspect."""
    return config.preprocessing is not None and config.preprocessing.max_patches is not None


def assumed_preprocessing(model: ViTConfig) -> tuple[Preprocessing, str]:
    """How images are made for a model whose files do not show it, and a note of that."""
    patches = prod(model.grid)
    made = Preprocessing(
        image_size=model.image_size,
        channels=model.channels,
        interpolation="bilinear",
        resize="squash",
        max_patches=patches,
        patch_size=model.patch_size,
    )
    note = (
        f"preprocessing: images keep their aspect and have at most {patches} patches, as many as there are positions; "
        "--preprocessing max_patches=N for another number"
    )
    return made, note
