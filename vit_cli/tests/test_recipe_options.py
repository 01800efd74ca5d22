"""The fields of a recipe as options: what they accept, what the help shows, what errors say."""

import json
import re
import shutil
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

from vit_cli.field_options import FieldOption, options_of, value_text
from vit_cli.recipe_options import changed, join_values
from vit_cli.tests.printed import Vit
from vit_core import CheckpointConfig, variant
from vit_core.errors import InputError
from vit_train import recipes
from vit_train.config import TrainConfig, flatten

OPTIONS: dict[str, FieldOption] = {option.name: option for option in options_of(TrainConfig)}


@pytest.mark.parametrize(
    ("name", "words", "value"),
    [
        ("--steps", "10", 10),
        ("--optimizer.learning-rate", "1e-3", 1e-3),
        ("--optimizer.learning-rate", "1", 1.0),
        ("--optimizer.clip-norm", "none", None),
        ("--optimizer.clip-norm", "None", None),
        ("--optimizer.name", "lion", "lion"),
        ("--model.distillation", "none", "none"),
        ("--compute-dtype", "none", None),
        ("--data.name", "123", "123"),
        ("--data.train-split", "none", None),
        ("--mesh.data", "-1", -1),
        ("--model.image-size", "384", (384, 384)),
        ("--model.image-size", "384x512", (384, 512)),
        ("--model.image-size", "384 512", (384, 512)),
        ("--augmentation.crop-area", "0.5 1", (0.5, 1.0)),
        ("--augmentation.crop-area", "none", None),
        ("--optimizer.frozen", "a.* b", ("a.*", "b")),
        ("--optimizer.frozen", "none", ()),
        ("--optimizer.frozen", "", ()),
        ("--model.stem-layers", "3 4 9", (3, 4, 9)),
        ("--model.stem-layers", "none", None),
        ("--preprocessing.mean", "0.5", (0.5,)),
        ("--class-weights", "balanced", ("balanced",)),
        ("--class-weights", "1 2.5", (1.0, 2.5)),
        ("--class-weights", "none", ()),
    ],
)
def test_values(name: str, words: str, value: object) -> None:
    option, typed = OPTIONS[name], words.split()
    assert option.parse(typed) == value
    assert option.words_of_value([*typed, "--steps", "3"]) == len(typed)


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("--steps", "x", "--steps: expected an integer, found x"),
        ("--steps", "1.5", "--steps: expected an integer, found 1.5"),
        ("--steps", "0", "--steps: expected 1 or more, found 0"),
        ("--optimizer.learning-rate", "fast", "--optimizer.learning-rate: expected a number, found fast"),
        ("--optimizer.learning-rate", "nan", "--optimizer.learning-rate: expected "),
        ("--optimizer.epsilon", "0", "--optimizer.epsilon: expected more than 0, found 0"),
        ("--augmentation.flip", "2", "--augmentation.flip: expected at most 1, found 2"),
        ("--augmentation.crop-area", "0.5", "--augmentation.crop-area: expected 2 values, found 1"),
        ("--augmentation.crop-area", "0.5 x", "--augmentation.crop-area: expected a number, found x"),
        ("--optimizer.name", "adamv", "--optimizer.name: unknown value 'adamv'; did you mean 'adamw'?"),
        ("--model.image-size", "big", "--model.image-size: image size 'big': expected pixels"),
        ("--class-weights", "1 0", "--class-weights: expected more than 0, found 0"),
        ("--class-weights", "even", "--class-weights: expected a number, found even"),
        ("--model.rope", "dinov4", "--model.rope: unknown published variant 'dinov4'; did you mean 'dinov3'?"),
        ("--model.rope", '{"base":', "--model.rope: expected fields as JSON"),
        ("--model.rope", '{"base":-1}', "--model.rope: base: expected more than 0, found -1"),
        ("--preprocessing.resize", "stretch", "--preprocessing.resize: unknown value 'stretch'"),
    ],
)
def test_wrong_values(name: str, words: str, message: str) -> None:
    with pytest.raises(InputError) as raised:
        OPTIONS[name].parse(words.split())
    assert str(raised.value).startswith(message)


def test_every_field_has_an_option_with_an_explanation() -> None:
    assert len(OPTIONS) > 90
    assert [option.name for option in OPTIONS.values() if not option.help] == []
    assert "--preprocessing.image-size" not in OPTIONS, "it is always the model's"


def test_every_value_of_every_recipe_can_be_typed() -> None:
    """Each value as text gives the value again."""
    for name in recipes.names():
        recipe, init = recipes.open_recipe(name), CheckpointConfig(model=variant("B/8", 224, 1000))
        stage = "pretrain" if recipe.has("pretrain") else "finetune"
        config: Any = recipe.config(stage, init)
        for option in OPTIONS.values():
            value = config
            for part in option.path:
                value = getattr(value, part)
            if not option.is_flag:
                assert option.parse(value_text(value).split()) == value, (name, option.name)


def test_words_of_several_values_are_joined() -> None:
    joined = join_values(
        ["pretrain", "--optimizer.frozen", "a", "b", "--no-scan", "--steps", "3", "r", "--", "--steps"]
    )
    assert joined == ["pretrain", "--optimizer.frozen=a\x1fb", "--no-scan", "--steps=3", "r", "--", "--steps"]
    assert join_values(["--steps"]) == ["--steps"], "its value is missing"
    assert join_values(["--steps", "3", "--steps=4"]) == ["--steps=4"], "the last one holds"
    assert join_values(["--scan", "--no-scan"]) == ["--no-scan"]


