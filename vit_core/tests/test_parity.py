"""The measure itself: what it calls equal, how it looks at what is not, and that it wakes idle parameters."""

import numpy as np
import pytest

from vit_core import CheckpointConfig, ViTConfig, masks, parity
from vit_core.checkpoints.checkpoint import Checkpoint
from vit_core.checkpoints.comparison import randomize_constants
from vit_core.parameters import parameters

MODEL = ViTConfig(image_size=8, patch_size=4, width=8, depth=2, heads=2, mlp_dim=8, num_classes=3)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.0], (0, 0)),
        ([1.0, 2.0], [1.0, 4.0], (2, 0.5)),
        ([0.0], [0.0], (0, 0)),
        ([1e-30], [0.0], (1e-30, np.inf)),
        ([np.nan], [np.nan], (np.inf, np.inf)),
        ([1.0], [np.inf], (np.inf, np.inf)),
    ],
)
def test_difference(a: list[float], b: list[float], expected: tuple[float, float]) -> None:
    assert parity.difference(np.array(a), np.array(b)) == expected


def traces() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    names = ("embed", "blocks.0", "output", "grad.blocks.0.norm1.weight", "grad.blocks.0.norm1.bias", "grad.cls_token")
    made = {name: np.ones(3) for name in names}
    return {name: array.copy() for name, array in made.items()}, made


def test_equal_traces_are_ok() -> None:
    report = parity.compare(*traces())
    assert report.ok
    assert report.first_divergence is None
    assert (report.equal_rounded, report.outputs) == (3, 3)


def test_the_first_divergence_is_the_first_in_order() -> None:
    a, b = traces()
    a["blocks.0"][1] += 2e-12
    a["output"][0] += 1e-3
    report = parity.compare(a, b)
    assert not report.ok
    assert report.first_divergence
    assert report.first_divergence.name == "blocks.0"
    assert report.worst.name == "output"
    assert report.equal_rounded == 2


@pytest.mark.parametrize("side", [0, 1])
def test_a_tensor_of_one_side_only_is_infinitely_far(side: int) -> None:
    both = traces()
    del both[side]["embed"]
    assert parity.compare(*both).worst.relative == np.inf
    other = traces()
    other[side]["embed"] = np.ones(4)
    assert parity.compare(*other).worst.name == "embed"


def test_random_values_leave_nothing_idle_and_signals_alive() -> None:
    arrays = parity.randomized(MODEL, 0)
    assert arrays.keys() == parameters(MODEL).keys()
    assert all(np.ptp(array) > 0 for array in arrays.values())


def test_constant_parameters_are_randomized() -> None:
    arrays = parity.randomized(MODEL, 0)
    arrays["head.weight"] *= 0
    checkpoint = Checkpoint.of(CheckpointConfig(model=MODEL), arrays)
    awake, idle = randomize_constants(checkpoint, 1)
    assert idle == ["head.weight"]
    assert awake.arrays["head.weight"].any()
    np.testing.assert_array_equal(awake.arrays["cls_token"], arrays["cls_token"])


@pytest.mark.parametrize(
    ("dtype", "apart", "ok"), [("float32", 1e-6, True), ("float32", 1e-4, False), ("bfloat16", 1e-2, True)]
)
def test_low_precision_is_bound_at_the_output(dtype: str, apart: float, ok: bool) -> None:
    oracle = {"blocks.0": np.ones(2), "output": np.ones(2), "grad.x": np.ones(2)}
    a = {name: array + 1e-2 for name, array in oracle.items()}
    b = {**a, "output": a["output"] + apart}
    rows = parity.against_oracle(a, b, oracle, dtype)
    assert [row.name for row in rows] == ["blocks.0", "output"]
    assert [row.ok for row in rows] == [True, ok]


def test_bfloat16_errors_of_another_size_are_out() -> None:
    oracle = {"output": np.ones(2)}
    rows = parity.against_oracle({"output": np.ones(2) + 0.01}, {"output": np.ones(2) + 0.04}, oracle, "bfloat16")
    assert not rows[0].ok


def test_every_mask_site_has_a_name() -> None:
    dropping = MODEL.replace(dropout=0.1, attention_dropout=0.1, stochastic_depth=0.1, rope={"jitter": 2.0})
    # The order of patches belongs to how a model is trained (vit_core.masked_autoencoder).
    assert set(masks.SITES) - {masks.PATCH_ORDER} == masks.sites(dropping, 1).keys()
