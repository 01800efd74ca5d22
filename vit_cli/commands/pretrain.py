"""`vit pretrain`"""

from typing import Annotated

from cyclopts import Parameter

from vit_cli.option_types import AS_RECORDED, OptionalPlace, OptionalTarget, ReadingOptions
from vit_cli.recipe_options import Changes, recipe_command
from vit_cli.training import (
    Epochs,
    Recipe,
    Variant,
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
from vit_core.storage import location


@recipe_command
def pretrain(
    recipe: Recipe,
    /,
    changes: Changes,
    *,
    model: Variant | None = None,
    init: OptionalPlace = None,
    reading: ReadingOptions = AS_RECORDED,
    epochs: Epochs | None = None,
    framework: Framework | None = None,
    out: OptionalTarget = None,
    distributed: Annotated[str, Parameter(metavar="ADDRESS")] | None = None,
    preflight: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Train a model from new weights.

    RECIPE is folder, digits, cifar10, imagenet_s16, deit3_s16 or another of the papers' recipes, or a Python file like
    those in train/vit_train/recipes. Every field of the recipe is an option: `vit pretrain RECIPE --help` lists them
    with the recipe's values.

    Some values are fitted to the training images and printed, unless an option sets them: the number of classes, and
    for the recipe `folder` the image and patch size, the batch size, the number of steps and the warm-up.

    The same command continues a run that was stopped, in either framework. --mesh.data, --mesh.fsdp and --mesh.tensor
    set how the devices of all processes share a run (default: each device computes a part of the batch).

    Examples:
        vit pretrain cifar10 --data.directory DIR
        vit pretrain folder --data ./photos --model S/16 --epochs 100
        vit pretrain cifar10 --framework torch --lr 1e-3 --out runs/slower
        vit pretrain imagenet_mae --init hf://facebook/vit-mae-base --data ./photos

    Args:
        recipe: Name of a recipe, or a Python file. With the folder of a run, this command does the same as `vit
            resume`.
        model: A published architecture: mu, Ti, S, M, B, L, So400m, H, g, G or e, a slash, and the patch size.
        init: For masked autoencoders: checkpoint of any format, or training run, whose encoder (and decoder, if it has
            one) training starts from.
        reading: How that checkpoint is opened.
        epochs: Length of the run in passes over the training images, instead of --steps.
        framework: Framework that trains (default: jax); either can resume a run of the other.
        out: Folder of the run (default: runs/RECIPE); also an address in a store.
        distributed: For several JAX processes: HOST:PORT,INDEX/COUNT, with the address of the first process and the
            number of this one; or `off`. Default: found on TPU pods, under SLURM and Open MPI. (PyTorch: torchrun.)
        preflight: Check that all processes agree, print devices, mesh and the loader's speed, and train nothing.
    """
    if (run := run_of(recipe)) is not None:
        only_for_new_runs(model=model, init=init, epochs=epochs, out=out)
        return go_on(run, changes, framework, distributed, preflight)
    framework = framework or "jax"
    require_training(framework)
    from vit_train.stages import open_splits
    from vit_train.stages import pretrain as train

    wish = Wish(recipe, "pretrain", changes, model, epochs)
    if init is not None:
        wish = wish.going_on_from(init, reading)
    folder = out or location(f"runs/{run_name(recipe)}")
    splits = open_splits(wish.data())
    config, how = wish.fitted(splits[0], folder), launch(framework, distributed, preflight)
    if wish.init is not None:
        from vit_train.masked_pretraining import pretrain_from

        return finish(pretrain_from(config, wish.init, folder, how, splits))
    return finish(train(config, folder, how, splits))
