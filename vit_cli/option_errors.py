"""Messages in one line for wrong options, made from cyclopts' typed errors."""

import os
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args, get_origin

from cyclopts import exceptions
from cyclopts.exceptions import CycloptsError

from vit_cli.option_words import spaced
from vit_cli.other_spellings import RECIPE_COMMANDS, hint
from vit_core.errors import InputError, unknown_name


def no_command(commands: Iterable[str], where: str) -> InputError:
    """The error for `vit` alone, or for a group of commands alone."""
    group = "" if where == "vit" else f"{where}: "
    return InputError(f"{group}expected one of {', '.join(commands)}; see {where} --help")


def input_error(error: CycloptsError, commands: Mapping[str, Any]) -> InputError:
    """The error of a command line as one line: what was found, where, and what was expected."""
    where = " ".join(("vit", *(error.command_chain or ())))
    match error:
        case exceptions.UnknownCommandError():
            return unknown_name("command", (error.unused_tokens or ["?"])[0], commands)
        case exceptions.UnknownOptionError():
            return _unknown_option(error, where)
        case exceptions.UnusedCliTokensError():
            return _unexpected(error, where)
        case exceptions.RepeatArgumentError():
            return InputError(f"{where}: {error.token.keyword} is given twice; remove one")
        case exceptions.MissingArgumentError():
            return _missing(error, where)
        case exceptions.CoercionError():
            return _wrong_value(error, where)
        case _:
            return InputError(f"{where}: {_plain(error)}")


def _unexpected(error: exceptions.UnusedCliTokensError, where: str) -> InputError:
    extra, typed = error.unused_tokens or ["?"], error.root_input_tokens or []
    before = typed[typed.index(extra[0]) - 1] if extra[0] in typed else ""
    if before.startswith("--") and extra[0].lower() in ("true", "false"):
        return InputError(f"{where}: {before} takes no value after a space; write {before}={extra[0].lower()}")
    command = (error.command_chain or ("",))[0]
    if command in RECIPE_COMMANDS and command != "resume" and os.path.exists(extra[0]):
        return InputError(f"{where}: unexpected '{extra[0]}'; images are named with --data {extra[0]}")
    return InputError(f"{where}: unexpected '{spaced(' '.join(extra))}'; see {where} --help")


def _unknown_option(error: exceptions.UnknownOptionError, where: str) -> InputError:
    given = (error.token.keyword or error.token.value).partition("=")[0]
    if (instead := hint((error.command_chain or ("",))[0], given)) is not None:
        return InputError(f"{where}: {given}: {instead}")
    known = [name for argument in error.argument_collection if argument.parse for name in argument.names]
    group, _, field = given.removeprefix("--no-").rpartition(".")
    negative = f"--{group}.no-{field}"
    if given.startswith("--no-") and negative in known:
        return InputError(f"{where}: unknown option '{given}'; write {negative}")
    return InputError(f"{where}: {unknown_name('option', given, [name for name in known if name.startswith('--')])}")


def _missing(error: exceptions.MissingArgumentError, where: str) -> InputError:
    argument = error.argument
    assert argument is not None
    if error.keyword or argument.tokens or (error.tokens_so_far and argument.field_info.is_keyword):
        count, _ = argument.token_count()
        needed = f"{count} values" if count > 1 else "a value"
        return InputError(f"{where}: {error.keyword or argument.name} needs {needed}; see {where} --help")
    if argument.name == "RECIPE":
        from vit_train import recipes

        return InputError(f"{where}: name a recipe: a Python file, or one of {', '.join(recipes.names())}")
    kind = "option" if argument.name.startswith("-") else "argument"
    return InputError(f"{where}: the {kind} {argument.name} is missing; see {where} --help")


def _wrong_value(error: exceptions.CoercionError, where: str) -> InputError:
    if isinstance(error.__cause__, InputError):  # from our own converter, whose message has the option and the value
        return InputError(str(error.__cause__))
    token, argument = error.token, error.argument
    name = (token and token.keyword) or (argument and argument.name) or where
    value = spaced(token.value) if token else ""
    if (instead := hint((error.command_chain or ("",))[0], f"{name} {value}")) is not None:
        return InputError(f"{name} {value}: {instead}")
    listed = get_args(error.target_type) if get_origin(error.target_type) is Literal else ()
    if choices := listed or (argument and argument.get_choices()):
        return InputError(f"{name}: {unknown_name('value', value, choices)}")
    expected = {int: "an integer", float: "a number", bool: "true or false"}.get(error.target_type or str, "a value")
    return InputError(f"{name} {value}: expected {expected}")


def _plain(error: CycloptsError) -> str:
    """cyclopts' own message, for kinds of errors that no command of `vit` causes."""
    return spaced(" ".join(str(error).split()))
