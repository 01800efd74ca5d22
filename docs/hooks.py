"""Hooks of the documentation's build (mkdocs.yml): the command reference, and code blocks with an information word.

The commands and their options are read from the application that the `vit` command runs, so the pages cannot differ
from `vit COMMAND --help`.
"""

import re
from collections.abc import Iterator
from functools import reduce
from inspect import cleandoc
from typing import Any

from cyclopts import App
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from vit_cli.application import build, every_command
from vit_cli.help_text import default_text, joined_lines, split_examples
from vit_cli.other_spellings import HINTS, RECIPE_COMMANDS, SAME
from vit_cli.recipe_options import SHORT_NAMES, field_options

COMMANDS_PAGE, FIELDS_PAGE = "reference/commands.md", "reference/recipe-fields.md"
SPELLINGS_PAGE = "reference/other-spellings.md"
INFORMATION_WORD = re.compile(r"^( *```(?:python|sh)) parse$", re.M)
"""The word after the language of a block of code that is only parsed by the test that runs the blocks."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are generated from the code."""
    pages = {
        COMMANDS_PAGE: command_reference(),
        FIELDS_PAGE: field_reference(),
        SPELLINGS_PAGE: spelling_reference(),
    }
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Removes the information word of code blocks, which Python-Markdown does not accept."""
    return INFORMATION_WORD.sub(r"\1", markdown)


def command_reference() -> str:
    """The page of all commands."""
    app = build(with_summaries=False)
    introduction = (
        "# Commands\n\n"
        "Generated from the code; `vit COMMAND --help` prints the same. Commands that take a recipe also have an "
        "option for [each field of the recipe](recipe-fields.md).\n\n"
        "Exit status: 0; 1 where a comparison fails or a plan does not fit; 2, with one line that starts with "
        "`vit: error:`, on bad input; 128 + the signal's number where a signal ended the command.\n"
    )
    commands = ((reduce(App.__getitem__, words, app), " ".join(words)) for words in every_command())
    return "\n".join([introduction, *(line for command, name in commands for line in _command(command, name))])


def _command(app: App, name: str) -> Iterator[str]:
    function = app.default_command
    assert function is not None
    text, examples = split_examples(cleandoc(function.__doc__ or ""))
    description = text.partition("\nArgs:\n")[0]
    arguments = [each for each in app.assemble_argument_collection(parse_docstring=True) if each.show]
    positional = [f" {each.name}" if each.required else f" [{each.name}]" for each in arguments if _is_positional(each)]
    options = " [OPTIONS]" if len(positional) < len(arguments) else ""
    yield f"## vit {name}\n"
    yield "\n".join(joined_lines(description))
    yield f"```text\nvit {name}{options}{''.join(positional)}\n```\n"
    if arguments:
        yield from _table(
            ("argument or option", "meaning", "default"),
            ((f"`{_words(each)}`", each.parameter.help or "", _default(each)) for each in arguments),
        )
    if examples:
        lines = cleandoc(examples.partition("\n")[2])
        yield f"```text\n{lines}\n```\n"


def _is_positional(argument: Any) -> bool:
    return argument.field_info.kind is argument.field_info.POSITIONAL_ONLY


def _words(argument: Any) -> str:
    """What a user types: the names, and what stands for the value."""
    if _is_positional(argument):
        return str(argument.name)
    names = [name for name in argument.names if not name.startswith("--empty-")]
    is_flag = argument.hint is bool
    metavar = argument.parameter.metavar or getattr(argument.hint, "__name__", "TEXT").upper()
    choices = argument.get_choices()
    value = "" if is_flag else f" {'|'.join(choices)}" if choices else f" {metavar}"
    return f"{' / '.join(names)}{value}"


def _default(argument: Any) -> str:
    if argument.required:
        return "required"
    text = default_text(argument.field_info.default)
    return f"`{text}`" if text else ""


def field_reference() -> str:
    """The page of all fields of a recipe's config."""
    sections: dict[str, list[tuple[str, str]]] = {}
    for option in field_options().values():
        short = SHORT_NAMES.get(option.name)
        names = [option.name, *([short] if short else []), *([option.negative] if option.is_flag else [])]
        words = f"{' / '.join(names)}{'' if option.is_flag else f' {option.placeholder}'}"
        sections.setdefault(option.section, []).append((f"`{words}`", option.help))
    lines = [
        "# Fields of a recipe\n",
        "Generated from the code. Each field of a recipe's config is an option of `vit explain`, `pretrain`, "
        "`finetune` and `plan`; in a recipe file the same names are keywords of the classes in "
        "[`vit_train.config`](vit_train.md). `vit pretrain RECIPE --help` adds the recipe's values.\n",
    ]
    for section in sorted(sections, key=lambda name: name != ""):
        lines.append(f"## {section or 'The run'}\n")
        lines.extend(_table(("option", "meaning"), sections[section]))
    return "\n".join(lines)


def spelling_reference() -> str:
    """The page of options that users of other projects type, and what they mean here."""
    lines = [
        "# Options of other projects\n",
        "Generated from the code. What you would type for timm, transformers, lightly-train or big_vision, and what "
        "this command line does with it: an option that means the same as one of ours is read as ours; for any "
        "other, the command prints one line with what to write instead.\n",
    ]
    for command in ("pretrain", *(name for name in SAME if name not in RECIPE_COMMANDS)):
        others = f" (and {', '.join(RECIPE_COMMANDS[2:])}, explain)" if command == "pretrain" else ""
        lines.append(f"## vit {command}{others}\n")
        same = [(f"`{typed}`", f"is read as `{own}`") for typed, own in SAME[command].items()]
        answered = [(f"`{typed}`", text) for typed, text in HINTS.get(command, {}).items()]
        lines.extend(_table(("typed", "what happens"), [*same, *answered]))
    return "\n".join(lines)


def _table(columns: tuple[str, ...], rows: Any) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(_cell(text) for text in row)} |"
    yield ""


def _cell(text: str) -> str:
    """A cell of a table: in code a vertical bar is not a border, elsewhere it has to be written otherwise."""
    line = " ".join(text.split())
    return line if line.startswith("`") else line.replace("|", "&#124;").replace("<", "&lt;").replace("*", "&#42;")
