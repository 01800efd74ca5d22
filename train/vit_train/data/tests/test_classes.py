"""Classes of examples: multi-hot targets, class weights that equal scikit-learn's, balanced sampling."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare
from sklearn.preprocessing import MultiLabelBinarizer
from sklearn.utils.class_weight import compute_class_weight

from vit_core.errors import InputError
from vit_train.config import Augmentation, TrainConfig
from vit_train.data.augmentation import draw_mix
from vit_train.data.batches import MIX_STREAM, Batches, EvaluationBatches
from vit_train.data.classes import Occurrences, balanced_weights
from vit_train.data.sources import Split
from vit_train.data.streams import stream
from vit_train.tests.small_run import CONFIG, LABELS, png

PLAIN = CONFIG.replace(augmentation=Augmentation(), batch_size=16, steps=4)
MULTI = PLAIN.replace(loss="sigmoid")
SETS = [(0,), (1, 3), (), (2,), (0, 1, 2, 3), (0,), (3, 0), (0,)]


def split(labels: list[Any], multilabel: bool = False) -> Split:
    rng = np.random.default_rng(0)
    examples = [{"image": png(0, rng), "label": label} for label in labels]
    return Split(examples, LABELS, "mine", multilabel=multilabel)


def labels_of(counts: tuple[int, ...]) -> list[int]:
    """So many labels of each class, mixed."""
    return [int(label) for label in np.random.default_rng(1).permutation(np.repeat(np.arange(4), counts))]


UNEVEN = split(labels_of((25, 10, 4, 1)))
SEVERAL = split(SETS * 4, multilabel=True)


@pytest.mark.parametrize("counts", [(25, 10, 4, 1), (7, 0, 2, 30)])
def test_balanced_weights_equal_scikit_learns(counts: tuple[int, ...]) -> None:
    labels = labels_of(counts)
    found, occur = balanced_weights(Occurrences.of(split(labels)).counts_C), np.unique(labels)
    expected = compute_class_weight("balanced", classes=occur, y=np.array(labels))
    np.testing.assert_array_equal(found[occur], expected)
    assert found[np.bincount(labels, minlength=4) == 0].tolist() == [1.0] * (4 - len(occur))
    assert found[labels].mean() == pytest.approx(1, rel=1e-15)


def test_balanced_weights_of_sets_are_those_of_all_their_labels() -> None:
    flat = [label for labels in SETS for label in labels]
    found = balanced_weights(Occurrences.of(SEVERAL).counts_C)
    expected = compute_class_weight("balanced", classes=np.arange(4), y=np.array(flat * 4))
    np.testing.assert_array_equal(found, expected)


def test_labels_that_a_split_knows_are_not_read() -> None:
    class Known(list[Any]):
        labels_N = np.array([2, 2, 0])

    known = Known([{"image": b"", "label": 1}] * 3)
    assert Occurrences.of(Split(known, LABELS, "mine")).counts_C.tolist() == [1, 0, 2, 0]
    assert Occurrences.of(Split(known, LABELS, "mine")).examples_P.tolist() == [2, 0, 1]
    with pytest.raises(InputError, match=r"mine\[0\]: label 2, expected 0 to 1"):
        Occurrences.of(Split(known, LABELS[:2], "mine"))
    known.labels_N = [(0, 3), (), (3,)]  # type: ignore[assignment]
    assert Occurrences.of(Split(known, LABELS, "mine", multilabel=True)).examples_P.tolist() == [0, 0, 2, 1]
    assert Occurrences.of(Split([*known], LABELS, "mine")).counts_C.tolist() == [0, 3, 0, 0]


def test_an_example_has_the_weight_of_its_class() -> None:
    broken = [*UNEVEN.examples]
    lost = int(Batches(UNEVEN, PLAIN)[0].ids_B[3])
    broken[lost] = {**broken[lost], "image": b""}
    for asked in ("balanced", (0.5, 1.0, 3.0, 7.0)):
        batches = Batches(Split(broken, LABELS, "mine"), PLAIN.replace(class_weights=asked))
        batch, plain = batches[0], Batches(UNEVEN, PLAIN)[0]
        weights_C = [0.4, 1.0, 2.5, 10.0] if asked == "balanced" else asked  # 40 labels / (4 classes x 25), ...
        expected = [weights_C[UNEVEN.examples[int(i)]["label"]] * (i != lost) for i in batch.ids_B]
        np.testing.assert_array_equal(batch.weights_B, np.float32(expected))
        assert (batch.weights_B == 0).sum() == 1
        np.testing.assert_array_equal(batch.targets_BC, plain.targets_BC)
        assert plain.weights_B.tolist() == [1.0] * 16


def test_several_classes_have_the_mean_of_their_weights() -> None:
    batch = Batches(SEVERAL, MULTI.replace(class_weights=(0.5, 1.0, 3.0, 7.0)))[0]
    of_set = {(0,): 0.5, (1, 3): 4.0, (): 1.0, (2,): 3.0, (0, 1, 2, 3): 2.875, (3, 0): 3.75}
    assert batch.weights_B.tolist() == [of_set[SEVERAL.examples[int(i)]["label"]] for i in batch.ids_B]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_targets_of_sets_are_scikit_learns_indicators(smoothing: float) -> None:
    batch = Batches(SEVERAL, MULTI.replace(label_smoothing=smoothing))[0]
    sets = [SEVERAL.examples[int(i)]["label"] for i in batch.ids_B]
    has_BC = MultiLabelBinarizer(classes=range(4)).fit_transform(sets)
    expected = np.where(has_BC, 1 - smoothing + smoothing / 4, smoothing / 4).astype(np.float32)
    np.testing.assert_array_equal(batch.targets_BC, expected)
    assert {len(labels) for labels in sets} == {0, 1, 2, 4}
    evaluated = next(iter(EvaluationBatches(SEVERAL, MULTI.preprocessing, 32)))  # type: ignore[call-overload]
    np.testing.assert_array_equal(evaluated.labels_B, MultiLabelBinarizer(classes=range(4)).fit_transform(SETS * 4))
    assert evaluated.labels_B.dtype == bool


@pytest.mark.parametrize("sort", ["mixup", "cutmix"])
def test_targets_and_weights_are_mixed_alike(sort: str) -> None:
    weighted = MULTI.replace(class_weights=(0.5, 1.0, 3.0, 7.0))
    plain = Batches(SEVERAL, weighted)[1]
    augmentation = Augmentation(**{sort: 1.0})
    mixed = Batches(SEVERAL, weighted.replace(augmentation=augmentation))[1]
    for k in range(8):
        pair = slice(2 * k, 2 * k + 2)
        rng = np.random.default_rng([weighted.seed, MIX_STREAM, 8 + k])
        share = draw_mix(augmentation, weighted.model.image_size, rng).share(weighted.model.image_size)
        for name in ("targets_BC", "weights_B"):
            ours, own = getattr(mixed, name)[pair], getattr(plain, name)[pair]
            # float32 of a float64 sum of two float32 numbers below 8.
            np.testing.assert_allclose(ours, share * own + (1 - share) * own[::-1], rtol=2**-22)
    assert (mixed.weights_B != plain.weights_B).any()


def test_balanced_sampling_draws_every_class_equally_often() -> None:
    """40 images, of which one is in a class of its own: it is drawn as often as the 25 of another class together."""
    order, draws = Batches(UNEVEN, PLAIN.replace(sampling="balanced")).order, 8000
    drawn = np.bincount(order.take(np.arange(draws)), minlength=40)
    labels = np.array([example["label"] for example in UNEVEN.examples])
    expected = draws / (4 * np.bincount(labels)[labels])
    # By chance in one of a thousand seeds; the seed is fixed. Without balance, p is below 1e-300.
    assert chisquare(drawn, expected).pvalue > 1e-3
    assert chisquare(np.bincount(labels, drawn), [draws / 4] * 4).pvalue > 1e-3


def test_balanced_sampling_of_sets() -> None:
    """First a class, or none of them, then an example: the probability is the sum over the example's classes."""
    order, draws = Batches(SEVERAL, MULTI.replace(sampling="balanced")).order, 8000
    drawn = np.bincount(order.take(np.arange(draws)), minlength=32)
    groups = Counter(label for labels in SETS * 4 for label in labels or [None])
    chances = [sum(1 / (5 * groups[label]) for label in labels or [None]) for labels in SETS * 4]
    assert sum(chances) == pytest.approx(1)
    assert chisquare(drawn, np.array(chances) * draws).pvalue > 1e-3


