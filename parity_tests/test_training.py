"""Twenty optimizer steps in both engines from one checkpoint on one stream of batches: the same losses and weights."""

from dataclasses import replace

import numpy as np
import pytest

from parity_tests.twins import checkpoint
from train.config import Optimizer, TrainConfig
from train.data import Batch, smooth_targets
from train.engine_jax import JaxEngine
from train.engine_torch import TorchEngine
from vit_core import ViTConfig, masks, parity
from vit_core.parameters import Parameter, parameters
from vit_core.preprocess import Preprocessing

MODEL = ViTConfig(
    image_size=8,
    patch_size=4,
    width=24,
    depth=3,
    heads=3,
    mlp_dim=40,
    num_classes=5,
    layer_scale=0.5,
    stochastic_depth=0.4,
)
ADAMW = Optimizer(name="adamw", learning_rate=3e-3, weight_decay=0.1)
SGD = Optimizer(name="sgd", learning_rate=3e-2, weight_decay=0.1)

RUNS = {
    "adamw": {"optimizer": ADAMW},
    "adamw, clipped": {"optimizer": ADAMW.replace(clip_norm=0.5)},
    "adamw, sigmoid": {"optimizer": ADAMW, "loss": "sigmoid"},
    "sgd, decoupled": {"optimizer": SGD},
    "sgd, coupled": {"optimizer": SGD.replace(decay="coupled")},
    "sgd, coupled, clipped, sigmoid": {"optimizer": SGD.replace(decay="coupled", clip_norm=0.5), "loss": "sigmoid"},
}


def config(**fields: object) -> TrainConfig:
    return TrainConfig(
        **{
            "model": MODEL,
            "preprocessing": Preprocessing(image_size=8),
            "label_smoothing": 0.1,
            "steps": 20,
            "batch_size": 8,
            "warmup_steps": 4,
            "dtype": "float64",
            **fields,
        }
    )


def batches(run: TrainConfig, seed: int = 0) -> list[Batch]:
    """Random images and labels; one example of each batch does not count."""
    rng = np.random.default_rng(seed)
    size = run.batch_size
    made = []
    for _ in range(run.steps):
        images_BHWC = rng.integers(0, 256, (size, *run.model.image_size, run.model.channels), np.uint8)
        targets_BC = smooth_targets(rng.integers(0, run.model.num_classes, size), run)
        weights_B = np.ones(size, np.float32)
        weights_B[rng.integers(size)] = 0
        made.append(Batch(images_BHWC, targets_BC, weights_B, masks.draw(run.model, size, rng)))
    return made


@pytest.mark.parametrize("name", RUNS)
def test_twenty_steps_are_the_same(name: str) -> None:
    run = config(**RUNS[name])
    weights = checkpoint(run.model)
    engines = JaxEngine(run, weights), TorchEngine(run, weights)
    start = weights.arrays["blocks.1.mlp.fc1.weight"]
    for step, batch in enumerate(batches(run)):
        a, b = (float(engine.train_step(batch, run.learning_rate(step))) for engine in engines)
        assert abs(a - b) <= parity.FLOAT64_BOUND * abs(b), f"step {step}"
    in_jax, in_torch = (engine.export() for engine in engines)
    assert in_jax.keys() == in_torch.keys()
    for parameter in in_jax:
        assert parity.difference(in_jax[parameter], in_torch[parameter])[1] <= parity.FLOAT64_BOUND, parameter
    assert parity.difference(in_torch["blocks.1.mlp.fc1.weight"], start)[1] > 1e-3, "nothing was trained"


@pytest.mark.parametrize("mutant", ["decay", "key_bias"])
def test_a_mutated_row_is_red(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What only training reads of the table: wrong in one engine, the runs part."""
    run = config(optimizer=ADAMW, steps=4, warmup_steps=0)
    weights, true = checkpoint(run.model), parameters(run.model)

    def parted(engine: str, name: str, row: Parameter) -> bool:
        with monkeypatch.context() as patched:
            patched.setattr(f"train.engine_{engine}.parameters", lambda _: {**true, name: row})
            engines = JaxEngine(run, weights), TorchEngine(run, weights)
            for step, batch in enumerate(batches(run)):
                for one in engines:
                    one.train_step(batch, run.learning_rate(step))
        a, b = (one.export()[name] for one in engines)
        return parity.difference(a, b)[1] > parity.FLOAT64_BOUND

    names = ["pos_embed", "blocks.1.mlp.fc1.weight", "head.bias"] if mutant == "decay" else ["blocks.1.attn.qkv.bias"]
    for name in names:
        row = true[name]
        wrong = replace(row, decay=not row.decay) if mutant == "decay" else replace(row, key_bias=2)
        assert parted("jax", name, wrong)
        assert parted("torch", name, wrong)
    assert not parted("torch", "cls_token", true["cls_token"])
