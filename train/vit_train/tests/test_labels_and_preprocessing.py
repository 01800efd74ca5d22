"""Classes of a checkpoint and of a data set in evaluation and fine-tuning, and images whose preparation is unknown."""

import logging
from pathlib import Path

import numpy as np
import pytest

from vit_core import parity
from vit_core.checkpoints import Checkpoint, CheckpointConfig
from vit_core.errors import InputError
from vit_core.patch_kernels import resize_kernel
from vit_core.preprocess import Preprocessing
from vit_core.rope import Rope
from vit_train.checkpoint_evaluation import Evaluation, evaluate_checkpoint
from vit_train.config import Data
from vit_train.data.batches import EvaluationBatches
from vit_train.engines.torch.predictor import TorchPredictor
from vit_train.evaluation import evaluate
from vit_train.run import Request, differences
from vit_train.stages import Launch, adapted, finetune
from vit_train.tests.small_run import CONFIG, ENGINES, LABELS, MODEL, folder_of_images, quadrants

REVERSED = LABELS[::-1]


def randomized(labels: tuple[str, ...] | None, classes: int = 4, preprocessing: bool = True) -> Checkpoint:
    model = MODEL.replace(num_classes=classes)
    arrays = {name: array.astype(np.float32) for name, array in parity.randomized(model, 0).items()}
    config = CheckpointConfig(model=model, labels=labels, preprocessing=CONFIG.preprocessing if preprocessing else None)
    return Checkpoint.of(config, arrays)


def always(label: str, labels: tuple[str, ...] | None) -> Checkpoint:
    """A model that gives one class for every image."""
    weights = randomized(labels)
    bias = np.float32([10.0 * (name == label) for name in labels or LABELS])
    arrays = weights.arrays.with_array("head.bias", bias).with_array("head.weight", np.zeros((4, 16), np.float32))
    return weights.with_arrays(arrays)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """3 images of the first class, 2 of the second, 1 of the third and of the fourth."""
    folder = folder_of_images(tmp_path_factory.mktemp("labels") / "images", 12)
    for name, kept in zip(LABELS, (3, 2, 1, 1), strict=True):
        for extra in sorted((folder / name).iterdir())[kept:]:
            extra.unlink()
    return Data(name=f"{folder}/", held_out=1.0)


def accuracy(checkpoint: Checkpoint, data: Data, **options: object) -> Evaluation:
    return evaluate_checkpoint(checkpoint, data, "torch", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("label", "correct"), list(zip(LABELS, (3, 2, 1, 1), strict=True)))
@pytest.mark.parametrize("order", [LABELS, REVERSED, (LABELS[2], LABELS[0], LABELS[3], LABELS[1])])
def test_classes_are_matched_by_name(label: str, correct: int, order: tuple[str, ...], images: Data) -> None:
    """Accuracy and loss do not depend on the order of the model's outputs."""
    found = accuracy(always(label, order), images).accuracy
    assert (found.correct, found.total) == (correct, 7)
    # In float32, the softmax adds its four terms in another order.
    assert found.loss == pytest.approx(accuracy(always(label, LABELS), images).accuracy.loss, rel=8 * 2.0**-24)


def test_by_position_the_order_counts(images: Data) -> None:
    """Output 0, "southwest" in the model, is taken as "northeast"."""
    assert accuracy(always("southwest", REVERSED), images, labels="by-position").accuracy.correct == 3
    assert accuracy(always("southwest", REVERSED), images).accuracy.correct == 1


def test_other_names_are_refused(images: Data) -> None:
    with pytest.raises(
        InputError, match=r"a checkpoint in memory on images .*no class 'northeast', 'northwest'"
    ) as error:
        accuracy(randomized(("a", "b", "c", "d")), images)
    assert "\n" not in str(error.value)
    assert "--labels by-position" in str(error.value)
    assert accuracy(randomized(("a", "b", "c", "d")), images, labels="by-position").accuracy.total == 7


