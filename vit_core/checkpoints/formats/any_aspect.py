"""Preprocessing of checkpoints whose images keep their aspect ratio (NaFlex)."""

from math import prod

from vit_core.checkpoints.checkpoint import CheckpointConfig
from vit_core.config import ViTConfig
from vit_core.preprocess import Preprocessing


def is_any_aspect(config: CheckpointConfig) -> bool:
    """Whether the images keep their aspect ratio."""
    return config.preprocessing is not None and config.preprocessing.max_patches is not None


def assumed_preprocessing(model: ViTConfig) -> tuple[Preprocessing, str]:
    """The preprocessing that is assumed for a NaFlex model whose files do not state it, and a note."""
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
        f"preprocessing: images keep their aspect ratio, with at most {patches} patches, the number of positions; "
        "--preprocessing max_patches=N for another number"
    )
    return made, note