@pytest.mark.slow
def test_balanced_batches_are_a_function_of_seed_and_index() -> None:
    config = PLAIN.replace(sampling="balanced", class_weights="balanced")
    batches = Batches(UNEVEN, config)
    prints = [batches[i].fingerprint() for i in range(4)]
    assert len(set(prints)) == 4
    assert [batch.fingerprint() for batch in stream(batches, slice(2, 4))] == prints[2:]
    assert [batch.fingerprint() for batch in stream(batches, slice(1, 4), threads=1, workers=1)] == prints[1:]
    halves = [Batches(UNEVEN, config, rows)[1] for rows in np.split(np.arange(16), 2)]
    assert np.concatenate([half.digests() for half in halves]).tolist() == batches[1].digests().tolist()
    np.testing.assert_array_equal(batches.ids(1), batches[1].ids_B)
    assert Batches(UNEVEN, config.replace(seed=1))[0].fingerprint() != prints[0]


REFUSED = [
    (SEVERAL, PLAIN, "loss: softmax is for images of one class, but mine is multi-label; use sigmoid"),
    (
        UNEVEN,
        PLAIN.replace(class_weights=(1.0, 2.0)),
        "class_weights: 2 numbers for the 4 classes of mine; expected one",
    ),
]


@pytest.mark.parametrize(("examples", "config", "message"), REFUSED)
def test_labels_that_do_not_fit_the_config(examples: Split, config: TrainConfig, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Batches(examples, config)


@pytest.mark.parametrize("label", [(0, 1), ()])
def test_sets_need_a_multilabel_split(label: tuple[int, ...]) -> None:
    examples = split([label] * 16)
    for made in (Batches(examples, PLAIN), EvaluationBatches(examples, PLAIN.preprocessing, 8)):
        with pytest.raises(
            InputError, match=rf"mine\[\d+\]: {len(label)} labels, expected one: mine is not multi-label"
        ):
            made[0]
    with pytest.raises(InputError, match=r"mine\[\d+\]: label 4, expected 0 to 3"):
        Batches(split([(0, 4)] * 16, multilabel=True), MULTI)[0]


def test_class_weights_of_a_config() -> None:
    assert PLAIN.class_weights == ()
    assert PLAIN.replace(class_weights="balanced").class_weights == ("balanced",)
    assert TrainConfig.parse(PLAIN.replace(class_weights=(1, 2.5)).model_dump(mode="json"), "x").class_weights == (
        1,
        2.5,
    )
    for wrong in (("balanced", 1.0), (0.0, 1.0), "even", (-1.0,)):
        with pytest.raises(InputError, match="class_weights"):
            PLAIN.replace(class_weights=wrong)
