"""A run's config: schedules equal optax's, factors of layers, one-line errors, and which fields may be changed."""

from typing import Any

import numpy as np
import optax
import pytest

from vit_core import InputError
from vit_core.parameters import parameters
from vit_core.preprocess import Preprocessing
from vit_train.config import Augmentation, Mesh, Optimizer, Schedule, TrainConfig
from vit_train.tests.small_run import CONFIG, MODEL

PEAK = CONFIG.optimizer.learning_rate


def rates(schedule: Schedule, steps: int = 103) -> np.ndarray:
    config = CONFIG.replace(steps=steps, schedule=schedule)
    return np.array([config.learning_rate(step) for step in range(steps)])


def test_cosine_equals_optax() -> None:
    ours = rates(Schedule(warmup_steps=3, final=0.1))
    np.testing.assert_allclose(ours[:4], [PEAK / 3, PEAK * 2 / 3, PEAK, PEAK], rtol=1e-15)
    reference = optax.cosine_decay_schedule(PEAK, 100, alpha=0.1)
    np.testing.assert_allclose(ours[3:], [reference(step) for step in range(100)], rtol=1e-5)  # optax's is float32


def test_linear_equals_optax() -> None:
    ours = rates(Schedule(name="linear", warmup_steps=3, final=0.2))
    reference = optax.linear_schedule(PEAK, 0.2 * PEAK, 100)
    np.testing.assert_allclose(ours[3:], [reference(step) for step in range(100)], rtol=1e-6)


def test_constant_with_cooldown() -> None:
    ours = rates(Schedule(name="constant", warmup_steps=3, cooldown_steps=10))
    np.testing.assert_array_equal(ours[3:93], PEAK)
    np.testing.assert_allclose(ours[93:], PEAK * np.arange(10, 0, -1) / 11, rtol=1e-12)


def test_reciprocal_square_root() -> None:
    ours = rates(Schedule(name="rsqrt", warmup_steps=3, timescale=50))
    assert ours[3] == PEAK
    # Four times the timescale's square: at 3 * 50 steps after the warm-up, half the peak.
    assert rates(Schedule(name="rsqrt", warmup_steps=3, timescale=50), 200)[153] == pytest.approx(PEAK / 2, rel=1e-12)
    assert (np.diff(ours[3:]) < 0).all()


def test_the_moving_average_warms_up() -> None:
    """As num_updates in TensorFlow's ExponentialMovingAverage: 1/10, 2/11, 3/12, ..., until `ema`."""
    warm = CONFIG.replace(ema=0.9, ema_warmup=True)
    assert [warm.average_decay(step) for step in (0, 1, 2, 79)] == [1 / 10, 2 / 11, 3 / 12, 80 / 89]
    assert [warm.average_decay(step) for step in (80, 81, 10**6)] == [0.9] * 3
    assert [CONFIG.average_decay(step) for step in (0, 1, 1000)] == [0.9] * 3
    # What is left in the average of the weights that a run of 200 steps began from.
    left = [np.prod([each.average_decay(step) for step in range(200)]) for each in (warm, CONFIG.replace(ema=0.999))]
    assert left[0] < 1e-12
    assert left[1] == pytest.approx(0.999**200) == pytest.approx(0.819, abs=1e-3)


def test_configs_of_before_open_unchanged() -> None:
    """Without the fields that were added since."""
    added = {"class_weights", "sampling", "ema_warmup", "head"}
    before = {name: value for name, value in CONFIG.model_dump(mode="json").items() if name not in added}
    old = ("crop_area", "crop_ratio", "flip", "rotation", "shift", "mixup", "cutmix")
    before["augmentation"] = {name: before["augmentation"][name] for name in old}
    del before["optimizer"]["nesterov"]
    assert TrainConfig.parse(before, "run.json") == CONFIG
    assert (CONFIG.class_weights, CONFIG.sampling, CONFIG.ema_warmup, CONFIG.head) == ((), "shuffled", False, "matched")


def test_cooldown_is_linear_from_its_first_step() -> None:
    ours = rates(Schedule(name="rsqrt", warmup_steps=3, timescale=50, cooldown_steps=10, final=0.1)) / PEAK
    before = np.sqrt(50 / (50 + 103 - 3 - 11))
    np.testing.assert_allclose(ours[92:], np.append(np.linspace(before, 0.1, 12)[:-1], []), rtol=1e-12)


def test_each_optimizer_has_its_own_defaults() -> None:
    assert Optimizer(name="adafactor").resolved().epsilon == 1e-30
    assert (Optimizer(name="lion").resolved().beta2, Optimizer().resolved().beta2) == (0.99, 0.999)
    assert Optimizer(name="lamb", epsilon=1e-5).resolved().epsilon == 1e-5


def test_layer_decay_counts_from_the_head() -> None:
    """BEiT's and timm's convention: the head has 1, the last block the decay, the embeddings the smallest factor."""
    factors = Optimizer(layer_decay=0.5).factors(parameters(MODEL))
    assert (factors["head.weight"], factors["norm.weight"]) == (1.0, 1.0)
    assert (factors["blocks.1.mlp.fc1.weight"], factors["blocks.0.norm1.bias"]) == (0.5, 0.25)
    assert factors["pos_embed"] == factors["cls_token"] == factors["patch_embed.proj.weight"] == 0.125


