"""`vit prepare`"""

from typing import Annotated

from cyclopts import Parameter

from vit_cli.console import say
from vit_cli.option_types import Place, Target, at_least
from vit_cli.requirements import require
from vit_core.storage import require_local


def prepare(
    source: Place,
    /,
    *,
    out: Target,
    name: Annotated[str, Parameter(metavar="NAME")] | None = None,
    held_out: float = 0.1,
    split_seed: int = 0,
    workers: int | None = None,
    shard_size_mib: int = 256,
    image_column: Annotated[str | None, Parameter(name="--data.image-column", metavar="NAME")] = None,
    label_column: Annotated[str | None, Parameter(name="--data.label-column", metavar="NAME")] = None,
    split_column: Annotated[str | None, Parameter(name="--data.split-column", metavar="NAME")] = None,
    group: Annotated[str | None, Parameter(name="--data.group", metavar="NAME")] = None,
) -> int:
    """Pack images into a data set that loads fast.

    The images are in one subfolder for each class, or in train and test (validation, val) with one subfolder for each
    class; or a table lists them; or they are in parquet files, in a folder that `datasets` saved, or in tar shards. The
    result is an ArrayRecord data set in the layout of tensorflow-datasets. The same command continues after an
    interruption.

    Examples:
        vit prepare ./photos --out ~/data
        vit prepare labels.csv --out ~/data --name photos
        vit pretrain folder --data.name photos --data.directory ~/data

    Args:
        source: Folder of images, table (.csv, .tsv, .jsonl), .parquet or .tar file, or a pattern of files in quotes.
        out: Folder in which NAME/1.0.0 is made. To use it: --data.name NAME --data.directory OUT.
        name: Name of the data set (default: that of the folder or file).
        held_out: Fraction of each class that becomes the split "test", if the source has no splits.
        split_seed: Seed that selects these images, and the order in which all images are packed.
        workers: Number of processes (default: one for each core).
        shard_size_mib: Size in MiB at which a file is closed and the next one is started.
        image_column: Column of the paths or images, as in training.
        label_column: Column of the labels.
        split_column: Column of the splits.
        group: Column of groups, such as patients: the images of one group are held out together or not at all. The
            group of each image is stored, so that `vit evaluate` allows for it in its intervals.
    """
    at_least(1, workers=workers, shard_size_mib=shard_size_mib)
    require("train", "tensorflow_datasets", "array_record")
    from vit_cli.reports.training import TerminalDisplay
    from vit_train.data.prepare import prepare as pack

    prepared = pack(
        require_local(source, "SOURCE"),
        require_local(out, "--out"),
        name=name,
        held_out=held_out,
        split_seed=split_seed,
        workers=workers,
        shard_size_mib=shard_size_mib,
        display=TerminalDisplay(),
        image_column=image_column,
        label_column=label_column,
        split_column=split_column,
        group=group,
    )
    for line in prepared.summary:
        say(line)
    return 0
