"""Fields that are fitted to the training images, fields that are not, and independence of the evaluation split."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vit_core import variant
from vit_core.config import ViTConfig
from vit_train import recipes
from vit_train.config import Schedule, TrainConfig
from vit_train.data.sources import Split
from vit_train.fitting import (
    BATCH,
    CLASSES,
    IMAGE_SIZE,
    PATCH_SIZE,
    STEPS,
    WARMUP,
    TrainingSet,
    decoder_note,
    fitted_fields,
)
from vit_train.tests.small_run import CONFIG, LABELS, quadrants

FOLDER = recipes.load("folder", "pretrain")


def fitted(examples: int, side: int | None = 500, recipe: TrainConfig = FOLDER, **asked: Any) -> dict[str, Any]:
    """Fields by dotted name; `chosen` as such names too."""
    chosen = {tuple(name.split(".")): value for name, value in asked.pop("chosen", {}).items()}
    asked = {"most_epochs": 300} | asked
    fields = fitted_fields(recipe, chosen, TrainingSet(examples, 3, side), **asked)
    return {".".join(path): value for path, value in fields.items()}


def test_a_small_set_gets_a_small_batch_and_three_hundred_epochs() -> None:
    assert fitted(270) == {
        "model.num_classes": 3,
        "batch_size": 32,
        "steps": 2532,  # 300 x 270 / 32, rounded up
        "schedule.warmup_steps": 253,
        "evaluate_every": 253,
    }
    assert fitted(50)["save_every"] == 187, "of 1875 steps"
    assert fitted(12)["batch_size"] == 8
    assert fitted(5)["batch_size"] == 4, "whole pairs"


def test_a_large_set_of_large_images_leaves_the_recipe_as_it_is() -> None:
    assert fitted(100_000) == {"model.num_classes": 3}


def test_what_is_chosen_is_never_changed_and_the_rest_follows_it() -> None:
    fields = fitted(270, chosen={"batch_size": 10, "model.num_classes": 5, "evaluate_every": 0})
    assert not fields.keys() & {"batch_size", "model.num_classes", "evaluate_every"}
    assert fields["steps"] == 8100
    assert fitted(270, chosen={"steps": 60})["schedule.warmup_steps"] == 6
    assert "steps" not in fitted(270, chosen={"steps": 60})
    assert fitted(270, epochs=10)["steps"] == 84, "10 x 270 / 32"


@pytest.mark.parametrize(
    ("side", "patch", "size"),
    [(170, None, None), (150, 16, 144), (64, 8, 64), (36, 4, 36), (28, 2, 28), (7, 1, 8), (None, None, None)],
)
def test_small_images_are_not_enlarged(side: int | None, patch: int | None, size: int | None) -> None:
    fields = fitted(100_000, side)
    model = FOLDER.model.replace(**{name.partition(".")[2]: value for name, value in fields.items()})
    assert model.image_size == ((size or 224,) * 2)
    assert model.patch_size == ((patch or 16,) * 2)
    if size:
        assert min(model.grid) >= 8
    assert not fitted(100_000, side, new_weights=False).keys() & {"model.image_size", "model.patch_size"}
    kept = fitted(100_000, side, chosen={"model.patch_size": (16, 16)})
    assert kept.get("model.image_size", (224, 224))[0] in (128, 144, 224), "at least 8 x 8 patches"


def test_other_recipes_are_fitted_only_where_they_would_fail() -> None:
    recipe = CONFIG.replace(steps=1000, schedule=Schedule(warmup_steps=100))
    assert fitted(64, 8, recipe, most_epochs=None) == {"model.num_classes": 3}
    assert fitted(64, 8, recipe, most_epochs=None, chosen={"steps": 100})["schedule.warmup_steps"] == 10
    assert "schedule.warmup_steps" not in fitted(64, 8, recipe, most_epochs=None, chosen={"steps": 101})
    assert fitted(11, 8, recipe, most_epochs=None)["batch_size"] == 10
    cooled = recipe.replace(schedule=Schedule(name="constant", cooldown_steps=500))
    assert fitted(64, 8, cooled, most_epochs=None, chosen={"steps": 100}) == {
        "model.num_classes": 3,
        "schedule.cooldown_steps": 20,
    }


def test_a_masked_autoencoder_gets_several_batches_an_epoch() -> None:
    """Its recipe's batch of 4,096 images is more than many sets have."""
    recipe = recipes.load("imagenet_mae", "pretrain")
    asked: dict[str, Any] = {"recipe": recipe, "most_epochs": None, "chosen": {"steps": 200}}
    assert fitted(360, **asked)["batch_size"] == 32, "11 batches; 64 would be 5"
    assert fitted(20_000, **asked)["batch_size"] == 2048
    assert "batch_size" not in fitted(8 * 4096, **asked)
    assert fitted(8 * 4096 - 1, **asked)["batch_size"] == 2048
    assert "batch_size" not in fitted(360, **{**asked, "chosen": {"batch_size": 300}})


