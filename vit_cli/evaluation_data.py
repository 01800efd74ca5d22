"""The data on which a command evaluates a checkpoint: the data of its run, or other data with chosen columns."""

from dataclasses import asdict, dataclass
from typing import Annotated

from cyclopts import Parameter

from vit_core.storage import Location, absolute
from vit_train.config import Data


@dataclass(frozen=True)
class Columns:
    """Which columns of a table, of parquet files or of shards are used, as in `vit_train.config.Data`."""

    image_column: Annotated[str | None, Parameter(name="--data.image-column", metavar="NAME")] = None
    """Column of the paths or images of --data. Default: as in the run, otherwise path, image, file or similar."""
    label_column: Annotated[str | None, Parameter(name="--data.label-column", metavar="NAME")] = None
    """Column of the labels. Default: as in the run, otherwise label, class, category or a similar name."""
    label_separator: Annotated[str | None, Parameter(name="--data.label-separator", metavar="TEXT")] = None
    """Separator of several labels in one cell, such as ";". Default: as in the run."""
    label_columns: Annotated[
        tuple[str, ...], Parameter(name="--data.label-columns", metavar="NAMES", consume_multiple=True)
    ] = ()
    """Columns with 1 or 0, one for each class, instead of a column of labels. Default: as in the run."""
    split_column: Annotated[str | None, Parameter(name="--data.split-column", metavar="NAME")] = None
    """Column with the split of each image. Default: as in the run, otherwise split, if there is one."""


DEFAULT_COLUMNS = Columns()


def other_data(name: str, of_run: Data | None, columns: Columns = DEFAULT_COLUMNS) -> Data:
    """Data with another name, with the given columns, or else those of the run."""
    given = {column: value for column, value in asdict(columns).items() if value}
    labels_given = any(column.startswith("label") for column in given)
    inherited = (
        {}
        if of_run is None
        else {
            column: getattr(of_run, column)
            for column in asdict(columns)
            if not (labels_given and column.startswith("label"))
        }
    )
    return Data(name=name, **{**inherited, **given})


def data_of_run(checkpoint: Location) -> Data | None:
    """The data of the training run that a folder is, or is in; None without a run."""
    from vit_train.run import read_request

    run = run_containing(checkpoint)
    return None if run is None else read_request(run).config.data


def run_containing(checkpoint: Location) -> Location | None:
    """The training run that a folder is, or is in (checkpoint, steps/000100)."""
    from vit_train.run import RUN

    folder = absolute(checkpoint)
    return next((run for run in (folder, folder.parent, folder.parent.parent) if (run / RUN).is_file()), None)
