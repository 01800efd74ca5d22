"""A short run in one piece, for comparison with the same run shared by devices or processes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from vit_core import parity
from vit_train.config import Augmentation
from vit_train.data.sources import Split
from vit_train.engine import Engine
from vit_train.evaluation import evaluate
from vit_train.loop import batches_for
from vit_train.tests.small_run import CONFIG, quadrants

RUN = CONFIG.replace(
    dtype="float64",
    ema=0.9,
    accumulation=2,
    batch_size=32,
    evaluation_batch=12,
    optimizer=CONFIG.optimizer.replace(epsilon=1e-6),
)
STEPS = 6
DRAWN_SIZES: dict[str, dict[str, Any]] = {
    "flexible": {"patch_sizes": (2, 8)},
    "any aspect": {
        "preprocessing": RUN.preprocessing.replace(max_patches=6, patch_size=4),
        "sequence_lengths": (3, 6),
        "augmentation": Augmentation(crop_area=(0.3, 1.0), crop_ratio=(0.4, 2.5)),
    },
}
"""Fields of a run in which each batch draws a patch size, or a sequence length."""


def split() -> Split:
    """One of its images cannot be read."""
    found = quadrants()
    found.examples[5] = {"image": b"", "label": 1}  # type: ignore[index]
    return found


def trained(engine: Engine) -> dict[str, np.ndarray]:
    """Losses, gradient norms, weights, moving average and accuracies after a few steps; one image cannot be read, and
    before the step 3 the last process is told to stop."""
    batches = batches_for(engine, split())
    last = engine.process == engine.processes - 1
    measured = [engine.train_step(batches[step], step, last and step == 3) for step in range(STEPS)]
    found = {f"loss.{step}": np.asarray(float(of.loss)) for step, of in enumerate(measured)}
    found |= {f"norm.{step}": np.asarray(of.gradient_norm) for step, of in enumerate(measured)}
    found |= engine.export()
    found |= {f"average.{name}": array for name, array in engine.export(averaged=True).items()}
    found["stop"] = np.array([int(of.stop_requests) > 0 for of in measured], np.int64)
    for averaged in (False, True):
        predictor = engine.average if averaged else engine
        assert predictor is not None
        accuracy = evaluate(predictor, quadrants(50, seed=1), engine.config.evaluation)
        found["accuracy" + ".average" * averaged] = np.array([accuracy.correct, accuracy.total, accuracy.loss])
    return found | class_metrics(engine)


def class_metrics(engine: Engine) -> dict[str, np.ndarray]:
    """The metrics of every class and the calibration, of images with one class each; the former of images with several
    too."""
    one, options = quadrants(50, seed=1), engine.config.evaluation
    several = Split(
        [{**each, "label": (each["label"], 3)} for each in one.examples], one.labels, "several", multilabel=True
    )
    found = {}
    for split, loss in ((one, "softmax"), (several, "sigmoid")):
        accuracy = evaluate(engine, split, options.replace(loss=loss), ranked=True)
        report = accuracy.classes
        assert report is not None
        assert report.average_precision_C is not None
        found[f"average precision, {split.title}"] = report.average_precision_C
        found[f"f1, {split.title}"] = report.f1_C
        if report.confusion_matrix is not None:
            found["confusion matrix"] = report.confusion_matrix.astype(np.float64)
        if (bins := accuracy.calibration) is not None:
            found["calibration"] = np.stack((bins.counts_K, bins.confidences_K, bins.correct_K))
    return found


def in_processes(tmp_path: Path, command: list[str], environment: dict[str, str], script: str) -> dict[str, np.ndarray]:
    """The results of a file that the command runs as a script."""
    (tmp_path / "config.json").write_text(RUN.model_dump_json())
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((os.getcwd(), os.path.join(os.getcwd(), "train"))),
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    words = [sys.executable, *command, script, str(tmp_path)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(np.load(tmp_path / "found.npz"))


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert parity.difference(found[name], expected[name])[1] <= parity.FLOAT64_BOUND, name
        if "average precision" in name or "f1" in name or name in ("confusion matrix", "calibration"):
            np.testing.assert_array_equal(found[name], expected[name])
    assert found["accuracy"][1] == 50
    assert found["stop"].tolist() == [0, 0, 0, 1, 0, 0]
