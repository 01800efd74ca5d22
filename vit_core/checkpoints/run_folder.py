"""The checkpoints in a training run's folder: saved steps, and the finished checkpoint."""

from vit_core.checkpoints.formats.vit.folder import WEIGHTS
from vit_core.checkpoints.formats.vit.step import is_orbax_step
from vit_core.storage import Location

FINISHED = "checkpoint"
"""Name of the folder in a run's folder that holds the checkpoint of the finished run."""
STEPS = "steps"
"""Name of the folder in a run's folder that holds the saved steps, each in a folder named by its number."""


def saved_steps(run: Location) -> list[Location]:
    """The folders of a run's completely saved steps, newest first."""
    folders: list[Location] = [folder for folder in run.glob(f"{STEPS}/[0-9]*") if folder.name.isdigit()]
    steps = [folder for folder in folders if (folder / WEIGHTS).exists() or is_orbax_step(folder)]
    return sorted(steps, key=lambda step: int(step.name), reverse=True)


def checkpoint_in(path: Location) -> Location:
    """The checkpoint to open for a path. For a run's folder: the finished checkpoint or, if there is none, the newest
    saved step. For any other path: the path itself."""
    finished = path / FINISHED
    return finished if (finished / WEIGHTS).is_file() else next(iter(saved_steps(path)), path)
