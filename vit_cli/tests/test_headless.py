"""A checkpoint without a head, as self-supervised training and feature extractors leave it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from vit_core import ViTConfig, open_checkpoint, parity
from vit_train.tests.small_run import folder_of_images

MODEL = ViTConfig(
    image_size=8,
    patch_size=4,
    width=16,
    depth=2,
    heads=2,
    mlp_dim=32,
    num_classes=0,
    activation="gelu",
    norm_epsilon=1e-6,
)


def test_evaluated_never_and_fine_tuned(vit: Callable[..., str], tmp_path: Path) -> None:
    """Evaluation refuses it in one line; fine-tuning gives it a head of zeros for the folder's classes."""
    weights = parity.randomized(MODEL, 0)
    headless = tmp_path / "headless.pth"
    torch.save({name: torch.from_numpy(array.astype(np.float32)) for name, array in weights.items()}, headless)
    images = f"{folder_of_images(tmp_path / 'images')}/"
    heads = ("--set", "heads=2")
    refusal = vit("evaluate", headless, "--data", images, *heads, status=2)
    assert f"vit: error: {headless}: has no head, so no classes to evaluate; fine-tune it first" in refusal
    training = ("--steps", "2", "--batch-size", "8", "--framework", "torch", "--image-size", "8")
    out = vit("finetune", "folder", "--init", headless, "--data", images, *training, *heads, "--out", tmp_path / "run")
    assert "a new head, zero-initialized: 0 classes before, 4 now" in out
    tuned = open_checkpoint(tmp_path / "run" / "checkpoint")
    assert tuned.config.model.num_classes == 4
    assert tuned.config.labels is not None
    before, after = weights["blocks.0.mlp.fc1.weight"], tuned.arrays["blocks.0.mlp.fc1.weight"]
    assert 0 < np.abs(after - before).max() < 0.01 * np.abs(before).max()  # two steps of AdamW from these very weights
    assert "4 classes, macro F1" in vit("evaluate", tmp_path / "run", "--data", images)
