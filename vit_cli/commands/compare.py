"""`vit compare`"""

from vit_cli.option_types import Place, Target
from vit_cli.requirements import require
from vit_core.storage import location, require_local

COMPARED = location("compared.png")


def compare(a: Place, b: Place, /, *, out: Target = COMPARED) -> int:
    """Show how far two training runs of one config differ.

    Prints their losses side by side and the distance of their weights at the newest common step, and draws both loss
    curves.

    Example:
        vit compare runs/jax runs/torch

    Args:
        a: Folder of a run.
        b: Folder of another run.
        out: Figure to draw.
    """
    require("train", "matplotlib")
    from vit_cli.run_comparison import compare_runs
    from vit_train.figures import check_new_figure

    figure = require_local(out, "--out")
    check_new_figure(figure, "--out")
    compare_runs(a, b, figure)
    return 0
