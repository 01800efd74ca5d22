"""`vit resume`"""

from typing import Annotated

from cyclopts import Parameter

from vit_cli.option_types import Target
from vit_cli.recipe_options import Changes, recipe_command
from vit_cli.training import go_on
from vit_cli.twins import Framework


@recipe_command
def resume(
    run: Target,
    /,
    changes: Changes,
    *,
    framework: Framework | None = None,
    distributed: Annotated[str, Parameter(metavar="ADDRESS")] | None = None,
    preflight: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Continue a run that was stopped, or train a finished run further.

    The config is read from the run's run.json. --steps (all steps of the run), --batch-size, --accumulation,
    --compute-dtype and --optimizer.learning-rate may change: this begins a new segment at the newest saved step, which
    run.json records. The run continues with the next example. From then on, the learning rate is that of a run which
    had the new values from its start, at the same number of examples. For another batch size the number of steps is
    computed again, so that the run uses the same number of examples, unless --steps is given. `vit resume RUN --help`
    lists what else may change.

    Examples:
        vit resume runs/folder
        vit resume runs/folder --steps 5000
        vit resume runs/folder --batch-size 64 --framework torch

    Args:
        run: Folder of a run, or its address in a store.
        framework: Framework that trains (default: the one that trained the run last).
        distributed: See `vit pretrain --help`.
        preflight: Check that all processes agree, print devices, mesh and the loader's speed, and train nothing.
    """
    return go_on(run, changes, framework, distributed, preflight)
