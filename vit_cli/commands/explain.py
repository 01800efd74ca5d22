"""`vit explain`"""

from dataclasses import replace
from typing import Annotated

from cyclopts import Parameter

from vit_cli.console import say
from vit_cli.option_types import AS_RECORDED, OptionalPlace, ReadingOptions
from vit_cli.recipe_options import Changes, recipe_command
from vit_cli.reports.recipe import print_recipe
from vit_cli.requirements import require
from vit_cli.training import Epochs, Recipe, Stage, Variant, Wish
from vit_core.errors import InputError

EveryField = Annotated[bool, Parameter(name="--all", negative=())]


@recipe_command
def explain(
    recipe: Recipe,
    /,
    changes: Changes,
    *,
    init: OptionalPlace = None,
    stage: Stage | None = None,
    reading: ReadingOptions = AS_RECORDED,
    model: Variant | None = None,
    epochs: Epochs | None = None,
    every_field: EveryField = False,
) -> int:
    """Show what a recipe will do, without training.

    Prints the fields of the resolved config that differ from their defaults, with the values that are fitted to the
    training images, the learning-rate schedule, the parameter groups, and the FLOPs. Without --data, and without images
    on this machine, the recipe's own values are printed. Every field of the recipe is an option: `vit explain RECIPE
    --help` lists them.

    Examples:
        vit explain folder --data ./photos
        vit explain cifar10 --optimizer.layer-decay 0.8 --steps 1000
        vit explain folder --init ViT-B_16.npz --image-size 384
        vit explain imagenet_mae --init mae_base.pth --stage pretrain

    Args:
        recipe: Name of a recipe, or a Python file (see `vit pretrain --help`).
        init: Checkpoint to start from, as for `vit finetune`; with --stage pretrain, as for `vit pretrain`.
        stage: The command to explain. Default: finetune with --init, otherwise pretrain.
        reading: How the checkpoint is opened.
        model: A published architecture, such as B/16 (see `vit pretrain --help`).
        epochs: Length of the run in passes over the training images, instead of --steps.
        every_field: Also print the fields that have their default values.
    """
    stage = stage or ("pretrain" if init is None else "finetune")
    wish = Wish(recipe, stage, changes, model, epochs)
    if init is not None and stage == "pretrain":
        wish = wish.going_on_from(init, reading)
    elif init is not None:
        wish = replace(wish, init=reading.open_and_report(init))
    elif stage == "finetune":
        raise InputError("--stage finetune: give the checkpoint to start from with --init")
    require("train", "tensorflow_datasets")
    training = wish.training_split()
    config = wish.unfitted() if training is None else wish.fitted(training)
    for note in () if training is None else training.notes:
        say(note)
    title = f"{recipe}: {stage} {init or ''}".rstrip()
    print_recipe(title, config, None if training is None else len(training), every_field)
    return 0
