"""One option for each field of a recipe's config: its name, the values that it accepts, and their parsing."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from vit_cli.option_words import is_option, words_of_size
from vit_core.config import Size
from vit_core.errors import InputError, shortened, unknown_name
from vit_core.field_docstrings import field_docstrings
from vit_core.field_text import parse_size
from vit_core.schema import Schema, expectation

NONE = ("none", "null")
"""The word by which a user sets a field to no value."""
_LONGEST_PLACEHOLDER = 26
"""Largest number of characters of a list of choices that is shown as the value; a longer list follows the
explanation."""
NO_OPTIONS = {"continues"}
"""Fields that only the program sets, when a run is resumed."""
FOLLOW_THE_MODEL = {"preprocessing.image_size": "image_size", "preprocessing.channels": "channels"}
"""Fields that are always equal to those of the model, and therefore not options."""


@dataclass(frozen=True)
class FieldOption:
    """The option of one field of a config."""

    path: tuple[str, ...]
    """("optimizer", "beta1")"""
    field: FieldInfo
    docstring: str

    @property
    def name(self) -> str:
        """ "--optimizer.beta1" """
        return option_name(self.path)

    @property
    def negative(self) -> str:
        """The option that sets a flag to false: "--model.no-qkv-bias"."""
        *sections, last = self.name.removeprefix("--").split(".")
        return "--" + ".".join([*sections, f"no-{last}"])

    @property
    def section(self) -> str:
        """The first part of the name if it has several: "optimizer"."""
        return self.path[0] if len(self.path) > 1 else ""

    @cached_property
    def help(self) -> str:
        """The field's docstring on one line."""
        return " ".join(self.docstring.split())

    @cached_property
    def optional(self) -> bool:
        """Whether the field may have no value."""
        return NoneType in get_args(self.field.annotation)

    @cached_property
    def _type(self) -> Any:
        """The type of a value, without None."""
        annotation: Any = self.field.annotation
        if self.optional:
            (annotation,) = [each for each in get_args(annotation) if each is not NoneType]
        return annotation

    @cached_property
    def is_flag(self) -> bool:
        """Whether the option has no value: --scan, or --no-scan."""
        return _bare(self._type) is bool

    @cached_property
    def is_size(self) -> bool:
        """Whether the value is a size in pixels: 384, 384x512 or "384 512"."""
        return bool(self._type == get_args(Size)[0])

    @cached_property
    def elements(self) -> tuple[Any, ...]:
        """Types of the values, one for each word; empty if any number of words is allowed."""
        if get_origin(_bare(self._type)) is not tuple:
            return (self._type,)
        types = get_args(_bare(self._type))
        return () if types[-1] is Ellipsis else types

    @property
    def choices(self) -> tuple[str, ...]:
        """The possible values, if they can be listed."""
        if get_origin(_bare(self._type)) is not Literal:
            return ()
        return tuple(map(str, get_args(_bare(self._type)))) + (("none",) if self.optional else ())

    @property
    def placeholder(self) -> str:
        """The placeholder of the value in the help."""
        if self.choices:
            listed = "|".join(self.choices)
            return listed if len(listed) <= _LONGEST_PLACEHOLDER else "CHOICE"
        type_ = _bare(self._element(0))
        word = {int: "INTEGER", float: "NUMBER"}.get(type_, "TEXT")
        if get_origin(type_) is Literal:
            word = "|".join(get_args(type_))
        text = "SIZE" if self.is_size else " ".join([word] * len(self.elements)) or f"{word}..."
        return f"{text}|none" if self.optional or not self.elements else text

    def words_of_value(self, following: Sequence[str]) -> int:
        """Number of the following words that are the option's value."""
        count = next((i for i, word in enumerate(following) if is_option(word)), len(following))
        if not count or self.is_flag:
            return 0
        if self.is_size:
            return words_of_size(following[:count])
        may_be_none = self.optional or not self.elements
        if may_be_none and following[0].lower() in NONE:
            return 1
        return min(count, len(self.elements)) if self.elements else count

    def parse(self, words: Sequence[str]) -> Any:
        """The field's value. Raises InputError, with the option's name, for a value that the field cannot have."""
        if (self.optional or not self.elements) and [word.lower() for word in words] in [[word] for word in NONE]:
            return None if self.optional else ()
        if self.is_size:
            return self._parse_size(words)
        if self.elements and len(words) != len(self.elements):
            raise InputError(f"{self.name}: expected {len(self.elements)} values, found {len(words)}")
        values = tuple(self._parse_word(self._element(i), word) for i, word in enumerate(words))
        if get_origin(_bare(self._type)) is not tuple:
            (values,) = values
        return self._validated(TypeAdapter(self._annotated), values, " ".join(words))

    def _element(self, i: int) -> Any:
        return self.elements[i] if self.elements else get_args(_bare(self._type))[0]

    @property
    def _annotated(self) -> Any:
        """The field's type with its limits."""
        return (
            Annotated[(self.field.annotation, *self.field.metadata)] if self.field.metadata else self.field.annotation
        )

    def _parse_size(self, words: Sequence[str]) -> Any:
        try:
            size = parse_size("x".join(words))
        except InputError as error:
            raise InputError(f"{self.name}: {error}") from None
        return self._validated(TypeAdapter(self._annotated), size, " ".join(words))

    def _parse_word(self, type_: Any, word: str) -> Any:
        if get_origin(_bare(type_)) is Literal:
            values = {str(value): value for value in get_args(_bare(type_))}
            if word not in values:
                raise InputError(f"{self.name}: {unknown_name('value', word, self.choices or values)}")
            return values[word]
        if isinstance(type_, type) and issubclass(type_, Schema):  # by a name, or its fields as JSON
            return self._parse_json(word) if word.startswith("{") else word
        try:
            return TypeAdapter(type_).validate_strings(word)
        except ValidationError as error:
            raise self._error(error.errors()[0], word) from None

    def _parse_json(self, word: str) -> Any:
        try:
            return json.loads(word)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self.name}: expected fields as JSON, found {shortened(word)} ({error})") from None

    def _validated(self, adapter: TypeAdapter[Any], value: Any, text: str) -> Any:
        try:
            return adapter.validate_python(value)
        except ValidationError as error:
            raise self._error(error.errors()[0], text) from None

    def _error(self, details: ErrorDetails, text: str) -> InputError:
        return InputError(f"{self.name}: {expectation(details)}, found {text}")


def options_of(schema: type[Schema], path: tuple[str, ...] = ()) -> Iterator[FieldOption]:
    """An option for every field of a schema and of the schemas in it, except those that follow others."""
    docstrings = field_docstrings(schema)
    for name, field in schema.model_fields.items():
        here = (*path, name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Schema):
            yield from options_of(field.annotation, here)
        elif ".".join(here) not in FOLLOW_THE_MODEL.keys() | NO_OPTIONS:
            yield FieldOption(here, field, docstrings.get(name, ""))


def option_name(path: Sequence[str]) -> str:
    """The option of a field: --optimizer.learning-rate."""
    return "--" + ".".join(path).replace("_", "-")


def value_at(config: Schema, path: Sequence[str]) -> Any:
    """The value of a config's field."""
    return reduce(getattr, path, config)


def value_text(value: object) -> str:
    """A field's value as its option takes it: `none`, `true`, `224 224`."""
    if isinstance(value, tuple | list):
        return " ".join(map(value_text, value)) if value else "none"
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else str(value)


def _bare(annotation: Any) -> Any:
    """A type without its limits."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
