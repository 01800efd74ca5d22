"""The data on which a command evaluates a checkpoint: the data of its run, or other data with chosen columns."""

from dataclasses import asdict, dataclass
from typing import Annotated

from cyclopts import Parameter

from vit_cli.console import say
from vit_core.errors import InputError
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
    group: Annotated[str | None, Parameter(name="--data.group", metavar="NAME")] = None
    """Column of groups, such as patients: images of one group are held out together or not at all, and intervals allow
    for their dependence. Default: as in the run, if the data have this column."""


DEFAULT_COLUMNS = Columns()


def other_data(
    name: str, of_run: Data | None, columns: Columns = DEFAULT_COLUMNS, directory: str | None = None
) -> Data:
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
    data = Data(name=name, directory=directory, **{**inherited, **given})
    return data if data.group is None or columns.group else _without_missing_groups(data)


def _without_missing_groups(data: Data) -> Data:
    """The data, without the run's column of groups if they do not have it, which is then printed."""
    from vit_train.data.sources import NoGroupsError, open_split

    try:
        open_split(data, "test")
    except NoGroupsError as error:
        say(f"{error}; the run's groups are left out: the images count as independent of each other")
        return data.replace(group=None)
    except InputError:
        pass  # it is reported where the data are used
    return data


def data_of_run(checkpoint: Location, required: bool = True) -> Data | None:
    """The data of the training run that a folder is, or is in; None without a run. For a damaged run.json, raises
    InputError if they are required; otherwise returns None, because the checkpoint may be intact."""
    from vit_train.run import read_request

    run = run_containing(checkpoint)
    try:
        return None if run is None else read_request(run).config.data
    except InputError:
        if required:
            raise
        return None


def run_containing(checkpoint: Location) -> Location | None:
    """The training run that a folder is, or is in (checkpoint, steps/000100)."""
    from vit_train.run import RUN

    folder = absolute(checkpoint)
    return next((run for run in (folder, folder.parent, folder.parent.parent) if (run / RUN).is_file()), None)
