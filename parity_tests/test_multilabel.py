"""Several classes for each image, class weights, balanced sampling: the same training and metrics in both engines."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn import metrics

from parity_tests.twins import checkpoint
from vit_core import parity
from vit_train.config import Augmentation
from vit_train.data.batches import Batches, EvaluationBatches
from vit_train.data.sources import Split
from vit_train.engines.jax.engine import JaxEngine
from vit_train.engines.torch.engine import TorchEngine
from vit_train.evaluation import evaluate
from vit_train.tests.small_run import CONFIG, LABELS, png, quadrants

RUN = CONFIG.replace(
    dtype="float64",
    loss="sigmoid",
    label_smoothing=0.1,
    augmentation=Augmentation(mixup=0.4, cutmix=1.0),
    class_weights="balanced",
    sampling="balanced",
    optimizer=CONFIG.optimizer.replace(epsilon=1e-6),
    steps=20,
    batch_size=8,
    accumulation=2,
    ema=0.999,
    ema_warmup=True,
)
ENGINES = {"jax": JaxEngine, "torch": TorchEngine}


def sets(count: int = 48, seed: int = 0) -> Split:
    """Images of quadrants, of which each has some of the four classes, rarely the last; one cannot be read."""
    rng = np.random.default_rng(seed)
    examples = []
    for _ in range(count):
        has_C = rng.random(4) < [0.6, 0.5, 0.3, 0.1]
        examples.append({"image": png(int(has_C.argmax()), rng), "label": np.flatnonzero(has_C).tolist()})
    examples[5]["image"] = b""
    return Split(examples, LABELS, "sets", multilabel=True)


@pytest.fixture(scope="module")
def trained() -> dict[str, JaxEngine | TorchEngine]:
    """Both engines after twenty steps that agree."""
    weights, batches = checkpoint(RUN.model), Batches(sets(), RUN)
    engines: dict[str, JaxEngine | TorchEngine] = {name: make(RUN, weights) for name, make in ENGINES.items()}
    for step in range(RUN.steps):
        a, b = (engine.train_step(batches[step], step) for engine in engines.values())
        assert abs(float(a.loss) - float(b.loss)) <= parity.FLOAT64_BOUND * abs(float(b.loss)), f"step {step}"
        assert abs(a.gradient_norm - b.gradient_norm) <= parity.FLOAT64_BOUND * b.gradient_norm, f"step {step}"
    return engines


@pytest.mark.slow
def test_twenty_steps_are_the_same(trained: dict[str, JaxEngine | TorchEngine]) -> None:
    start = checkpoint(RUN.model).arrays["blocks.1.mlp.fc1.weight"]
    for averaged in (False, True):
        in_jax, in_torch = (engine.export(averaged) for engine in trained.values())
        assert in_jax.keys() == in_torch.keys()
        for name in in_jax:
            assert parity.difference(in_jax[name], in_torch[name])[1] <= parity.FLOAT64_BOUND, name
        assert parity.difference(in_torch["blocks.1.mlp.fc1.weight"], start)[1] > 1e-3, "nothing was trained"


@pytest.mark.slow
def test_metrics_are_scikit_learns_in_both(trained: dict[str, JaxEngine | TorchEngine]) -> None:
    """Worked out by scikit-learn from the logits; equal in both engines to the last bit."""
    split, options = sets(50, seed=1), RUN.evaluation.replace(allow_undecodable=True, batch_size=24)
    whole = EvaluationBatches(split, RUN.preprocessing, 50, allow_undecodable=True)[0]
    has_NC, found = whole.labels_B[whole.counts_B], {}
    for name, engine in trained.items():
        found[name] = evaluate(engine, split, options)
        report, logits_NC = found[name].classes, engine.predict(whole.images_BHWC)[whole.counts_B]
        assert report is not None
        assert found[name].total == 49
        # scikit-learn is given what is ranked: float32.
        expected = metrics.average_precision_score(has_NC, logits_NC.astype(np.float32), average="macro")
        assert report.mean_average_precision == pytest.approx(expected, rel=parity.FLOAT64_BOUND)
        for mean, ours in (("macro", report.macro_f1), ("micro", report.micro_f1)):
            expected = metrics.f1_score(has_NC, logits_NC > 0, average=mean, zero_division=np.nan)
            assert ours == pytest.approx(expected, rel=parity.FLOAT64_BOUND)
        assert found[name].top1 == metrics.accuracy_score(has_NC, logits_NC > 0)
        loss = F.binary_cross_entropy_with_logits(torch.tensor(logits_NC), torch.tensor(has_NC, dtype=torch.float64))
        assert found[name].loss == pytest.approx(4 * float(loss), rel=parity.FLOAT64_BOUND)
    assert found["jax"].values == found["torch"].values
    assert found["jax"].classes.to_json() == found["torch"].classes.to_json()  # type: ignore[union-attr]
    assert 0.1 < found["jax"].values["micro_f1"] < 1


def test_metrics_of_one_class_each_are_equal_in_both() -> None:
    config = RUN.replace(loss="softmax", class_weights=(), sampling="shuffled")
    reports = []
    for make in ENGINES.values():
        accuracy = evaluate(make(config, checkpoint(RUN.model)), quadrants(60), config.evaluation, ranked=True)
        assert accuracy.classes is not None
        assert accuracy.classes.mean_average_precision is not None
        reports.append(accuracy.classes.to_json())
    assert reports[0] == reports[1]


@pytest.mark.parametrize("name", ENGINES)
def test_a_weighted_loss_is_torchs(name: str) -> None:
    """torch's weighted cross entropy, over the number of examples that can be read, of all parts of the batch together:
    not over the sum of weights."""
    config = RUN.replace(
        loss="softmax", class_weights=(0.5, 1.0, 3.0, 7.0), sampling="shuffled", augmentation=Augmentation(),
        label_smoothing=0.0, model=RUN.model.replace(depth=1, stochastic_depth=0.0),
    )  # fmt: skip
    split = quadrants()
    broken = int(Batches(split, config)[0].ids_B[2])
    split.examples[broken] = {"image": b"", "label": 1}  # type: ignore[index]
    batch, engine = Batches(split, config)[0], ENGINES[name](config, checkpoint(config.model))
    logits_BC, labels_B = torch.tensor(engine.predict(batch.images_BHWC)), torch.tensor(batch.targets_BC.argmax(axis=1))
    read = batch.ids_B != broken
    weights_C = torch.tensor(config.class_weights, dtype=torch.float64)
    expected = F.cross_entropy(logits_BC[read], labels_B[read], weight=weights_C, reduction="sum") / 7
    assert float(engine.train_step(batch, 0).loss) == pytest.approx(float(expected), rel=parity.FLOAT64_BOUND)
