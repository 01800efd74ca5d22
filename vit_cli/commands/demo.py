"""`vit demo`"""

from vit_cli.option_types import Target, at_least
from vit_cli.requirements import require
from vit_cli.training import stopped_by_signal
from vit_core.storage import check_writable, location, require_local

DEMO = location("runs/demo")


def demo(*, out: Target = DEMO, seed: int = 0) -> int:
    """Run the whole workflow on handwritten digits, in minutes.

    Pretrains a small model in JAX, opens its checkpoint in PyTorch, checks that both are the same model, fine-tunes at
    a higher resolution, and evaluates both stages on held-out images. Nothing is downloaded. The exit status is 1 if
    the two models differ.

    Example:
        vit demo --out runs/demo

    Args:
        out: Folder for checkpoints, metrics and figures; the files of an earlier demo in it are replaced.
        seed: Seed of all random numbers.
    """
    at_least(0, seed=seed)
    folder = require_local(out, "--out")
    check_writable(folder)
    require("train", "jax", "torch", "grain", "tensorflow_datasets", "sklearn", "matplotlib")
    from vit_cli.demonstration import demonstrate

    with stopped_by_signal():
        return int(not demonstrate(folder, seed))
