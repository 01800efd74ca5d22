"""`vit finetune`"""

from typing import Annotated

from cyclopts import Parameter

from vit_cli.option_types import (
    AS_RECORDED,
    OptionalPlace,
    OptionalTarget,
    ReadingOptions,
)
from vit_cli.recipe_options import Changes, recipe_command
from vit_cli.training import (
    Epochs,
    Recipe,
    Wish,
    finish,
    go_on,
    launch,
    only_for_new_runs,
    require_training,
    run_name,
    run_of,
)
from vit_cli.twins import Framework
from vit_core.errors import InputError
from vit_core.storage import location


@recipe_command
def finetune(
    recipe: Recipe,
    /,
    changes: Changes,
    *,
    init: OptionalPlace = None,
    reading: ReadingOptions = AS_RECORDED,
    epochs: Epochs | None = None,
    framework: Framework | None = None,
    out: OptionalTarget = None,
    distributed: Annotated[str, Parameter(metavar="ADDRESS")] | None = None,
    preflight: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Train a model that starts from a checkpoint.

    Position embeddings are resampled for the new image size; rows of the head for classes with other names are new.
    Every field of the recipe is an option: `vit finetune RECIPE --help` lists them with the recipe's values. The same
    command continues a run that was stopped.

    Examples:
        vit finetune cifar10 --init runs/cifar10 --data.directory DIR
        vit finetune folder --init ViT-B_16.npz --data ./photos --image-size 384

    Args:
        recipe: Name of a recipe, or a Python file (see `vit pretrain --help`). With the folder of a run, this command
            does the same as `vit resume`.
        init: Checkpoint of any format, training run or saved step to start from. Required for a new run.
        reading: How the checkpoint is opened.
        epochs: Length of the run in passes over the training images, instead of --steps.
        framework: Framework that trains (default: torch); either can resume a run of the other.
        out: Folder of the run, or an address in a store (default: runs/RECIPE_finetune).
        distributed: See `vit pretrain --help`.
        preflight: Check that all processes agree, print devices, mesh and the loader's speed, and train nothing.
    """
    if (run := run_of(recipe)) is not None:
        only_for_new_runs(init=init, epochs=epochs, out=out)
        return go_on(run, changes, framework, distributed, preflight)
    if init is None:
        raise InputError("vit finetune: the option --init is missing; see vit finetune --help")
    framework = framework or "torch"
    require_training(framework)
    from vit_train.stages import finetune as train
    from vit_train.stages import open_splits

    checkpoint = reading.open_and_report(init)
    wish = Wish(recipe, "finetune", changes, epochs=epochs, init=checkpoint)
    folder = out or location(f"runs/{run_name(recipe)}_finetune")
    splits = open_splits(wish.data())
    config = wish.fitted(splits[0], folder)
    return finish(train(config, checkpoint, folder, launch(framework, distributed, preflight), splits))
