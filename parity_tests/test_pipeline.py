"""`vit_jax.pipeline` and `vit_torch.pipeline` against transformers' image-classification pipeline, and each other."""

from pathlib import Path

import numpy as np
import pytest
import transformers as hf
from PIL import Image

import vit_jax
import vit_torch
from vit_core import Checkpoint, CheckpointConfig, ViTConfig, open_checkpoint, parity, save_checkpoint
from vit_core.pipeline import Prediction
from vit_core.preprocess import Preprocessing

MODEL = ViTConfig(image_size=16, patch_size=8, width=16, depth=2, heads=2, mlp_dim=32, num_classes=4, activation="gelu")
LABELS = ("north", "east", "south", "west")
PIXELS = Preprocessing(image_size=16, resize="squash", mean=(0.4, 0.5, 0.6), interpolation="bilinear")
TWINS = pytest.mark.parametrize("twin", [vit_jax, vit_torch], ids=["jax", "torch"])
BOUND = 10 * parity.FLOAT32_BOUND
"""Bound of probabilities, from logits of at most 10 that are within parity.FLOAT32_BOUND of their scale: no probability
grows faster than its logit."""


def pictures(folder: Path, count: int = 5) -> list[str]:
    paths = []
    for i in range(count):
        pixels_HWC = np.random.default_rng(i).integers(0, 256, (20 + i, 30 - i, 3), np.uint8)
        Image.fromarray(pixels_HWC).save(folder / f"{i}.png")
        paths.append(str(folder / f"{i}.png"))
    return paths


def weights(probabilities: str) -> Checkpoint:
    config = CheckpointConfig(model=MODEL, labels=LABELS, preprocessing=PIXELS, probabilities=probabilities)
    arrays = {name: array.astype(np.float32) for name, array in parity.randomized(MODEL, 0).items()}
    return Checkpoint.of(config, arrays)


@TWINS
@pytest.mark.parametrize("probabilities", ["softmax", "sigmoid"])
def test_predictions_are_transformers(twin, probabilities: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """The activation is written and read: sigmoid as transformers' problem_type."""
    paths, hub = pictures(tmp_path), tmp_path / "hub"
    save_checkpoint(hub, weights(probabilities), format="transformers")
    assert open_checkpoint(hub).config.probabilities == ("sigmoid" if probabilities == "sigmoid" else None)
    theirs = hf.ImageClassificationPipeline(
        model=hf.ViTForImageClassification.from_pretrained(hub),
        image_processor=hf.ViTImageProcessorPil.from_pretrained(hub),
        device="cpu",
    )
    for prediction, expected in zip(twin.pipeline(hub, top_k=3)(paths), theirs(paths, top_k=3), strict=True):
        assert prediction.labels == tuple(each["label"] for each in expected)
        assert prediction.probabilities == pytest.approx([each["score"] for each in expected], abs=BOUND)
    assert np.ptp(prediction.probabilities) > 100 * BOUND, "a test in which classes differ"


@TWINS
def test_paths_images_and_arrays_are_one_picture(twin, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (path,), classify = pictures(tmp_path, 1), twin.pipeline(weights("softmax"))
    with Image.open(path) as image:
        first, *others = classify([path, Path(path), image, np.asarray(image)])
    assert isinstance(first, Prediction)
    assert others == [first] * 3
    assert classify(path).probabilities == pytest.approx(first.probabilities, abs=BOUND)


def test_float64_and_other_sizes_in_both_twins(tmp_path: Path) -> None:
    """Twins that agree to parity.FLOAT64_BOUND of the largest logit, here at most 10, give such probabilities."""
    paths = pictures(tmp_path)
    in_jax, in_torch = (
        twin.pipeline(weights("softmax"), dtype="float64", image_size=24)(paths) for twin in (vit_jax, vit_torch)
    )
    for a, b in zip(in_jax, in_torch, strict=True):
        assert a.labels == b.labels
        assert a.probabilities == pytest.approx(b.probabilities, abs=10 * parity.FLOAT64_BOUND)


def test_several_torch_devices_share_a_batch(tmp_path: Path) -> None:
    """Rows of a matrix product of another height may be rounded in another order."""
    paths = pictures(tmp_path)
    one, three = (vit_torch.pipeline(weights("softmax"), devices=["cpu"] * n) for n in (1, 3))
    for a, b in zip(one(paths), three(paths), strict=True):
        assert a.labels == b.labels
        assert a.probabilities == pytest.approx(b.probabilities, abs=BOUND)
