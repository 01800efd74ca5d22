"""Commands with a recipe: every field of the recipe's config, also a nested one, is an option.

    @recipe_command
    def pretrain(recipe: str, changes: Changes, *, framework: str = "jax") -> int: ...

becomes a function with one keyword for each field instead of `changes`, which cyclopts turns into options.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Annotated, Any, TypeAlias

from cyclopts import App, Group, Parameter, Token
from cyclopts.exceptions import CycloptsError

from vit_cli.field_options import FOLLOW_THE_MODEL, FieldOption, option_name, options_of, value_at, value_text
from vit_cli.option_words import SEPARATOR
from vit_core.checkpoints import CheckpointConfig
from vit_core.errors import InputError
from vit_core.schema import Schema
from vit_core.variants import variant
from vit_train import recipes
from vit_train.config import TrainConfig
from vit_train.config.changeable import CHANGEABLE_IN_SEGMENTS, CHANGEABLE_ON_RESUME

Changes: TypeAlias = Mapping[tuple[str, ...], Any]
"""Path of a config field -> its value from the command line."""
SHORT_NAMES = {
    "--model.image-size": "--image-size",
    "--data.name": "--data",
    "--data.directory": "--data-dir",
    "--optimizer.learning-rate": "--lr",
}
"""Options that have a second, shorter name; a command with another option of the same meaning uses that name too."""


@cache
def field_options() -> dict[str, FieldOption]:
    """Every option of a recipe's fields by parameter name."""
    return {"__".join(option.path): option for option in options_of(TrainConfig)}


@cache
def _by_word() -> dict[str, FieldOption]:
    """Every option by each word that a user can type for it."""
    found = {}
    for option in field_options().values():
        for name in (*_names(option), *((option.negative,) if option.is_flag else ())):
            found[name] = option
    return found


def _names(option: FieldOption) -> tuple[str, ...]:
    short = SHORT_NAMES.get(option.name)
    return (option.name, short) if short else (option.name,)


def recipe_command(command: Callable[..., int]) -> Callable[..., int]:
    """The command with one keyword for each field of a recipe instead of its parameter `changes`."""

    @functools.wraps(command)
    def with_fields(subject: Any, **keywords: Any) -> int:
        options = field_options()
        changes = {options[name].path: keywords.pop(name) for name in list(keywords) if name in options}
        return command(subject, changes, **keywords)

    _set_signature(with_fields, command, _parameters(None))
    return with_fields


def _set_signature(
    function: Callable[..., int], command: Callable[..., int], fields: Sequence[inspect.Parameter]
) -> None:
    signature = inspect.signature(command)
    own = [parameter for name, parameter in signature.parameters.items() if name != "changes"]
    function.__signature__ = signature.replace(parameters=[*own, *fields])  # type: ignore[attr-defined]
    # cyclopts reads annotations here first.
    function.__annotations__ = {each.name: each.annotation for each in (*own, *fields)} | {"return": int}


def _parameters(defaults: Mapping[tuple[str, ...], str] | None, command: str = "pretrain") -> list[inspect.Parameter]:
    """A keyword for each field; if there are defaults, the fields that the command can change are shown with them."""
    groups = {name: Group(f"Recipe: {name}" if name else "Recipe", sort_key=place) for place, name in _sections()}
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=_annotation(option, groups[option.section], None if _is_fixed(option, command) else defaults),
        )
        for name, option in field_options().items()
    ]


def _is_fixed(option: FieldOption, command: str) -> bool:
    """Whether a command refuses an option: a resumed run keeps most of its fields."""
    return command == "resume" and ".".join(option.path) not in CHANGEABLE_ON_RESUME | CHANGEABLE_IN_SEGMENTS


def _sections() -> list[tuple[int, str]]:
    """Sections of the config; fields without a section come first."""
    names = dict.fromkeys(option.section for option in field_options().values())
    return list(enumerate(sorted(names, key=lambda name: name != ""), start=100))


def _annotation(option: FieldOption, group: Group, defaults: Mapping[tuple[str, ...], str] | None) -> Any:
    def convert(type_: object, tokens: Sequence[Token]) -> Any:
        words = tokens[0].value.split(SEPARATOR) if tokens[0].value else []
        return option.parse(words)

    shared: dict[str, Any] = {
        "name": _names(option),
        "help": option.help,
        "group": group,
        "show": defaults is not None,
        "show_default": (lambda _: defaults[option.path]) if defaults and option.path in defaults else False,
    }
    if option.is_flag:
        return Annotated[bool | None, Parameter(negative=option.negative, **shared)]
    shared |= {"choices": option.choices or None, "show_choices": option.placeholder == "CHOICE"}
    return Annotated[Any, Parameter(converter=convert, metavar=option.placeholder, negative=(), **shared)]


