"""Training on images of any aspect: the same batches and steps in both engines, padding that changes no gradient, and
predictions of what was trained."""

import io
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from PIL import Image
from transformers.models.siglip2.image_processing_siglip2 import get_image_size_for_max_num_patches

import vit_jax
import vit_jax.naflex
import vit_torch
import vit_torch.naflex
from parity_tests.test_naflex import KINDS, MODEL, SIZES, distance, images_of, in_jax, in_torch
from parity_tests.twins import checkpoint
from vit_core import CheckpointConfig, ViTConfig, parity
from vit_core.checkpoints import Checkpoint
from vit_core.errors import InputError
from vit_core.naflex import Patches, collate
from vit_core.parameters import parameters
from vit_core.preprocess import Preprocessing, decode, load_image, resize_image
from vit_train.config import Augmentation, EvaluationOptions, Optimizer, Schedule, TrainConfig
from vit_train.data.batches import Batches
from vit_train.data.sources import Split
from vit_train.engines.jax.engine import JaxEngine
from vit_train.engines.jax.predictor import JaxPredictor
from vit_train.engines.torch.engine import TorchEngine
from vit_train.engines.torch.predictor import TorchPredictor
from vit_train.evaluation import evaluate

PLAIN = MODEL.replace(stochastic_depth=0.2, pooling="gap")
ROTARY = PLAIN.replace(
    rope={"shift": 0.3, "jitter": 1.5, "rescale": 2.0}, position_embedding="none", head_dim=8, registers=2, dropout=0.1
)
LABELS = ("a", "b", "c", "d", "e")


def of_many_aspects(count: int = 24) -> Split:
    """Images between 8 and 40 pixels wide and high; one cannot be read."""
    rng, examples = np.random.default_rng(0), []
    for i in range(count):
        file = io.BytesIO()
        height, width = rng.integers(8, 41, 2)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(file, "PNG")
        examples.append({"image": b"" if i == 3 else file.getvalue(), "label": i % 5})
    return Split(examples, LABELS, "many aspects")


def config(model: ViTConfig, **fields: Any) -> TrainConfig:
    return TrainConfig(
        **{
            "model": model,
            "preprocessing": Preprocessing(image_size=16, max_patches=12, patch_size=4),
            "sequence_lengths": (6, 12),
            "augmentation": Augmentation(crop_area=(0.3, 1.0), flip=0.5, erasing=0.3),
            "optimizer": Optimizer(name="sgd", learning_rate=3e-2, weight_decay=0.1),
            "schedule": Schedule(warmup_steps=4),
            "steps": 20,
            "batch_size": 8,
            "dtype": "float64",
            **fields,
        }
    )


RUNS: dict[str, Any] = {
    "plain": {"model": PLAIN},
    "rotary, accumulation": {"model": ROTARY, "accumulation": 2, "ema": 0.9},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "rotary, accumulation"])
def test_twenty_steps_are_the_same(kind: str) -> None:
    run = config(**RUNS[kind])
    weights, batches = checkpoint(run.model), Batches(of_many_aspects(), run)
    engines = JaxEngine(run, weights), TorchEngine(run, weights)
    for step in range(run.steps):
        a, b = (engine.train_step(batches[step], step) for engine in engines)
        assert abs(float(a.loss) - float(b.loss)) <= parity.FLOAT64_BOUND * abs(float(b.loss)), f"step {step}"
    in_jax, in_torch = (engine.export() for engine in engines)
    for name in in_torch:
        assert parity.difference(in_jax[name], in_torch[name])[1] <= parity.FLOAT64_BOUND, name
    moved = parity.difference(in_torch["blocks.1.mlp.fc1.weight"], weights.arrays["blocks.1.mlp.fc1.weight"])[1]
    assert moved > 1e-3, "nothing was trained"
    assert engines[0].step.train._cache_size() == len(run.sequence_lengths), "a program for each length"


def test_a_batch_is_a_function_of_the_seed_and_its_number() -> None:
    run = config(PLAIN)
    batches = Batches(of_many_aspects(), run)
    lengths = [batches[step].images_BHWC.patches_BNV.shape[1] for step in range(12)]
    assert set(lengths) == {6, 12}
    again = Batches(of_many_aspects(), run, rows=np.arange(4, 8))
    for step in (5, 2):
        whole, half = batches[step], again[step]
        for found, expected in zip(half.images_BHWC, whole.images_BHWC, strict=True):
            np.testing.assert_array_equal(found, expected[4:])
        assert whole.fingerprint() == Batches(of_many_aspects(), run)[step].fingerprint()
    grids = np.concatenate([batches[step].images_BHWC.grids_B2 for step in range(12)])
    assert len(np.unique(grids, axis=0)) > 6, "aspects are kept"
    assert (grids.prod(axis=1) <= 12).all()
    unreadable = next(batch for batch in map(batches.__getitem__, range(12)) if (batch.weights_B == 0).any())
    row = int(np.flatnonzero(unreadable.weights_B == 0)[0])
    assert unreadable.images_BHWC.grids_B2[row].tolist() == [1, 1]


