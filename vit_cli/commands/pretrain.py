"""`vit pretrain`"""

from typing import Annotated

from cyclopts import Parameter

from vit_cli.option_types import OptionalPlace
from vit_cli.recipe_options import Changes, recipe_command
from vit_cli.training import Recipe, finish, launch, recipe_config, require_training, run_name
from vit_cli.twins import Framework
from vit_core.storage import location


@recipe_command
def pretrain(
    recipe: Recipe,
    /,
    changes: Changes,
    *,
    framework: Framework = "jax",
    out: OptionalPlace = None,
    distributed: Annotated[str, Parameter(metavar="ADDRESS")] | None = None,
    preflight: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Train a model from new weights.

    RECIPE is cifar10, digits, folder, imagenet_s16, imagenet_l16, jft_g14, or a Python file like those in
    train/vit_train/recipes. Every field of the recipe is an option: `vit pretrain RECIPE --help` lists them with the
    recipe's values.

    The same command continues a run that was stopped, in either framework. The devices of all processes share a run as
    --mesh.data, --mesh.fsdp and --mesh.tensor say (default: each device takes a part of the batch).

    Examples:
        vit pretrain cifar10 --data.directory DIR
        vit pretrain folder --data.name ./photos --model.num-classes 5 --steps 2000
        vit pretrain cifar10 --framework torch --optimizer.learning-rate 1e-3 --out runs/slower

    Args:
        recipe: Name of a recipe, or a Python file.
        framework: Framework that trains; either continues a run of the other.
        out: Folder of the run (default: runs/RECIPE); also an address in a store.
        distributed: For several JAX processes: HOST:PORT,INDEX/COUNT, with the address of the first process and the
            number of this one; or `off`. Default: found on TPU pods, under SLURM and Open MPI. (PyTorch: torchrun.)
        preflight: Check that all processes agree, print devices, mesh and the loader's speed, and train nothing.
    """
    require_training(framework)
    from vit_train.stages import pretrain as train

    config = recipe_config(recipe, "pretrain", changes)
    folder = out or location(f"runs/{run_name(recipe)}")
    return finish(train(config, folder, launch(framework, distributed, preflight)))