def join_values(words: Sequence[str]) -> list[str]:
    """The words with each field option and its value as one word, so that values may be several words long.

    If a field is given several times, the last value is used.
    """
    joined: list[str] = []
    place_of: dict[tuple[str, ...], int] = {}
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if word == "--":
            return [*joined, word, *words[position:]]
        name, equals, value = word.partition("=")
        _refuse_follower(name)
        if (option := _by_word().get(name)) is None:
            joined.append(word)
            continue
        count = 0 if equals else option.words_of_value(words[position:])
        values = [value] if equals else list(words[position : position + count])
        position += count
        place = place_of.setdefault(option.path, len(joined))
        joined[place : place + 1] = [_joined(name, values, option)]
    return joined


def _joined(name: str, values: Sequence[str], option: FieldOption) -> str:
    """One word for an option and its value. A missing value is reported by cyclopts."""
    may_be_empty = not option.elements and not option.is_flag
    return f"{name}={SEPARATOR.join(values)}" if values or may_be_empty else name


def _refuse_follower(name: str) -> None:
    """Raises InputError for the option of a field that is always equal to the model's."""
    if (field := _followers().get(name)) is not None:
        raise InputError(f"{name}: is always equal to the model's; set {option_name(('model', field))}")


@cache
def _followers() -> dict[str, str]:
    return {option_name(path.split(".")): field for path, field in FOLLOW_THE_MODEL.items()}


def changed(config: TrainConfig, changes: Changes) -> TrainConfig:
    """The config with some fields changed. Raises InputError, with an option's name, if the fields contradict."""
    new: TrainConfig = _changed(config, changes, ())
    return new


def _changed(schema: Any, changes: Changes, path: tuple[str, ...]) -> Any:
    values: dict[str, Any] = {rest[0]: value for rest, value in changes.items() if len(rest) == 1}
    for section in dict.fromkeys(rest[0] for rest in changes if len(rest) > 1):
        inner = {rest[1:]: value for rest, value in changes.items() if len(rest) > 1 and rest[0] == section}
        values[section] = _changed(getattr(schema, section), inner, (*path, section))
    try:
        return schema.replace(**values) if values else schema
    except InputError as error:
        raise InputError(_naming_options(type(schema), str(error), path)) from None


def _naming_options(schema: type[Schema], message: str, path: tuple[str, ...]) -> str:
    """A message about a field, "heads: 5 does not divide ...", with the option's name instead of the field's."""
    name, colon, rest = message.partition(": ")
    full = (*path, *name.split("."))
    if colon and any(option.path == full for option in field_options().values()):
        return f"{option_name(full)}: {rest}"
    return ": ".join([*path, message]) if path else message


def show_defaults(app: App, name: str, words: Sequence[str]) -> None:
    """Prepares the help of a recipe command: the fields with their defaults, if the words name a recipe."""
    if name == "resume":
        show_fields(app, name, {})
    elif (recipe := _recipe_of(app, words)) is not None:
        tunes = name == "finetune" or (name == "explain" and not recipes.open_recipe(recipe).has("pretrain"))
        show_fields(app, name, _defaults(recipe, "finetune" if tunes else "pretrain"))


def show_fields(app: App, name: str, defaults: Mapping[tuple[str, ...], str]) -> None:
    """Shows the fields of a recipe among the options of a command, with defaults where there are any."""
    with_fields = app[name].default_command
    assert with_fields is not None
    command = inspect.unwrap(with_fields)

    @functools.wraps(command)
    def shown(subject: Any, **keywords: Any) -> int:
        status: int = with_fields(subject, **keywords)
        return status

    _set_signature(shown, command, _parameters(defaults, name))
    app[name].default_command = shown


def _recipe_of(app: App, words: Sequence[str]) -> str | None:
    """The recipe among words that ask for help, if there is one."""
    with suppress(CycloptsError, InputError):
        asked = [word for word in words if word not in ("--help", "-h")]
        _, bound, *_ = app.parse_known_args(asked)
        recipe: str | None = bound.arguments.get("recipe")
        return recipe
    return None


def _defaults(recipe: str, stage: str) -> dict[tuple[str, ...], str]:
    """Path of each field -> its value in the recipe, as text."""
    if stage == "pretrain":
        config = recipes.load(recipe, stage)
        return {option.path: value_text(value_at(config, option.path)) for option in field_options().values()}
    # Fields that a recipe takes from the checkpoint differ between checkpoints, so two are compared.
    first, second = (
        recipes.load(recipe, stage, CheckpointConfig(model=variant(name, size, classes)))
        for name, size, classes in (("B/16", 224, 1000), ("S/16", 256, 10))
    )
    found = {}
    for option in field_options().values():
        value = value_at(first, option.path)
        same = value == value_at(second, option.path) and value != _stand_in_value(option.path)
        from_checkpoint = option.section in ("model", "preprocessing") and not same
        found[option.path] = "the checkpoint's" if from_checkpoint else value_text(value)
    return found


def _stand_in_value(path: tuple[str, ...]) -> Any:
    """The value of a field of the model in a checkpoint of the paper's model; None for other fields."""
    return getattr(variant("B/16", 224, 1000), path[1], None) if path[0] == "model" else None
