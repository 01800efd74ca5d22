"""`vit plan`"""

import os
from typing import Annotated

from cyclopts import Parameter

from vit_cli.console import say
from vit_cli.recipe_options import Changes, recipe_command
from vit_cli.requirements import require
from vit_cli.training import Recipe, Variant, Wish
from vit_train.config import TrainConfig
from vit_train.planning import topologies


@recipe_command
def plan(
    recipe: Recipe,
    /,
    changes: Changes,
    *,
    model: Variant | None = None,
    topology: Annotated[str, Parameter(metavar="SLICE")] = topologies.LOCAL,
    fit: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Compile a recipe for a TPU slice and show the memory it needs.

    The training step is compiled without the hardware. The report shows the memory of a device as XLA counts it, the
    collectives, and the shortest time that a step can take. The exit status is 1 if the recipe does not fit.
    Compilations are kept in ~/.cache/vit-parity. With --data, the recipe is fitted to the training images, as in
    training.

    Examples:
        vit plan folder --data ./photos
        vit plan imagenet_l16 --topology v5e:16x16
        vit plan imagenet_l16 --topology v5e:16x16 --fit

    Args:
        recipe: Name of a recipe, or a Python file (see `vit pretrain --help`).
        model: A published architecture, such as B/16 (see `vit pretrain --help`).
        topology: A slice of v4, v5e, v5p, v6e or tpu7x and the chips along each side, such as v5e:16x16 or v5p:8x8x4;
            or local: the devices of this machine.
        fit: Search batch size, rematerialisation and mesh for the largest batch that fits.
    """
    asked = None if topology == topologies.LOCAL else topologies.parse(topology, f"{topologies.LOCAL}, or ")
    require("jax", "jax", "flax", "optax")
    if asked is not None:
        require("tpu", "libtpu")
        os.environ |= topologies.WITHOUT_HARDWARE
    config = _config(Wish(recipe, "pretrain", changes, model))
    from vit_cli import plan_run  # imports jax, which reads the environment

    return int(not plan_run.run(recipe, config, asked, fit))


def _config(wish: Wish) -> TrainConfig:
    """The config that training would have; the recipe's own, if the user names no data or they are not here."""
    if wish.names_data:
        require("train", "tensorflow_datasets")
        if (training := wish.training_split()) is not None:
            return wish.fitted(training)
    elif wish.fits_small_sets:
        say(f"the recipe's own sizes and classes: vit plan {wish.recipe} --data FOLDER fits them to the images")
    return wish.unfitted()
