"""Types of options that several commands have: locations, sizes, fields of a config, formats."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from cyclopts import Parameter, Token

from vit_cli import console
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
    FieldWords: TypeAlias = tuple[str, ...]
    ReadFormat: TypeAlias = str
    PartName: TypeAlias = str
    WrittenFormat: TypeAlias = str
else:  # cyclopts checks what a converter returns against the type before Parameter
    Place = Annotated[Any, Parameter(converter=_to_location, metavar="PATH")]
    """A file or folder on this machine, or an address in a store or in the Hub."""
    OptionalPlace = Place
    Target = Annotated[Any, Parameter(converter=_to_target, metavar="PATH")]
    """A file or folder to write, on this machine or in a store."""
    OptionalTarget = Target
    OptionalSize = Annotated[Any, Parameter(converter=_to_size, metavar="SIZE")]
    """Pixels: 384, or height x width as 384x512."""
    FieldWords = Annotated[tuple[str, ...], Parameter(name="--set", metavar="FIELD=VALUE")]
    """Fields of the model's config that a file does not contain."""
    PartName = Annotated[str, Parameter(metavar="NAME")]
    """The model to open, where a file holds several."""
    ReadFormat = Annotated[str, _choice("--from", FORMATS)]
    WrittenFormat = Annotated[str, _choice("--to", TARGETS)]


def open_and_report(
    source: Location,
    format: str | None = None,
    fields: FieldWords = (),
    part: str | None = None,
    base: Location | None = None,
) -> Checkpoint:
    """Opens a checkpoint, and prints the format and the assumptions made in reading one of another project."""
    checkpoint = open_checkpoint(source, format=format, fields=parse_fields(fields), part=part, base=base)
    if checkpoint.format != "vit":
        console.say(f"{checkpoint.origin}: {checkpoint.format}")
        for note in checkpoint.notes:
            console.say(f"  {note}")
    return checkpoint


def not_negative(option: str, value: int) -> int:
    """The value. Raises InputError, which names the option, for one below 0."""
    if value < 0:
        raise InputError(f"{option} {value}: expected 0 or more")
    return value