def test_images_are_resized_as_in_transformers() -> None:
    """To the size that Siglip2ImageProcessor takes, by Pillow."""
    preprocessing = Preprocessing(image_size=32, max_patches=16, patch_size=8, interpolation="bilinear")
    for example in of_many_aspects(8).examples[4:]:
        opened = Image.open(io.BytesIO(example["image"]))
        height, width = get_image_size_for_max_num_patches(
            opened.height, opened.width, patch_size=8, max_num_patches=16
        )
        expected = np.asarray(opened.resize((width, height), Image.Resampling.BILINEAR))
        found = resize_image(decode(example["image"], preprocessing), preprocessing)
        np.testing.assert_array_equal(found, expected)


def gradients_in_torch(model: vit_torch.ViT, batch: Patches, probe_BC: np.ndarray) -> dict[str, np.ndarray]:
    model.zero_grad()
    (model(in_torch(batch)) * torch.from_numpy(probe_BC)).sum().backward()
    return {name: p.grad.numpy().copy() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["map", "gap", "class token and registers", "rotary positions"])
def test_padding_changes_no_gradient(kind: str) -> None:
    """In both twins, gradients depend neither on the amount of padding nor on its values."""
    weights, probe_BC = checkpoint(MODEL.replace(**KINDS[kind])), np.random.default_rng(1).standard_normal((3, 5))
    model = vit_torch.load(weights, dtype="float64")
    tight, padded = (collate(images_of(SIZES), model.config, length=length) for length in (16, 23))
    padded.patches_BNV[~padded.valid_BN] = 1e3
    expected = gradients_in_torch(model, tight, probe_BC)
    found = gradients_in_torch(model, padded, probe_BC)
    graph, state = nnx.split(vit_jax.load(weights, dtype="float64"))
    loss = jax.jit(jax.grad(lambda state, batch: (nnx.merge(graph, state)(batch) * probe_BC).sum()))
    ours = vit_jax.arrays.read(nnx.merge(graph, loss(state, in_jax(padded))))
    rows = parameters(model.config)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        # The gradient of a key bias is zero in exact arithmetic: rounding noise beside the other gradients of its row.
        bound = parity.FLOAT64_BOUND * max(np.abs(gradient).max(), 1.0)
        np.testing.assert_allclose(found[name], gradient, 0, bound, err_msg=name)
        np.testing.assert_allclose(rows[name].to_torch(np.asarray(ours[name])), gradient, 0, bound, err_msg=name)


def test_what_was_trained_evaluates_and_predicts_the_same(tmp_path: Path) -> None:
    """Both predictors, both pipelines, and each image alone through the model."""
    made = Preprocessing(image_size=16, max_patches=12, patch_size=4)
    weights = checkpoint(PLAIN)
    saved = Checkpoint.of(
        CheckpointConfig(model=PLAIN, preprocessing=made, labels=LABELS), {n: weights.arrays[n] for n in weights.arrays}
    )
    split, options = of_many_aspects(), EvaluationOptions(preprocessing=made, batch_size=7, allow_undecodable=True)
    accuracies = [evaluate(make(saved, dtype="float64"), split, options) for make in (JaxPredictor, TorchPredictor)]
    assert accuracies[0].total == 23
    assert accuracies[0].correct == accuracies[1].correct
    assert accuracies[0].loss == pytest.approx(accuracies[1].loss, rel=parity.FLOAT64_BOUND)
    files = []
    for i, example in enumerate(split.examples[4:9]):
        files.append(tmp_path / f"{i}.png")
        files[-1].write_bytes(example["image"])
    named = [twin.pipeline(saved, dtype="float64", batch_size=3)([*map(str, files)]) for twin in (vit_jax, vit_torch)]
    model = vit_torch.load(saved, dtype="float64")
    for i, file in enumerate(files):
        with torch.no_grad():
            logits_C = model(in_torch(collate([load_image(file, made).astype(np.float64)], PLAIN)))[0]
        expected = torch.softmax(logits_C, 0).sort(descending=True).values.numpy()
        for found in named:
            assert distance(np.array(found[i].probabilities), expected) < parity.FLOAT64_BOUND


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"augmentation": Augmentation(mixup=0.1)}, "mixup and cutmix: for images of one size"),
        ({"augmentation": Augmentation(random_crop=True)}, "random_crop: for images of one size"),
        ({"patch_sizes": (4, 8)}, "patch_sizes: for images of one size"),
        ({"sequence_lengths": (6, 6)}, "has a length twice"),
        ({"preprocessing": Preprocessing(image_size=16)}, "set preprocessing.max_patches too"),
        ({"model": PLAIN.replace(relative_bias="table")}, "need a model without relative positions"),
    ],
)
def test_impossible_combinations(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        config(**{"model": PLAIN, **fields})