@pytest.mark.parametrize(
    ("name", "size", "advice"),
    [
        ("mu/4", 48, "--mae.decoder-width 16 --mae.decoder-depth 1 --mae.decoder-heads 2"),
        ("Ti/16", 224, "--mae.decoder-width 96 --mae.decoder-depth 8 --mae.decoder-heads 3"),
        ("B/16", 224, None),
        ("L/16", 224, None),
    ],
)
def test_a_decoder_that_is_larger_than_the_encoder_is_named(name: str, size: int, advice: str | None) -> None:
    """The advice is followed, so it has to be a decoder that is possible and that needs no other advice."""
    recipe = recipes.load("imagenet_mae", "pretrain")
    model = variant(name, image_size=size, num_classes=0, position_embedding="sincos2d_mae")
    config = recipe.replace(model=model, preprocessing=recipe.preprocessing.replace(image_size=size))
    note = decoder_note(config)
    assert (note is None) if advice is None else (note is not None and note.endswith(f"a smaller one: {advice}"))
    if advice is not None:
        width, depth, heads = map(int, advice.split()[1::2])
        smaller = recipe.mae.replace(decoder_width=width, decoder_depth=depth, decoder_heads=heads)
        assert decoder_note(config.replace(mae=smaller)) is None
        parts = config.replace(mae=smaller).forward_flops
        decoder = sum(count for part, count in parts.items() if "decoder" in part)
        assert 0.5 < decoder / (sum(parts.values()) - decoder) < 4
    assert decoder_note(FOLDER) is None


def test_every_fitted_config_is_valid() -> None:
    for examples in (2, 3, 9, 50, 333, 5000):
        for recipe, stage in ((FOLDER, 300), (CONFIG, None)):
            fields = fitted_fields(recipe, {}, TrainingSet(examples, 3, 30), most_epochs=stage)
            model: ViTConfig = recipe.model.replace(
                **{path[1]: value for path, value in fields.items() if path in (CLASSES, IMAGE_SIZE, PATCH_SIZE)}
            )
            top = {path[0]: value for path, value in fields.items() if path in (BATCH, STEPS)}
            schedule = recipe.schedule.replace(warmup_steps=fields.get(WARMUP, recipe.schedule.warmup_steps))
            assert recipe.replace(model=model, schedule=schedule, **top).batch_size <= examples


def test_the_training_set_is_what_is_counted() -> None:
    """Sizes from the headers; an image that cannot be opened does not count."""
    examples = list(quadrants(40).examples)
    for i, size in enumerate(((30, 50), (90, 20), (70, 71))):
        file = io.BytesIO()
        Image.fromarray(np.zeros((size[1], size[0]), np.uint8)).save(file, "PNG")
        examples[i] = {"image": file.getvalue(), "label": 0}
    examples[3] = {"image": b"no image", "label": 0}
    assert TrainingSet.of(Split(examples[:4], LABELS, "mine")) == TrainingSet(4, 4, 30)
    assert TrainingSet.of(Split(examples[3:4], LABELS, "mine")).side is None
