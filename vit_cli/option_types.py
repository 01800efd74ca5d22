"""Options that several commands share, and their types: locations, sizes, fields of a config, formats."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from cyclopts import Parameter, Token

from vit_cli import console
from vit_cli.twins import Framework
from vit_core.checkpoints import Checkpoint, open_checkpoint
from vit_core.checkpoints.formats.registry import FORMATS, TARGETS
from vit_core.errors import InputError
from vit_core.field_text import parse_fields, parse_size
from vit_core.storage import Location, location, writable_location


def _to_location(type_: object, tokens: Sequence[Token]) -> Location:
    return location(tokens[0].value)


def _to_target(type_: object, tokens: Sequence[Token]) -> Location:
    return writable_location(tokens[0].value)


def _to_size(type_: object, tokens: Sequence[Token]) -> int | tuple[int, int]:
    try:
        return parse_size(tokens[0].value)
    except InputError as error:
        raise InputError(f"{tokens[0].keyword}: {error}") from None


def _choice(name: str, names: Sequence[str]) -> Parameter:
    return Parameter(name=name, choices=tuple(names), show_choices=True, metavar="FORMAT")


if TYPE_CHECKING:
    Place: TypeAlias = Location
    OptionalPlace: TypeAlias = Location | None
    Target: TypeAlias = Location
    OptionalTarget: TypeAlias = Location | None
    OptionalSize: TypeAlias = int | tuple[int, int] | None
else:  # cyclopts checks what a converter returns against the type before Parameter
    Place = Annotated[Any, Parameter(converter=_to_location, metavar="PATH")]
    """A file or folder on this machine, or an address in a store or in the Hub."""
    OptionalPlace = Place
    Target = Annotated[Any, Parameter(converter=_to_target, metavar="PATH")]
    """A file or folder to write, on this machine or in a store."""
    OptionalTarget = Target
    OptionalSize = Annotated[Any, Parameter(converter=_to_size, metavar="SIZE")]
    """Pixels: 384, or height x width as 384x512."""


WrittenFormat: TypeAlias = Annotated[str, _choice("--to", TARGETS)]


@dataclass(frozen=True)
class Reading:
    """How a checkpoint is opened: options of every command that opens checkpoints of any format."""

    format: Annotated[str | None, _choice("--from", FORMATS)] = None
    """Format of the checkpoint, if it is not recognized."""
    fields: Annotated[tuple[str, ...], Parameter(name="--set", metavar="FIELD=VALUE")] = ()
    """A field of the model's config that the checkpoint does not contain, such as heads=6. May be repeated."""
    part: Annotated[str | None, Parameter(metavar="NAME")] = None
    """The model to read, if the file contains several, such as model_ema."""
    base: OptionalPlace = None
    """For a folder of adapters, the checkpoint that they belong to (default: the one that the folder names)."""

    def open(self, source: Location) -> Checkpoint:
        """Opens a checkpoint, a training run or a saved step. Raises InputError for one that cannot be read."""
        fields = parse_fields(self.fields)
        return open_checkpoint(source, format=self.format, fields=fields, part=self.part, base=self.base)

    def open_and_report(self, source: Location) -> Checkpoint:
        """Opens a checkpoint as `open` does. For one of another project, also prints its format and the assumed
        values."""
        checkpoint = self.open(source)
        if checkpoint.format != "vit":
            console.say(f"{checkpoint.origin}: {checkpoint.format}")
            for note in checkpoint.notes:
                console.say(f"  {note}")
        return checkpoint


AS_RECORDED = Reading()
ReadingOptions: TypeAlias = Annotated[Reading, Parameter(name="*")]
Unreadable = Literal["skip", "error"]


@dataclass(frozen=True)
class Computing:
    """How images pass through a model: options of the commands that compute something for every image."""

    unreadable: Unreadable = "skip"
    """What to do with an image that cannot be read: name and skip it, or end with an error."""
    framework: Framework = "torch"
    """Framework that computes."""
    batch_size: int = 32
    """Number of images in a batch; the last batch is padded to this size."""
    threads: int | None = None
    """Number of threads that decode images. Default: one for each processor, at most 8."""
    image_size: OptionalSize = None
    """Resample the position embeddings for another image size: 384, or height x width as 384x512."""
    preprocessing: Annotated[tuple[str, ...], Parameter(metavar="FIELD=VALUE")] = ()
    """A field to use instead of the checkpoint's, such as mean=0.485,0.456,0.406. May be repeated."""


IN_BATCHES = Computing()
ComputingOptions: TypeAlias = Annotated[Computing, Parameter(name="*")]


def at_least(least: int, **values: int | None) -> None:
    """Raises InputError for an option with a value below `least`; None is allowed. values: the options, by their names
    in Python: top_k for --top-k."""
    for name, value in values.items():
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} {value}: expected {least} or more")
