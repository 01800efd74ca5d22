"""`vit explain`"""

from vit_cli.option_types import FieldWords, OptionalPlace, PartName, ReadFormat, open_and_report
from vit_cli.recipe_options import Changes, recipe_command
from vit_cli.reports.recipe import print_recipe
from vit_cli.requirements import require
from vit_cli.training import Recipe, recipe_config
from vit_core.errors import InputError
from vit_train.config import Data


@recipe_command
def explain(
    recipe: Recipe,
    /,
    changes: Changes,
    *,
    init: OptionalPlace = None,
    from_: ReadFormat | None = None,
    set_: FieldWords = (),
    part: PartName | None = None,
) -> int:
    """Show what a recipe will do; nothing is run.

    Prints the resolved config, the schedule of the learning rate, the parameter groups, and the FLOPs. Every field of
    the recipe is an option: `vit explain RECIPE --help` lists them.

    Examples:
        vit explain cifar10
        vit explain cifar10 --optimizer.layer-decay 0.8 --steps 1000
        vit explain folder --init ViT-B_16.npz --image-size 384

    Args:
        recipe: Name of a recipe, or a Python file (see `vit pretrain --help`).
        init: Checkpoint to start from: explains fine-tuning instead of pretraining.
        from_: Format of that checkpoint, where it is not recognised.
        set_: A field of its model's config that it does not contain, such as heads=6. May be repeated.
        part: The model to read, where the file holds several, such as model_ema.
    """
    checkpoint = None if init is None else open_and_report(init, from_, set_, part)
    config = recipe_config(recipe, "pretrain" if checkpoint is None else "finetune", changes, checkpoint)
    examples, labels = _training_split(config.data)
    if checkpoint is not None and labels:
        config = config.replace(model=config.model.replace(num_classes=len(labels)))
    print_recipe(f"{recipe}: {'pretrain' if init is None else f'finetune {init}'}", config, examples)
    return 0


def _training_split(data: Data) -> tuple[int | None, tuple[str, ...]]:
    """The number of training examples and the labels, where the data are on this machine."""
    require("train", "tensorflow_datasets")
    from vit_train.data.sources import open_split

    try:
        split = open_split(data, "train")
    except InputError:
        return None, ()
    return len(split), split.labels
