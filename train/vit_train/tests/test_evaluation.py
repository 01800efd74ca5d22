"""Evaluation by an engine and by a checkpoint's predictor: accuracy, loss, compute type, and stops by signals."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from sklearn.metrics import log_loss, top_k_accuracy_score

from vit_core import parity
from vit_core.checkpoints import Checkpoint, CheckpointConfig
from vit_core.config import ViTConfig
from vit_train.checkpoint_evaluation import evaluate_checkpoint
from vit_train.config import Data
from vit_train.data.batches import EvaluationBatches
from vit_train.engines.jax.predictor import JaxPredictor
from vit_train.engines.torch.predictor import TorchPredictor
from vit_train.evaluation import Accuracy, evaluate
from vit_train.signals import StoppedBySignal
from vit_train.tests.small_run import CONFIG, ENGINES, LABELS, MODEL, folder_of_images, quadrants

SPLIT = quadrants()
PREDICTORS: dict[str, Any] = {"jax": JaxPredictor, "torch": TorchPredictor}
OPTIONS = CONFIG.evaluation.replace(batch_size=24)


def randomized(model: ViTConfig = MODEL) -> Checkpoint:
    """Weights for which every input changes the loss (a fresh head is zero)."""
    arrays = {name: array.astype(np.float32) for name, array in parity.randomized(model, 0).items()}
    labels = LABELS if model.num_classes == len(LABELS) else None
    config = CheckpointConfig(model=model, labels=labels, preprocessing=CONFIG.preprocessing)
    return Checkpoint.of(config, arrays)


def pixels() -> np.ndarray:
    """The images of the split."""
    return np.stack([EvaluationBatches(SPLIT, CONFIG.preprocessing, 1)[i].images_BHWC[0] for i in range(64)])


@pytest.mark.parametrize("name", PREDICTORS)
def test_accuracy_and_loss_equal_numpys(name: str) -> None:
    """Worked out from the logits, over batches that do not divide the split."""
    predictor = PREDICTORS[name](randomized())
    found = evaluate(predictor, SPLIT, OPTIONS)
    logits_BC = predictor.predict(pixels()).astype(np.float64)
    labels_B = np.arange(64) % 4
    shifted_BC = np.exp(logits_BC - logits_BC.max(axis=1, keepdims=True))
    probabilities_BC = shifted_BC / shifted_BC.sum(axis=1, keepdims=True)
    assert (found.correct, found.total) == ((logits_BC.argmax(axis=1) == labels_B).sum(), 64)
    assert found.top5 is None, "the model has four outputs: it would always be 1"
    assert "top5" not in found.values
    # float32 logits of batches of other sizes, of order one.
    assert found.loss == pytest.approx(
        -np.log(probabilities_BC[np.arange(64), labels_B]).mean(), rel=parity.FLOAT32_BOUND
    )
    # A training run's engine with the same weights predicts the same.
    engine = ENGINES[name](CONFIG.replace(ema=None), randomized())
    np.testing.assert_array_equal(engine.predict(pixels()), predictor.predict(pixels()))
    assert evaluate(engine, SPLIT, OPTIONS) == found
    assert engine.average is None


def test_top_5_of_more_outputs_equals_scikit_learns() -> None:
    predictor = TorchPredictor(randomized(MODEL.replace(num_classes=7)))
    found = evaluate(predictor, SPLIT, OPTIONS, outputs=[6, 1, 4, 3])
    labels_B = np.array([6, 1, 4, 3])[np.arange(64) % 4]
    expected = top_k_accuracy_score(labels_B, predictor.predict(pixels()), k=5, labels=range(7))
    assert found.top5 == found.values["top5"] == expected
    assert 0 < expected < 1


def test_a_sigmoid_run_is_evaluated_by_its_own_loss() -> None:
    """Compared with the sum over classes of scikit-learn's log loss."""
    predictor = TorchPredictor(randomized())
    probabilities_BC = 1 / (1 + np.exp(-predictor.predict(pixels()).astype(np.float64)))
    is_class_BC = np.eye(4)[np.arange(64) % 4]
    expected = sum(log_loss(is_class_BC[:, c], probabilities_BC[:, c]) for c in range(4))
    sigmoid = CONFIG.replace(loss="sigmoid").evaluation
    assert evaluate(predictor, SPLIT, sigmoid).loss == pytest.approx(expected, rel=parity.FLOAT32_BOUND)


@pytest.mark.parametrize("name", PREDICTORS)
def test_evaluation_is_in_the_compute_dtype(name: str) -> None:
    """bfloat16 logits have 8 bits; float32 ones of the same weights are different numbers, close to them."""
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), np.uint8)
    low, full = (PREDICTORS[name](randomized(), compute_dtype=dtype).predict(images) for dtype in ("bfloat16", None))
    np.testing.assert_array_equal(low, low.astype(ml_dtypes.bfloat16).astype(np.float32))
    # As in parity_tests/test_precision.py: four roundings of 2**-8 in a block, a random walk, four for the model's
    # gain.
    assert 2**-12 < parity.difference(low, full)[1] < 4 * 2**-8 * np.sqrt(4 * MODEL.depth)
    engine = ENGINES[name](CONFIG.replace(compute_dtype="bfloat16"), randomized())
    np.testing.assert_array_equal(engine.predict(images), low)


def test_interval_is_wilsons() -> None:
    low, high = Accuracy(95, 100, 100, 0.0).interval
    # Worked out by hand from Wilson's formula with z = 1.959964.
    assert (low, high) == (pytest.approx(0.8882, abs=1e-4), pytest.approx(0.9785, abs=1e-4))


def test_a_signal_stops_evaluation_before_the_next_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor, batches = TorchPredictor(randomized()), []
    predict = predictor.predict

    def counted(images_BHWC: np.ndarray) -> np.ndarray:
        batches.append(len(images_BHWC))
        return predict(images_BHWC)

    monkeypatch.setattr(predictor, "predict", counted)
    with pytest.raises(StoppedBySignal, match="stopped by SIGTERM") as stopped:
        evaluate(predictor, SPLIT, OPTIONS, stop=lambda: 15 if len(batches) == 2 else None)
    assert (stopped.value.number, batches) == (15, [24, 24])


def test_processes_stop_evaluation_together() -> None:
    """A signal that only another process got stops this one too."""
    predictor = TorchPredictor(randomized())
    predictor.processes, predictor.total = 2, lambda counts: counts + 1
    with pytest.raises(StoppedBySignal):
        evaluate(predictor, SPLIT, OPTIONS)


def test_a_checkpoint_is_evaluated_without_a_training_config(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    images = folder_of_images(tmp_path / "images")
    data = Data(name=f"{images}/", held_out=1.0)
    results = [evaluate_checkpoint(randomized(), data, name, batch_size=24) for name in ("jax", "torch")]
    expected = evaluate(TorchPredictor(randomized()), SPLIT, OPTIONS)
    for result, framework in zip(results, ("jax", "torch"), strict=True):
        assert result.title == f"a checkpoint in memory on images (all images), {framework}"
        assert (result.images, result.process, result.accuracy.correct) == (64, 0, expected.correct)
        assert result.accuracy.loss == pytest.approx(expected.loss, rel=parity.FLOAT32_BOUND)
        found, wanted = result.accuracy.calibration, expected.calibration
        assert found is not None
        assert wanted is not None
        np.testing.assert_array_equal(found.counts_K, wanted.counts_K)
        np.testing.assert_array_equal(found.correct_K, wanted.correct_K)
        np.testing.assert_allclose(found.confidences_K, wanted.confidences_K, rtol=1e-5)  # as the loss
    assert caplog.records == []
