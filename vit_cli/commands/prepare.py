"""`vit prepare`"""

from typing import Annotated

from cyclopts import Parameter

from vit_cli.console import say
from vit_cli.option_types import Place, Target
from vit_cli.requirements import require
from vit_core.storage import require_local


def prepare(
    folder: Place,
    /,
    *,
    out: Target,
    name: Annotated[str, Parameter(metavar="NAME")] | None = None,
    held_out: float = 0.1,
    split_seed: int = 0,
    workers: int | None = None,
    shard_size_mib: int = 256,
) -> int:
    """Pack a folder of images into a data set that loads fast.

    The folder has one subfolder for each class, or train and test (validation, val) with one subfolder for each class.
    The result is ArrayRecord as tensorflow-datasets lays it out. The same command continues one that was stopped.

    Example:
        vit prepare ./photos --out ~/data
        vit pretrain folder --data.name photos --data.directory ~/data

    Args:
        folder: Folder of images.
        out: Folder in which NAME/1.0.0 is made. To use it: --data.name NAME --data.directory OUT.
        name: Name of the data set (default: the folder's name).
        held_out: Share of each class that becomes the split "test", where the folder has no splits.
        split_seed: Seed that chooses these images, and the order in which all images are packed.
        workers: Number of processes (default: one for each core).
        shard_size_mib: Size at which a file is closed and the next one begins, in MiB.
    """
    require("train", "tensorflow_datasets", "array_record")
    from vit_cli.reports.training import TerminalDisplay
    from vit_train.data.prepare import prepare as pack

    prepared = pack(
        require_local(folder, "FOLDER"),
        require_local(out, "--out"),
        name=name,
        held_out=held_out,
        split_seed=split_seed,
        workers=workers,
        shard_size_mib=shard_size_mib,
        display=TerminalDisplay(),
    )
    say(prepared.summary)
    return 0