def test_without_names_by_position_and_said(images: Data, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vit")
    assert accuracy(always("northeast", None), images).accuracy.correct == 3
    assert "labels: the model has no class names; class i of the data set is taken as output i" in caplog.messages
    with pytest.raises(InputError, match="no class names and 5 outputs, the data set has 4 classes"):
        accuracy(randomized(None, 5), images)


def test_a_data_set_of_fewer_classes(images: Data, caplog: pytest.LogCaptureFixture) -> None:
    """The model has a fifth class, in the middle; predicting it counts as wrong."""
    caplog.set_level(logging.INFO, "vit")
    names = ("southwest", "southeast", "north", "northwest", "northeast")
    weights, outputs = randomized(names, 5), (4, 3, 1, 0)
    assert accuracy(weights, images).accuracy.total == 7
    predictor = TorchPredictor(weights)
    found = evaluate(predictor, quadrants(12), CONFIG.evaluation, outputs=outputs)
    logits_BC = predictor.predict(_pixels_of(12)).astype(np.float64)
    expected_B = np.array(outputs)[np.arange(12) % 4]
    assert found.correct == (logits_BC.argmax(axis=1) == expected_B).sum()
    likelihoods_B = np.exp(logits_BC[np.arange(12), expected_B]) / np.exp(logits_BC).sum(axis=1)
    assert found.loss == pytest.approx(-np.log(likelihoods_B).mean(), rel=parity.FLOAT32_BOUND)
    assert any(
        "has 4 of the model's 5 classes; a prediction of another class counts as wrong" in m for m in caplog.messages
    )


def _pixels_of(count: int) -> np.ndarray:
    return EvaluationBatches(quadrants(count), CONFIG.preprocessing, count)[0].images_BHWC


def test_a_model_without_a_head_is_refused(images: Data) -> None:
    with pytest.raises(InputError, match="has no head"):
        accuracy(randomized(LABELS).with_head(0), images)


# Fine-tuning.


def test_a_head_in_another_order_is_kept() -> None:
    weights = randomized(REVERSED)
    ordered, config, changes = adapted(weights, CONFIG, LABELS)
    assert changes == ["the head is kept: its outputs are put in the order of the data set's classes, by name"]
    assert (config.model.num_classes, ordered.config.labels) == (4, LABELS)
    x_BHWC = _pixels_of(3)
    before_BC, after_BC = (TorchPredictor(each).predict(x_BHWC) for each in (weights, ordered))
    np.testing.assert_array_equal(after_BC, before_BC[:, ::-1])
    assert np.abs(before_BC).max() > 0.1


def test_a_head_without_names_is_kept_and_said() -> None:
    weights, _, changes = adapted(randomized(None), CONFIG, LABELS)
    assert changes == ["the head is kept: the checkpoint has no class names, so its output i is taken as class i"]
    np.testing.assert_array_equal(weights.arrays["head.weight"], randomized(None).arrays["head.weight"])


@pytest.mark.parametrize("labels", [("a", "b", "c", "d"), ("a", "b", "c")])
def test_other_classes_get_a_new_head(labels: tuple[str, ...]) -> None:
    weights, _, changes = adapted(randomized(LABELS), CONFIG, labels)
    assert changes == [f"a new head, zero-initialized: 4 classes before, {len(labels)} now"]
    assert not weights.arrays["head.weight"].any()


KEPT = {
    ("east", *REVERSED): "4 classes of the same name; 1 new, zero-initialized (east)",
    (
        *LABELS[:3],
        "east",
    ): "3 classes of the same name; 1 new, zero-initialized (east); 1 of the checkpoint are dropped",
    LABELS[1:3]: "2 classes of the same name; 2 of the checkpoint are dropped",
    ("east", LABELS[3]): "one class of the same name; 1 new, zero-initialized (east); 3 of the checkpoint are dropped",
    ("east", LABELS[3], LABELS[3]): "",  # two classes of one name cannot be told apart
}


@pytest.mark.parametrize("labels", KEPT)
@pytest.mark.parametrize("engine", ["jax", "torch"])
def test_rows_of_known_classes_are_kept(labels: tuple[str, ...], engine: str) -> None:
    """The outputs of these classes are the same, bit for bit; those of the others are zero."""
    weights, config, changes = adapted(randomized(LABELS), CONFIG, labels)
    said = (
        f"the head is kept for the {KEPT[labels]}" if KEPT[labels] else "a new head, zero-initialized: 4 classes before"
    )
    assert changes[0].startswith(said)
    assert len(weights.arrays["head.weight"]) == len(weights.arrays["head.bias"]) == len(labels)
    assert weights.config.model.num_classes == config.model.num_classes == len(labels)
    x_BHWC = _pixels_of(3)
    before_BC = ENGINES[engine](CONFIG, randomized(LABELS)).predict(x_BHWC)
    after_BC = ENGINES[engine](config, weights).predict(x_BHWC)
    for i, label in enumerate(labels):
        known = label in LABELS and bool(KEPT[labels])
        # Products of another number of rows may be added in another order: 16 roundings of float32.
        expected_B = before_BC[:, LABELS.index(label)] if known else np.zeros(3)
        np.testing.assert_allclose(after_BC[:, i], expected_B, atol=16 * 2**-24 * np.abs(before_BC).max())


@pytest.mark.parametrize("labels", [LABELS, REVERSED, ("east", *LABELS), None])
def test_a_new_head_is_chosen(labels: tuple[str, ...] | None) -> None:
    """Also for a checkpoint without names."""
    named = randomized(None if labels is None else LABELS)
    weights, _, changes = adapted(named, CONFIG.replace(head="new"), labels or LABELS)
    assert changes == [f"a new head, zero-initialized: 4 classes before, {len(labels or LABELS)} now"]
    assert not weights.arrays["head.weight"].any()
    biased = CONFIG.replace(head="new", model=MODEL.replace(head_bias_init=-3.0))
    assert adapted(named, biased, LABELS)[0].arrays["head.bias"].tolist() == [-3.0] * 4
    assert adapted(named, biased, LABELS)[2] == ["a new head, bias -3: 4 classes before, 4 now"]


def test_the_same_classes_change_nothing() -> None:
    weights, _, changes = adapted(randomized(LABELS), CONFIG, LABELS)
    assert changes == []
    np.testing.assert_array_equal(weights.arrays["head.weight"], randomized(LABELS).arrays["head.weight"])


# Preprocessing that no file records.

ASSUMED = (
    "preprocessing: the checkpoint does not record how its images were made; assumed mean=0.5 std=0.5 resize=crop "
    "crop_fraction=1 interpolation=bicubic; set "
)


def test_evaluation_says_what_it_assumes(images: Data, caplog: pytest.LogCaptureFixture) -> None:
    unknown = randomized(LABELS, preprocessing=False)
    accuracy(unknown, images)
    assert caplog.messages == [f"{ASSUMED}--preprocessing mean=VALUE"]
    accuracy(randomized(LABELS), images)
    assert len(caplog.messages) == 1


def test_evaluation_with_fields_of_the_users(images: Data, caplog: pytest.LogCaptureFixture) -> None:
    """The user's fields replace those of the checkpoint; fields that are not given are the checkpoint's, or assumed."""
    unknown = randomized(LABELS, preprocessing=False)
    expected = accuracy(with_preprocessing(mean=(0.2,), std=(0.1,)), images).accuracy
    assert expected != accuracy(randomized(LABELS), images).accuracy
    assert accuracy(unknown, images, preprocessing={"mean": [0.2], "std": [0.1]}).accuracy == expected
    assert [message.rpartition("; ")[2] for message in caplog.messages] == ["set --preprocessing resize=VALUE"]
    assert accuracy(randomized(LABELS), images, preprocessing={"mean": [0.2], "std": [0.1]}).accuracy == expected
    with pytest.raises(InputError, match="mean has 3 values, expected one for each of 1 channels"):
        accuracy(unknown, images, preprocessing={"mean": [0.1, 0.2, 0.3]})


def with_preprocessing(**fields: object) -> Checkpoint:
    weights = randomized(LABELS)
    made = Preprocessing(image_size=8, channels=1, **fields)  # type: ignore[arg-type]
    return weights.with_config(weights.config.replace(preprocessing=made))


def test_finetuning_says_what_it_assumes(images: Data, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vit")
    config = CONFIG.replace(data=images.replace(held_out=0.4), steps=4, batch_size=2)
    finetune(config, randomized(LABELS, preprocessing=False), tmp_path / "run", Launch("torch"))
    assert [message for message in caplog.messages if message.startswith("preprocessing")] == [
        f"{ASSUMED}--preprocessing.mean, --preprocessing.std, --preprocessing.resize, --preprocessing.crop-fraction, "
        "--preprocessing.interpolation"
    ]


def test_another_patch_size_resizes_the_kernel() -> None:
    """And the positions, to the grid that it gives on images of the same size."""
    weights = randomized(LABELS)
    finer = CONFIG.replace(model=CONFIG.model.replace(patch_size=2))
    changed, _, changes = adapted(weights, finer, LABELS)
    assert changes == ["patch size 4 x 4 -> 2 x 2, kernel resized as by FlexiViT"]
    kernel = resize_kernel(weights.arrays["patch_embed.proj.weight"], (2, 2))
    np.testing.assert_array_equal(changed.arrays["patch_embed.proj.weight"], kernel)
    assert changed.arrays["pos_embed"].shape[1] == finer.model.positions


def test_what_training_draws_of_rotary_positions_may_change() -> None:
    """Random changes of rotary coordinates may differ when fine-tuning begins, like dropout. Fields that change the
    network's outputs may not, and a resumed run may not change either."""
    rotary = CONFIG.model.replace(rope={"rescale": 2.0}, position_embedding="none")
    weights = Checkpoint.of(CheckpointConfig(model=rotary), parity.randomized(rotary, 0))
    other = CONFIG.replace(model=rotary.replace(rope={"jitter": 1.5, "shift": 0.1}))
    assert other.fitted(weights).config.model.rope == Rope(jitter=1.5, shift=0.1)
    with pytest.raises(InputError, match=r"rope is .*50.* here and .*100.* there"):
        other.replace(model=rotary.replace(rope={"base": 50.0})).fitted(weights)
    with pytest.raises(InputError, match="rope is None here"):
        other.replace(model=rotary.replace(rope=None)).fitted(weights)
    found = differences(Request(config=other), Request(config=other.replace(model=rotary)))
    assert {line.split()[0] for line in found} == {"model.rope.jitter", "model.rope.shift", "model.rope.rescale"}
