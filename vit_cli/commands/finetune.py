"""`vit finetune`"""

from typing import Annotated

from cyclopts import Parameter

from vit_cli.option_types import FieldWords, OptionalPlace, PartName, Place, ReadFormat, open_and_report
from vit_cli.recipe_options import Changes, recipe_command
from vit_cli.training import Recipe, finish, launch, recipe_config, require_training, run_name
from vit_cli.twins import Framework
from vit_core.storage import location


@recipe_command
def finetune(
    recipe: Recipe,
    /,
    changes: Changes,
    *,
    init: Place,
    from_: ReadFormat | None = None,
    set_: FieldWords = (),
    part: PartName | None = None,
    framework: Framework = "torch",
    out: OptionalPlace = None,
    distributed: Annotated[str, Parameter(metavar="ADDRESS")] | None = None,
    preflight: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Train a model that starts from a checkpoint.

    Position embeddings are resampled for the new image size, and the head is replaced where the classes differ. Every
    field of the recipe is an option: `vit finetune RECIPE --help` lists them with the recipe's values. The same command
    continues a run that was stopped.

    Examples:
        vit finetune cifar10 --init runs/cifar10 --data.directory DIR
        vit finetune folder --init ViT-B_16.npz --data.name ./photos --image-size 384

    Args:
        recipe: Name of a recipe, or a Python file (see `vit pretrain --help`).
        init: Checkpoint of any format, training run or saved step to start from.
        from_: Format of that checkpoint, where it is not recognised.
        set_: A field of its model's config that it does not contain, such as heads=6. May be repeated.
        part: The model to read, where the file holds several, such as model_ema.
        framework: Framework that trains; either continues a run of the other.
        out: Folder of the run (default: runs/RECIPE_finetune); also an address in a store.
        distributed: See `vit pretrain --help`.
        preflight: Check that all processes agree, print devices, mesh and the loader's speed, and train nothing.
    """
    require_training(framework)
    from vit_train.stages import finetune as train

    checkpoint = open_and_report(init, from_, set_, part)
    config = recipe_config(recipe, "finetune", changes, checkpoint)
    folder = out or location(f"runs/{run_name(recipe)}_finetune")
    return finish(train(config, checkpoint, folder, launch(framework, distributed, preflight)))