def test_frozen_parameters_are_left_out() -> None:
    optimizer = Optimizer(frozen=("patch_embed.*", "blocks.0.*"))
    left = optimizer.factors(parameters(MODEL))
    assert not any(name.startswith(("patch_embed", "blocks.0")) for name in left)
    assert "blocks.1.norm1.weight" in left


def test_preprocessing_follows_the_model() -> None:
    bigger = CONFIG.replace(model=MODEL.replace(image_size=16))
    assert bigger.preprocessing == Preprocessing(image_size=16, channels=1)
    pixels = Preprocessing(image_size=4, channels=1, mean=(0.1,), std=(0.2,))
    assert CONFIG.replace(preprocessing=pixels).preprocessing == pixels.replace(image_size=8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"schedule": Schedule(warmup_steps=12)},
            "12 steps of warm-up and 0 of cooldown leave nothing of 12 steps; set more",
        ),
        ({"schedule": {"name": "cosine", "cooldown_steps": 3}}, "cosine ends at `final` without one"),
        ({"schedule": {"name": "cosin"}}, "schedule: name: expected 'cosine', 'linear'"),
        ({"model": MODEL.replace(num_classes=0)}, "num_classes: 0 leaves nothing"),
        ({"optimizer": {"name": "adamw", "decay": "coupled"}}, "'coupled' is for name 'sgd', not 'adamw'"),
        ({"optimizer": {"name": "lamb", "decay": "independent"}}, "only 'decoupled' is for name 'lamb'"),
        ({"optimizer": {"frozen": ("block.*",)}}, "unknown parameter pattern in optimizer.frozen 'block.*'"),
        ({"optimizer": {"name": "adafactor", "epsilon": 1e-8}}, "1e-08 would drown the squared gradients"),
        ({"optimizer": {"frozen": ("*",)}}, "optimizer.frozen: * leaves nothing to train"),
        ({"optimiser": {}}, "did you mean 'optimizer'?"),
        ({"optimizer": {"learning_rat": 1}}, "optimizer: unknown key 'learning_rat'; did you mean 'learning_rate'?"),
        ({"accumulation": 3}, "accumulation: 3 does not divide batch_size 16"),
        ({"batch_size": 15}, "batch_size: 15 examples taken at once cannot be paired; mixup and CutMix need an even"),
        ({"augmentation": {"crop_area": (0.5, 0.2)}}, "crop_area: expected 0 < smallest <= largest"),
        ({"augmentation": {"flip": 1.5}}, "augmentation: flip: expected at most 1, found 1.5"),
        (
            {"preprocessing": Preprocessing(image_size=8, mean=(0.4, 0.5, 0.6))},
            "mean has 3 values, expected one for each of 1",
        ),
    ],
)
def test_impossible_runs_are_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        CONFIG.replace(**change)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_without_mixing_a_batch_may_be_odd() -> None:
    assert CONFIG.replace(batch_size=15, augmentation=Augmentation()).batch_size == 15


def test_minus_one_takes_the_remaining_devices() -> None:
    model = CONFIG.model
    assert list(Mesh().over(8, model).axes.values()) == [8, 1, 1]
    assert list(Mesh(data=2, fsdp=-1, tensor=2).over(8, model).axes.values()) == [2, 2, 2]
    assert list(Mesh(data=1, fsdp=8).over(8, model).axes.values()) == [1, 8, 1]


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ({"data": 3, "fsdp": -1}, "mesh: data 3 x fsdp -1 x tensor 1 needs a multiple of 3 devices, there are 8"),
        ({"data": 2, "fsdp": 2}, "mesh: data 2 x fsdp 2 x tensor 1 needs 4 devices, there are 8"),
        ({"tensor": 4}, "mesh.tensor: 4 does not divide model.heads 2"),
        ({"tensor": -1, "data": 1}, "mesh.tensor: 8 does not divide model.heads 2"),
        ({"data": -1, "fsdp": -1}, "only one axis may be -1"),
        ({"data": 0}, "0 devices along an axis"),
    ],
)
def test_errors_of_an_impossible_mesh_name_the_field(mesh: dict[str, int], message: str) -> None:
    with pytest.raises(InputError) as error:
        Mesh(**mesh).over(8, CONFIG.model)
    assert message in str(error.value)


def test_a_batch_that_devices_cannot_share_is_refused() -> None:
    config = CONFIG.replace(batch_size=32)
    with pytest.raises(InputError, match=r"batch_size: 32 cannot be shared by 3 devices.*a multiple of 6$"):
        config.check_batch_shards(3)
    with pytest.raises(InputError, match=r"batch_size: 32 cannot be shared by 16 devices x 2 parts.*multiple of 64$"):
        config.replace(accumulation=2).check_batch_shards(16)
    config.replace(accumulation=2, augmentation=Augmentation()).check_batch_shards(16)
