"""Twenty optimizer steps in both engines from one checkpoint on one stream of batches: the same losses and weights."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity_tests.twins import checkpoint
from vit_core import ViTConfig, masks, parity
from vit_core.parameters import Parameter, parameters
from vit_core.preprocess import Preprocessing
from vit_core.rope import PUBLISHED
from vit_train.config import Augmentation, Optimizer, Schedule, TrainConfig
from vit_train.data.augmentation import draw_mix
from vit_train.data.batches import Batch
from vit_train.data.targets import smooth_targets
from vit_train.engines.jax.engine import JaxEngine
from vit_train.engines.torch.engine import TorchEngine
from vit_train.loop import batches_for
from vit_train.run import Run
from vit_train.tests.small_run import CONFIG, quadrants, run_in, save_step

MODEL = ViTConfig(
    image_size=8,
    patch_size=4,
    width=36,  # Adafactor factors from 32 on
    depth=3,
    heads=3,
    mlp_dim=40,
    num_classes=5,
    layer_scale=0.5,
    stochastic_depth=0.4,
)
DESCENDANT = MODEL.replace(
    distillation="head", registers=2, pre_norm=True, mlp="swiglu", qk_norm=True, patch_norms=True, proj_bias=False
)
ROTARY = MODEL.replace(
    rope={"shift": 0.3, "jitter": 1.5, "rescale": 2.0}, position_embedding="none", key_bias=False, registers=2
)
"""As DINOv3, with all that training draws of its coordinates."""
ADAMW = Optimizer(name="adamw", learning_rate=3e-3, weight_decay=0.1)
SGD = Optimizer(name="sgd", learning_rate=3e-2, weight_decay=0.1)
LION = Optimizer(name="lion", learning_rate=1e-3, weight_decay=0.1, beta2=0.99)
ADAFACTOR = Optimizer(name="adafactor", learning_rate=3e-3, weight_decay=0.01, epsilon=1e-30)
LAMB = Optimizer(name="lamb", learning_rate=3e-3, weight_decay=0.1, epsilon=1e-6)
MUON = Optimizer(name="muon", learning_rate=3e-3, weight_decay=0.1, momentum=0.95)
WARM = Schedule(warmup_steps=4)

RUNS: dict[str, dict[str, Any]] = {
    "adamw": {"optimizer": ADAMW},
    "adamw, clipped": {"optimizer": ADAMW.replace(clip_norm=0.5)},
    "adamw, independent decay": {"optimizer": ADAMW.replace(decay="independent", weight_decay=1e-3)},
    "adamw, sigmoid": {"optimizer": ADAMW, "loss": "sigmoid"},
    "adamw, layer decay": {"optimizer": ADAMW.replace(layer_decay=0.7)},
    "adamw, frozen": {"optimizer": ADAMW.replace(frozen=("patch_embed.*", "blocks.0.*", "*.norm1.*"), clip_norm=0.5)},
    "sgd, decoupled": {"optimizer": SGD},
    "sgd, no momentum": {"optimizer": SGD.replace(momentum=0.0)},
    "sgd, coupled": {"optimizer": SGD.replace(decay="coupled")},
    "sgd, coupled, clipped, sigmoid": {"optimizer": SGD.replace(decay="coupled", clip_norm=0.5), "loss": "sigmoid"},
    "lion": {"optimizer": LION},
    "lion, clipped, independent decay": {"optimizer": LION.replace(decay="independent", clip_norm=0.5)},
    "adafactor": {"optimizer": ADAFACTOR},
    "adafactor, clipped, independent decay": {"optimizer": ADAFACTOR.replace(decay="independent", clip_norm=0.5)},
    "adafactor, no momentum": {"optimizer": ADAFACTOR.replace(momentum=0.0)},
    "lamb": {"optimizer": LAMB},
    "lamb, clipped, layer decay": {"optimizer": LAMB.replace(clip_norm=0.5, layer_decay=0.7)},
    "muon": {"optimizer": MUON},
    "muon, clipped, layer decay": {"optimizer": MUON.replace(clip_norm=0.5, layer_decay=0.7)},
    "adamw, bfloat16 moments": {"optimizer": ADAMW.replace(moment_dtype="bfloat16")},
    "adafactor, bfloat16 momentum": {"optimizer": ADAFACTOR.replace(moment_dtype="bfloat16")},
    "accumulation": {"optimizer": ADAMW.replace(clip_norm=0.5), "accumulation": 4},
    "moving average": {"optimizer": ADAMW, "ema": 0.8},
    "moving average, warm-up": {"optimizer": ADAMW, "ema": 0.999, "ema_warmup": True},
    "linear schedule": {"optimizer": ADAMW, "schedule": Schedule(name="linear", warmup_steps=3, final=0.1)},
    "constant, cooldown": {"optimizer": ADAMW, "schedule": Schedule(name="constant", warmup_steps=4, cooldown_steps=9)},
    "rsqrt, cooldown": {
        "optimizer": ADAMW,
        "schedule": Schedule(name="rsqrt", warmup_steps=2, timescale=5, cooldown_steps=4),
    },
    "mixup alone": {"optimizer": ADAMW, "augmentation": Augmentation(mixup=0.4)},
    "nothing mixed": {"optimizer": ADAMW, "augmentation": Augmentation()},
    "descendant, adamw": {"optimizer": ADAMW, "model": DESCENDANT},
    "descendant, lion": {"optimizer": LION, "model": DESCENDANT},
    "descendant, adafactor": {"optimizer": ADAFACTOR, "model": DESCENDANT},
    "descendant, lamb": {"optimizer": LAMB, "model": DESCENDANT},
    "rotary, adamw": {"optimizer": ADAMW, "model": ROTARY},
    "rotary, accumulation": {"optimizer": ADAMW.replace(clip_norm=0.5), "model": ROTARY, "accumulation": 4},
    "rotary, learned frequencies": {
        "optimizer": ADAMW,
        "model": ROTARY.replace(rope={**PUBLISHED["mixed"], "shift": 0.3, "jitter": 1.5, "rescale": 2.0}),
    },
    "descendant, muon": {"optimizer": MUON, "model": DESCENDANT},
    "flexible patches, sgd": {"optimizer": SGD, "patch_sizes": (2, 8)},
    "flexible patches, accumulation": {
        "optimizer": ADAMW.replace(clip_norm=0.5),
        "model": MODEL.replace(image_size=12, patch_size=6, dropout=0.1),
        "patch_sizes": (3, 4, 6),
        "accumulation": 4,
    },
    "flexible patches, rotary": {"optimizer": ADAMW, "model": ROTARY, "patch_sizes": (2, 4, 8)},
}


def config(**fields: object) -> TrainConfig:
    return TrainConfig(
        **{
            "model": MODEL,
            "preprocessing": Preprocessing(image_size=8),
            "augmentation": Augmentation(mixup=0.4, cutmix=1.0),
            "label_smoothing": 0.1,
            "steps": 20,
            "batch_size": 8,
            "schedule": WARM,
            "dtype": "float64",
            **fields,
        }
    )


def assert_trained_alike(engines: Sequence[Any], made: Sequence[Batch]) -> None:
    """Trains two engines on the same batches: losses, gradients, and in the end weights and statistics are the same."""
    for step, batch in enumerate(made):
        a, b = (engine.train_step(batch, step) for engine in engines)
        assert abs(float(a.loss) - float(b.loss)) <= parity.FLOAT64_BOUND * abs(float(b.loss)), f"step {step}"
        assert abs(a.gradient_norm - b.gradient_norm) <= parity.FLOAT64_BOUND * b.gradient_norm, f"step {step}"
    for what in ("export", "statistics"):
        ours, theirs = (getattr(engine, what)() for engine in engines)
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert parity.difference(ours[name], theirs[name])[1] <= parity.FLOAT64_BOUND, name


def batches(run: TrainConfig, seed: int = 0) -> list[Batch]:
    """Random images and labels, mixed according to the config; one example of each batch is skipped (weight 0)."""
    rng = np.random.default_rng(seed)
    size = run.batch_size
    made = []
    for _ in range(run.steps):
        images_BHWC = rng.integers(0, 256, (size, *run.model.image_size, run.model.channels), np.uint8)
        targets_BC = smooth_targets(rng.integers(0, run.model.num_classes, size), run)
        weights_B = np.ones(size, np.float32)
        weights_B[rng.integers(size)] = 0
        mixes = [draw_mix(run.augmentation, run.model.image_size, rng) for _ in range(size // 2)]
        own_share_B = np.repeat([mix.weight for mix in mixes], 2).astype(np.float32)
        boxes_B4 = np.repeat([mix.box for mix in mixes], 2, axis=0).astype(np.int32)
        network = run.networks[rng.integers(len(run.networks))]
        drawn, patch_size = masks.draw(network, size, rng), network.patch_size if run.patch_sizes else None
        ids_B = np.arange(size)
        made.append(Batch(images_BHWC, targets_BC, weights_B, own_share_B, boxes_B4, drawn, ids_B, patch_size))
    return made


QUICK = ("adamw, clipped", "sgd, coupled, clipped, sigmoid")
"""One run of each kind that compiles soon."""
SLOW = (
    "accumulation", "descendant, adamw", "rotary, accumulation",
    "lion, clipped, independent decay", "adafactor", "lamb", "muon, clipped, layer decay", "adamw, bfloat16 moments",
    "moving average, warm-up", "rotary, learned frequencies", "flexible patches, sgd", "descendant, muon",
)  # fmt: skip
"""One of each part of a step that they change; the others combine the same parts, or change the schedule alone, and are
run before a release."""


def marked(name: str) -> Any:
    """The quick targets compile other code than users have, with other roundings: in "rsqrt, cooldown" AdamW divides
    these by small gradients, which gives 1.2e-12 of a weight, so it has to be a release test."""
    if name in QUICK:
        return name
    return pytest.param(name, marks=pytest.mark.slow if name in SLOW else pytest.mark.release)


@pytest.mark.parametrize("name", [marked(name) for name in RUNS])
def test_twenty_steps_are_the_same(name: str) -> None:
    run = config(**RUNS[name])
    weights = checkpoint(run.model)
    engines = JaxEngine(run, weights), TorchEngine(run, weights)
    start = weights.arrays["blocks.1.mlp.fc1.weight"]
    assert_trained_alike(engines, batches(run))
    if run.patch_sizes:
        assert engines[0].step.train._cache_size() == len(run.patch_sizes), "a program for each size, and no other"
    trained = engines[1].export()
    assert parity.difference(trained["blocks.1.mlp.fc1.weight"], start)[1] > 1e-3, "nothing was trained"
    if run.optimizer.frozen:
        frozen = [name for name in trained if name not in engines[0].trained]
        assert len(frozen) > 10
        for one in engines:
            assert all(np.array_equal(one.export()[name], weights.arrays[name]) for name in frozen)
    if run.ema is not None:
        average = engines[1].export(averaged=True)["head.weight"]
        assert parity.difference(average, trained["head.weight"])[1] > 1e-4, "nothing was averaged"


@pytest.mark.slow
@pytest.mark.parametrize("model", [MODEL, ROTARY], ids=["plain", "rotary"])
def test_accumulated_steps_are_the_steps(model: ViTConfig) -> None:
    """The parts of a batch sum to it, in each engine, though they count different numbers of examples."""
    whole, parted = (
        config(optimizer=ADAMW, steps=5, schedule=Schedule(), model=model),
        config(optimizer=ADAMW, steps=5, schedule=Schedule(), model=model, accumulation=4),
    )
    weights = checkpoint(model)
    for make in (JaxEngine, TorchEngine):
        a, b = make(whole, weights), make(parted, weights)
        for step, batch in enumerate(batches(whole)):
            for one in (a, b):
                one.train_step(batch, step)
        for parameter, expected in a.export().items():
            assert parity.difference(b.export()[parameter], expected)[1] <= parity.FLOAT64_BOUND, parameter


@pytest.mark.slow
def test_bfloat16_compute_is_comparable() -> None:
    """Both engines' bfloat16 losses and gradients err comparably against float64, and their parameters stay float32."""
    batch = batches(config())[0]
    weights = checkpoint(MODEL)
    low = config(optimizer=ADAMW, dtype="float32", compute_dtype="bfloat16")
    exact = np.sqrt(np.asarray(TorchEngine(config(optimizer=ADAMW), weights).train_step(batch, 0).squared_norms))
    errors = []
    for make in (JaxEngine, TorchEngine):
        engine = make(low, weights)
        found = np.sqrt(np.asarray(engine.train_step(batch, 0).squared_norms, np.float64))
        errors.append(float(np.linalg.norm(found - exact) / np.linalg.norm(exact)))
        assert all(array.dtype == np.float32 for array in engine.export().values())
    # Rounding to 8 bits at each of 40 operations in depth, which add up like a random walk; four for the gain of the
    # backward pass. At least one rounding, a quarter of its bound.
    assert all(2**-11 < error < 4 * np.sqrt(40) * 2**-9 for error in errors), errors
    assert max(errors) <= parity.COMPARABLE * min(errors), errors


