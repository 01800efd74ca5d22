"""The data on which a command evaluates a checkpoint: the data of its run, or other data with chosen columns."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any, TypeAlias

from cyclopts import Parameter

from vit_cli.console import say
from vit_core.errors import InputError
from vit_core.storage import Location, absolute
from vit_train.config import Data

_GROUP = (
    "Column of groups, such as patients: images of one group are held out together or not at all, and intervals allow "
    "for their dependence. Default: as in the run, if the data have this column."
)
_KINDS_OF_DATA = (
    "Images: a folder, written with a slash; a table (.csv, .tsv, .jsonl); a .parquet or .tar file; the name of a "
    "tensorflow-datasets set; or digits."
)
_RUN = "Default: the data of the run that the checkpoint belongs to."


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
    group: Annotated[str | None, Parameter(name="--data.group", metavar="NAME", help=_GROUP)] = None


ALL_DEFAULT = Columns()


@dataclass(frozen=True)
class GivenData:
    """The data that a command is given: options of every command that uses a checkpoint on data."""

    name: Annotated[str | None, Parameter(name="--data", metavar="DATA", help=_KINDS_OF_DATA)] = None
    directory: Annotated[str | None, Parameter(name="--data-dir", metavar="FOLDER")] = None
    """Folder in which tensorflow-datasets sets are prepared."""
    columns: Annotated[Columns, Parameter(name="*")] = ALL_DEFAULT
    """Columns of the data."""
    split: Annotated[str | None, Parameter(name="--split", metavar="NAME")] = None
    """Split of the data. Default: test if there is one, else a validation split."""

    def check_columns(self) -> None:
        """Raises InputError for columns without --data."""
        given = next((name for name, value in asdict(self.columns).items() if value), None)
        if given is not None and self.name is None:
            raise InputError(f"--data.{given.replace('_', '-')}: needs --data; without it, no other columns are read")

    def of(self, of_run: Data | None, **fields: Any) -> Data | None:
        """The data of --data, with the columns of the run that they have; None without --data. fields: other fields,
        such as held_out."""
        if self.name is None:
            return None
        found = other_data(self.name, of_run, self.columns, self.directory)
        return found.replace(eval_split=self.split, **fields)


@dataclass(frozen=True)
class GivenOrRunData(GivenData):
    """The data that a command is given; without --data, those of the checkpoint's run."""

    name: Annotated[str | None, Parameter(name="--data", metavar="DATA", help=f"{_KINDS_OF_DATA} {_RUN}")] = None

    def of(self, of_run: Data | None, **fields: Any) -> Data | None:
        """The data of --data, as in `GivenData.of`; without it, those of the run with the given folder and split."""
        if self.name is not None or of_run is None:
            return super().of(of_run, **fields)
        return of_run.replace(directory=self.directory or of_run.directory, eval_split=self.split or of_run.eval_split)


NO_DATA = GivenData()
DATA_OF_RUN = GivenOrRunData()
DataOptions: TypeAlias = Annotated[GivenData, Parameter(name="*")]
DataOrRunOptions: TypeAlias = Annotated[GivenOrRunData, Parameter(name="*")]


def other_data(name: str, of_run: Data | None, columns: Columns = ALL_DEFAULT, directory: str | None = None) -> Data:
    """Data with another name, with the given columns, or else those of the run that they have."""
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
    data, alone = (Data(name=name, directory=directory, **fields) for fields in ({**inherited, **given}, given))
    return data if data == alone else _fitting(data, alone)


def _fitting(data: Data, alone: Data) -> Data:
    """The data with the run's columns, without those that they do not have, which is then printed. alone: the same data
    without any column of the run."""
    from vit_train.data.sources import NoGroupsError

    error = _fault(data)
    if isinstance(error, NoGroupsError) and alone.group is None:
        say(f"{error}; the run's groups are left out: the images count as independent of each other")
        data = data.replace(group=None)
        error = None if data == alone else _fault(data)
    if error is not None and _fault(alone) is None:
        say(f"{error}; the columns of the run are left out")
        return alone
    return data  # any other fault is reported where the data are used


def _fault(data: Data) -> InputError | None:
    """Why data cannot be opened; None if they can."""
    from vit_train.data.sources import open_split

    try:
        open_split(data, "test")
    except InputError as error:
        return error
    return None


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
