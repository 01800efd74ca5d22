"""Calibration against scikit-learn's curve, ReaL labels against timm's."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from timm.data import RealLabelsImagenet

from vit_core import InputError
from vit_train.calibration import BINS, calibration
from vit_train.data.sources import Split
from vit_train.evaluation import confidences, evaluate
from vit_train.real_labels import RealLabels
from vit_train.tests.small_run import CONFIG, quadrants


class Logits:
    """A predictor whose logits depend on the pixels, in one process."""

    name, hardware, process, processes, batch_shards, primary = "test", "1 x test", 0, 1, 1, True

    def rows(self, size: int) -> None:
        return None

    def total(self, counts: np.ndarray) -> np.ndarray:
        return counts

    def predict(self, images_BHWC: np.ndarray) -> np.ndarray:
        quarters = images_BHWC.reshape(len(images_BHWC), 2, 4, 2, 4).mean(axis=(2, 4)).reshape(-1, 4)
        return (quarters - quarters.mean(axis=1, keepdims=True)) / 30


@pytest.mark.parametrize("seed", range(5))
def test_the_error_is_that_of_scikit_learns_curve(seed: int) -> None:
    rng = np.random.default_rng(seed)
    confidences_N = np.append(rng.beta(5, 2, 1000), [0.0, 1.0, 1 / 3, 0.2, 0.6])  # and edges of bins
    correct_N = rng.random(len(confidences_N)) < confidences_N**2
    right, mean = calibration_curve(correct_N, confidences_N, n_bins=BINS, strategy="uniform")
    found = calibration(confidences_N, correct_N)
    counts = found.counts_K[found.counts_K > 0]
    assert counts.sum() == len(confidences_N)
    # Sums of a thousand numbers of order one, in another order.
    np.testing.assert_allclose(found.confidences_K[found.counts_K > 0] / counts, mean, rtol=1e-13)
    np.testing.assert_allclose(found.correct_K[found.counts_K > 0] / counts, right, rtol=1e-13)
    expected = (counts * np.abs(right - mean)).sum() / counts.sum()
    assert found.expected_error == pytest.approx(expected, rel=1e-12)
    assert found.confidence == pytest.approx(confidences_N.mean(), rel=1e-12)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_an_evaluation_has_the_calibration_of_its_predictions(loss: Any) -> None:
    """Of every image once, in batches that do not divide the split; float32 confidences."""
    split, predictor = quadrants(64), Logits()
    found = evaluate(predictor, split, CONFIG.evaluation.replace(batch_size=24, loss=loss))  # type: ignore[arg-type]
    from vit_train.data.batches import EvaluationBatches

    logits_BC = predictor.predict(EvaluationBatches(split, CONFIG.preprocessing, 64)[0].images_BHWC)
    probabilities_BC = torch.tensor(logits_BC).softmax(-1) if loss == "softmax" else torch.tensor(logits_BC).sigmoid()
    best_B, predicted_B = probabilities_BC.max(dim=-1)
    np.testing.assert_allclose(confidences(logits_BC, loss), best_B.numpy(), rtol=1e-14)
    expected = calibration(best_B.numpy().astype(np.float32), predicted_B.numpy() == np.arange(64) % 4)
    assert found.calibration is not None
    for name in ("counts_K", "confidences_K", "correct_K"):
        np.testing.assert_array_equal(getattr(found.calibration, name), getattr(expected, name))
    np.testing.assert_array_equal(found.ids_N, np.arange(64))


def split_of(names: list[str], classes: int = 1000) -> Split:
    split = Split([{}] * len(names), tuple(map(str, range(classes))), "imagenet val")
    object.__setattr__(split, "name", lambda i: names[i])
    return split


def test_real_accuracy_is_timms(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lists = [rng.choice(5, rng.integers(0, 4), replace=False).tolist() for _ in range(60)]
    (tmp_path / "real.json").write_text(json.dumps(lists))
    names = [f"val/n01440764/ILSVRC2012_val_{i + 1:08d}.JPEG" for i in rng.permutation(60)]
    predictions_N = rng.integers(0, 5, 60)
    theirs = RealLabelsImagenet(names, str(tmp_path / "real.json"))
    theirs.add_result(torch.eye(1000)[torch.tensor(predictions_N)])
    labels, split = RealLabels.read(tmp_path / "real.json"), split_of(names)
    labels.check(split)
    found = labels.accuracy(split, np.arange(60), predictions_N)
    assert (found.total, 0 < found.correct < found.total) == (sum(map(bool, lists)), True)
    assert 100 * found.top1 == pytest.approx(theirs.get_accuracy(1), rel=1e-12)


def test_other_images_and_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "real.json"
    for text, why in (
        ("{", "cannot read reassessed labels"),
        ("[[1], [1000]]", "expected a list of lists of class numbers from 0 to 999"),
        ("[1, 2]", "cannot read reassessed labels"),
        ("[]", "expected a list of lists"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=why):
            RealLabels.read(path)
    path.write_text("[[1], []]")
    labels = RealLabels.read(path)
    with pytest.raises(InputError, match="10 classes; reassessed labels are of ImageNet's 1000"):
        labels.check(split_of(["ILSVRC2012_val_00000001.JPEG"], 10))
    for name in ("cat.jpg", "ILSVRC2012_val_00000003.JPEG"):
        with pytest.raises(InputError, match=f"{name}: has no reassessed labels; expected files named"):
            labels.check(split_of([name]))
    with pytest.raises(InputError, match="none of its images has a reassessed label"):
        labels.accuracy(split_of(["ILSVRC2012_val_00000002.JPEG"]), np.array([0]), np.array([1]))
