"""`vit explain`"""

from typing import TYPE_CHECKING

from vit_cli.console import say
from vit_cli.option_types import AS_RECORDED, OptionalPlace, ReadingOptions
from vit_cli.recipe_options import Changes, recipe_command
from vit_cli.reports.recipe import print_recipe
from vit_cli.requirements import require
from vit_cli.training import Epochs, Recipe, Variant, Wish
from vit_core.errors import InputError
from vit_train.config import Data

if TYPE_CHECKING:
    from vit_train.data.sources import Split


@recipe_command
def explain(
    recipe: Recipe,
    /,
    changes: Changes,
    *,
    init: OptionalPlace = None,
    reading: ReadingOptions = AS_RECORDED,
    model: Variant | None = None,
    epochs: Epochs | None = None,
) -> int:
    """Show what a recipe will do; nothing is run.

    Prints the resolved config with what is fitted to the training images, the schedule of the learning rate, the
    parameter groups, and the FLOPs. Every field of the recipe is an option: `vit explain RECIPE --help` lists them.

    Examples:
        vit explain folder --data ./photos
        vit explain cifar10 --optimizer.layer-decay 0.8 --steps 1000
        vit explain folder --init ViT-B_16.npz --image-size 384

    Args:
        recipe: Name of a recipe, or a Python file (see `vit pretrain --help`).
        init: Checkpoint to start from: explains fine-tuning instead of pretraining.
        reading: How the checkpoint is opened.
        model: A published architecture, such as B/16 (see `vit pretrain --help`).
        epochs: Length of the run in passes over the training images, instead of --steps.
    """
    checkpoint = None if init is None else reading.open_and_report(init)
    wish = Wish(recipe, "pretrain" if checkpoint is None else "finetune", changes, model, epochs, checkpoint)
    training = _training_split(wish.data())
    config = wish.unfitted() if training is None else wish.fitted(training)
    title = f"{recipe}: {'pretrain' if init is None else f'finetune {init}'}"
    print_recipe(title, config, None if training is None else len(training))
    return 0


def _training_split(data: Data) -> "Split | None":
    """The training split; None where the data are not on this machine, which is reported."""
    require("train", "tensorflow_datasets")
    from vit_train.data.sources import open_split

    try:
        return open_split(data, "train")
    except InputError as error:
        say(f"nothing is fitted to the data: {error}")
        return None