@pytest.mark.parametrize("make", [pytest.param(JaxEngine, marks=pytest.mark.slow), TorchEngine])
def test_a_resumed_run_draws_the_same_coordinates(make: Any, tmp_path: Path) -> None:
    """A run that is saved after two steps and resumed has the weights of an uninterrupted run, bit for bit."""
    run = CONFIG.replace(model=CONFIG.model.replace(rope=ROTARY.rope, position_embedding="none"))
    there = Run(tmp_path, run_in(tmp_path, run).request)
    whole, first = make(run), make(run)
    batches = batches_for(whole, quadrants())
    assert not np.array_equal(batches[0].masks["rope"], batches[1].masks["rope"])
    for step in range(4):
        whole.train_step(batches[step], step)
    for step in range(2):
        first.train_step(batches[step], step)
    save_step(there, first, 2)
    second = make(run, saved=there.step_folder(2))
    batches = batches_for(second, quadrants())
    for step in range(2, 4):
        second.train_step(batches[step], step)
    expected = whole.export()
    for name, array in second.export().items():
        assert np.array_equal(array, expected[name]), name


ENGINES: dict[str, Any] = {"jax": JaxEngine, "torch": TorchEngine}
MUTANTS: dict[str, tuple[ViTConfig, list[str], Callable[[Parameter], dict[str, Any]]]] = {
    "decay": (MODEL, ["pos_embed", "blocks.1.mlp.fc1.weight"], lambda row: {"decay": not row.decay}),
    "key_bias": (MODEL, ["blocks.1.attn.qkv.bias"], lambda row: {"key_bias": slice(2, 3)}),
    "key_bias of a norm": (DESCENDANT, ["blocks.1.attn.k_norm.bias"], lambda row: {"key_bias": None}),
}
"""Model, some of its parameters, and the error that is made in their rows."""


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mutated_row_is_red(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fields of the table that only training reads: with an error in one engine, its run differs from both correct
    ones."""
    model, names, wrong = MUTANTS[mutant]
    run = config(optimizer=ADAMW, steps=4, schedule=Schedule(), model=model)
    weights, true = checkpoint(run.model), parameters(run.model)

    def trained(make: Any) -> Any:
        engine = make(run, weights)
        for step, batch in enumerate(batches(run)):
            engine.train_step(batch, step)
        return engine.export()

    right = [trained(make) for make in ENGINES.values()]
    for name in (*names, "cls_token"):
        assert parity.difference(right[0][name], right[1][name])[1] <= parity.FLOAT64_BOUND, name
    for name in names:
        # Its like in every layer too: JAX keeps them as one.
        alike = [other for other in true if re.sub(r"\d+", "", other) == re.sub(r"\d+", "", name)]
        table = {**true, **{other: replace(true[other], **wrong(true[other])) for other in alike}}
        for framework, make in ENGINES.items():
            with monkeypatch.context() as patched:
                patched.setattr("vit_train.config.run_config.parameters", lambda *_, table=table: table)
                found = trained(make)[name]
            for expected in right:
                assert parity.difference(found, expected[name])[1] > parity.FLOAT64_BOUND, (framework, name)