def test_fields_that_do_not_fit_together_name_an_option() -> None:
    config = recipes.load("cifar10", "pretrain")
    with pytest.raises(InputError, match=r"^--model.heads: 5 does not divide width 192"):
        changed(config, {("model", "heads"): 5})
    with pytest.raises(InputError, match=r"^--accumulation: 7 does not divide batch_size 128"):
        changed(config, {("accumulation",): 7})
    with pytest.raises(InputError, match=r"^schedule: 11000 steps of warm-up"):
        changed(config, {("steps",): 10})
    both = changed(config, {("model", "width"): 96, ("model", "heads"): 6, ("steps",): 20_000})
    assert (both.model.width, both.model.heads, both.steps) == (96, 6, 20_000)
    assert both.replace(model=config.model, steps=config.steps) == config


def test_options_may_stand_before_the_recipe(vit: Vit, recipe: str) -> None:
    """Whatever number of words their values have; underscores are hyphens, and the last value of an option holds."""
    words = ["--optimizer.frozen", "patch_embed.*", "cls_token", "--steps", "9", "--model.image_size", "16", "8"]
    words += ["--augmentation.crop-area", "none", "--no-scan", "--optimizer.weight-decay=0.1", "--mesh.data", "-1"]
    out = vit("explain", "--all", *words, recipe, "--steps", "10", "--optimizer.clip-norm", "None", "--keep-every", "2")
    fields = dict(re.findall(r"^ (\S+) +(.*?) *$", out, re.M))
    assert fields["optimizer.frozen"] == "patch_embed.* cls_token"
    assert fields["steps"] == "10"
    assert fields["model.image_size"] == "16 8"
    assert fields["augmentation.crop_area"] == "none"
    assert fields["scan"] == "false"
    assert fields["optimizer.weight_decay"] == "0.1"
    assert fields["optimizer.clip_norm"] == "none"
    assert fields["mesh.data"] == "-1"


def test_explain_leaves_out_default_values(vit: Vit, recipe: str) -> None:
    """What it prints is enough to make the whole config."""

    def fields(*words: str) -> dict[str, str]:
        changes = ["--lora.rank", "4", "--ema", "0.9", "--model.no-qkv-bias", "--augmentation.crop-ratio", "1", "1"]
        printed = vit("explain", recipe, *changes, *words)
        return dict(re.findall(r"^ (\S+) +(.*?) *$", printed.partition("schedule\n")[0], re.M))

    short, every = fields(), fields("--all")
    assert {name: short[name] for name in ("lora.rank", "ema", "seed")} == {"lora.rank": "4", "ema": "0.9", "seed": "0"}
    assert "lora.alpha" not in short
    config: dict[str, Any] = {}
    for option in OPTIONS.values():
        *sections, name = option.path
        if (printed := short.get(".".join(option.path))) is not None:
            section = reduce(lambda inner, part: inner.setdefault(part, {}), sections, config)
            section[name] = printed == "true" if option.is_flag else option.parse(printed.split())
    made = flatten(TrainConfig(**config).model_dump())
    assert {name: value_text(value) for name, value in made.items() if every[name] != value_text(value)} == {}


def test_printed_values_can_be_typed(vit: Vit, recipe: str) -> None:
    """Every value that `vit explain` prints, as the value of its option."""
    printed = vit("explain", recipe, "--all")
    fields = re.findall(r"^ (\S+) +(.*?) *$", printed.partition("schedule\n")[0], re.M)
    words = []
    for option in options_of(TrainConfig):
        (value,) = [value for name, value in fields if name == ".".join(option.path)]
        if option.is_flag:  # one that is neither set nor unset is left out
            words += {"true": [option.name], "false": [option.negative], "none": []}[value]
        else:
            words += [option.name, *value.split()]
    assert vit("explain", *words, recipe, "--all") == printed


def test_framework_before_the_recipe(vit: Vit, recipe: str, tmp_path: Path) -> None:
    vit("pretrain", "--framework", "torch", "--out", tmp_path / "run", recipe)
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])["engine"] == "torch"


def test_a_run_that_was_killed_before_its_first_line_keeps_its_framework(vit: Vit, recipe: str, tmp_path: Path) -> None:
    vit("pretrain", "--framework", "torch", "--out", tmp_path / "run", recipe)
    for path in (tmp_path / "run").iterdir():
        if path.name != "run.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert f"{tmp_path / 'run'}: a training run without a saved step; `vit resume" in vit(
        "inspect", tmp_path / "run", status=2
    )
    assert "pretrain (torch)" in vit("resume", tmp_path / "run")
    vit("resume", tmp_path / "run", "--steps", "9", "--framework", "jax")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["framework"] == "jax"


def test_help_shows_the_values_of_the_recipe(vit: Vit, recipe: str) -> None:
    text = " ".join(vit("pretrain", recipe, "--help").replace("│", " ").split())
    assert re.search(r"--optimizer.learning-rate (NUMBER )?Peak of the schedule. (NUMBER )?\[default: 0.003\]", text)
    assert "--model.no-qkv-bias" in text
    assert "Recipe: model" not in vit("pretrain", "--help"), "the fields depend on the recipe"
    tuned = " ".join(vit("finetune", "--help", "cifar10").replace("│", " ").split())
    assert "[default: 48 48]" in tuned
    assert "[default: the checkpoint's]" in tuned
