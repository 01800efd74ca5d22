"""Runs a command line of `vit`: finds the command, parses its options, calls it, and reports errors.

A command's module is imported when the command is used, so `vit --help` imports neither a framework nor NumPy.
"""

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import reduce
from inspect import BoundArguments
from typing import Any

from cyclopts import App, Group, Parameter
from cyclopts.exceptions import CycloptsError

from vit_cli.help_text import default_text, prepare_help
from vit_cli.interrupts import STATUS, Interrupts
from vit_cli.option_words import join_sizes, with_hyphens
from vit_cli.other_spellings import own_spellings

_EPILOGUE = """`vit COMMAND --help` explains a command, with examples."""
HELP_FLAGS = ("--help", "-h")


@dataclass(frozen=True)
class Command:
    """A command of `vit`: the function with its name in the module vit_cli.commands.NAME; or a group of commands, which
    are functions of that module."""

    name: str
    summary: str
    """The first sentence of the function's docstring, repeated here because reading it would import the module."""
    group: str
    takes_recipe: bool = False
    """Whether every field of a recipe is an option."""
    parts: Mapping[str, str] = field(default_factory=dict)
    """The commands of a group, and their summaries."""

    def target(self, function: str) -> str:
        """A function of the command's module, as cyclopts imports it."""
        return f"vit_cli.commands.{self.name}:{function}"


COMMANDS = {
    command.name: command
    for command in (
        Command("demo", "Run the whole workflow on handwritten digits, in minutes.", "Start here"),
        Command("explain", "Show what a recipe will do, without training.", "Train", takes_recipe=True),
        Command("pretrain", "Train a model from new weights.", "Train", takes_recipe=True),
        Command("finetune", "Train a model that starts from a checkpoint.", "Train", takes_recipe=True),
        Command(
            "resume", "Continue a run that was stopped, or train a finished run further.", "Train", takes_recipe=True
        ),
        Command("runs", "Compare the accuracy of finished runs, over their seeds and by their cost.", "Train"),
        Command("evaluate", "Measure the accuracy of a checkpoint on a data set.", "Train"),
        Command("predict", "Predict the classes of images.", "Use"),
        Command("features", "Write the features of images: the tokens after a block of the model.", "Use"),
        Command("probe", "Measure how well a model's features separate the classes of images.", "Use"),
        Command("prepare", "Pack images into a data set that loads fast.", "Train"),
        Command("plan", "Compile a recipe for a TPU slice and show the memory it needs.", "Train", takes_recipe=True),
        Command("inspect", "Show what a checkpoint of any format contains.", "Checkpoints"),
        Command("convert", "Write a checkpoint in another format, and check that it is the same model.", "Checkpoints"),
        Command(
            "export", "Write a checkpoint as a program for other runtimes, and check that it is the same model.", "Use"
        ),
        Command("show", "Draw a model's filters, attention and wrong predictions.", "Use"),
        Command("push", "Upload a checkpoint to the Hugging Face Hub, with a model card.", "Checkpoints"),
        Command("schema", "Print the JSON schema of a checkpoint's config.json.", "Checkpoints"),
        Command("parity", "Compare the JAX and the PyTorch model on one checkpoint, layer by layer.", "Verify"),
        Command("compare", "Show how far two training runs of one config differ.", "Verify"),
        Command("formats", "Check every checkpoint format on small random models.", "Verify"),
        Command(
            "bench",
            "Measure speed and memory, compared with other libraries.",
            "Verify",
            parts={
                "model": "Measure the models' forward pass and train step, compared with other libraries.",
                "train": "Measure the training loop with its input and log, compared with the bare step.",
                "input": "Measure how fast training images are made, compared with torchvision.",
                "sources": "Measure how fast each kind of source is read, on one thread, in random order.",
                "scaling": "Measure how the cost of a train step grows with batch, depth, width and tokens, and the "
                "host's share of a step.",
                "program": "Show what a TPU executes in a train step, compared with plain data-parallel steps.",
                "all": "Measure everything, in parts of a few minutes; repeat it after an interruption.",
                "predict": "Measure `vit predict` on generated images, compared with the model and decoding alone.",
                "startup": "Measure how long `vit --help` takes, and the import of each twin.",
                "convert": "Measure the time and memory of converting a checkpoint, compared with a copy of the file.",
            },
        ),
        Command("completion", "Print or install completion of commands and options for a shell.", "Setup"),
    )
}


def build(with_summaries: bool = True) -> App:
    """The application. With `with_summaries`, a command's help is only its first sentence, so that `vit --help` imports
    no command."""
    app = App(
        name="vit",
        help="One Vision Transformer, in JAX and in PyTorch.",
        help_epilogue=_EPILOGUE,
        version=_version,
        version_flags=["--version"],
        help_flags=HELP_FLAGS,
        help_format="plaintext",
        exit_on_error=False,
        print_error=False,
        suppress_keyboard_interrupt=False,
        result_action="return_value",
        default_parameter=Parameter(show_default=default_text, negative_iterable=()),
    )
    groups = {name: Group.create_ordered(name) for name in dict.fromkeys(each.group for each in COMMANDS.values())}
    for place, (name, command) in enumerate(COMMANDS.items()):
        settings: dict[str, Any] = {"sort_key": place, "group": groups[command.group]}
        if command.parts:
            app.command(_group_of(command, with_summaries, **settings))
        else:
            summary = command.summary if with_summaries else None
            app.command(command.target(name), name=name, help=summary, **settings)
    options = Group.create_ordered("Options")
    for flag in (*HELP_FLAGS[:1], "--version"):
        app[flag].group = options
    return app


def _group_of(command: Command, with_summaries: bool, **settings: Any) -> App:
    """The commands of a group."""
    epilogue = _EPILOGUE.replace("vit ", f"vit {command.name} ")
    app = App(name=command.name, help=command.summary, help_epilogue=epilogue, help_flags=HELP_FLAGS, **settings)
    for place, (part, summary) in enumerate(command.parts.items()):
        app.command(command.target(part), name=part, help=summary if with_summaries else None, sort_key=place)
    return app


def command_words(words: Sequence[str]) -> tuple[str, ...]:
    """The first words, which name a command: ("convert",), ("bench", "model"). Empty without a command, and for a group
    without one of its commands."""
    command = COMMANDS.get(words[0])
    if command is None or not command.parts:
        return () if command is None else (command.name,)
    return (command.name, words[1]) if len(words) > 1 and words[1] in command.parts else ()


def every_command() -> Iterator[tuple[str, ...]]:
    """The words of each command: ("convert",), ("bench", "model")."""
    for name, command in COMMANDS.items():
        yield from ((name, part) for part in command.parts) if command.parts else [(name,)]


def _version() -> str:
    from importlib.metadata import version  # slow to import

    return version("vit-parity")


def completing() -> App:
    """The application with every option of a recipe shown, for the scripts that complete words in a shell."""
    from vit_cli.recipe_options import show_fields

    app = build()
    for command in COMMANDS.values():
        if command.takes_recipe:
            show_fields(app, command.name, {})
    return app


def run(words: Sequence[str], interrupts: Interrupts | None = None) -> int:
    """Runs the command that the words name, and returns the exit status. Prints one line on bad input."""
    interrupts = interrupts or Interrupts()
    status = 0
    try:
        with _warnings_in_one_line():
            parsed = parse(words)
            interrupts.unwinding_helps = True
            with _surroundings() if words[0] in COMMANDS else nullcontext():
                status = parsed.call()
    except KeyboardInterrupt:
        interrupts.received = True
    except SystemExit as exit:
        status = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except Exception as error:
        if not interrupts.received:  # otherwise a library raised it because of the interrupt
            _report(error)
        status = 2
    finally:
        interrupts.unwinding_helps = False
    if interrupts.received:
        print("vit: interrupted", file=sys.stderr)
        return STATUS
    return status


@dataclass(frozen=True)
class Parsed:
    """A command with its arguments, ready to be called."""

    app: App
    words: Sequence[str]
    function: Callable[..., Any]
    arguments: BoundArguments

    def call(self) -> int:
        """Calls the command, and returns the exit status."""
        with self.app.app_stack(list(self.words)):  # where the help looks for its command
            status = self.function(*self.arguments.args, **self.arguments.kwargs)
        return status if isinstance(status, int) else 0


def parse(words: Sequence[str]) -> Parsed:
    """Finds the command and its arguments. Raises InputError, in one line, for wrong words; nothing is run."""
    if not words:
        from vit_cli.option_errors import no_command

        raise no_command(COMMANDS, "vit")
    command = COMMANDS.get(words[0])
    if command is not None and command.parts and len(words) == 1:
        from vit_cli.option_errors import no_command

        raise no_command(command.parts, f"vit {command.name}")
    named = command_words(words)
    app = build(with_summaries=not named)
    prepared = join_sizes(own_spellings(words[0], with_hyphens(words)))
    asks_for_help = any(flag in prepared for flag in HELP_FLAGS)
    try:
        if command is not None and command.takes_recipe:
            from vit_cli import recipe_options

            prepared = recipe_options.join_values(prepared)
            if asks_for_help:
                recipe_options.show_defaults(app, command.name, prepared)
        if named and asks_for_help:
            prepare_help(reduce(App.__getitem__, named, app))
        function, arguments, _ = app.parse_args(prepared)
    except CycloptsError as error:
        from vit_cli.option_errors import input_error

        raise input_error(error, command.parts if command and command.parts else COMMANDS) from None
    return Parsed(app, prepared, function, arguments)


@contextmanager
def _surroundings() -> Iterator[None]:
    """The context in which commands run: log messages are printed, and libtpu is quiet on a machine without a TPU.

    (`vit plan` compiles with libtpu. JAX loads it if it is installed, and it then reports that there is no TPU.)
    """
    from vit_cli.console import log_messages
    from vit_core.libtpu import silence_libtpu

    silence_libtpu()
    with log_messages():
        yield


def _print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    from vit_core.errors import one_line

    print(f"vit: warning: {one_line(str(message))}", file=sys.stderr)


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Context in which warnings of all libraries are printed as one line without source code; warnings about deprecated
    names are not printed."""

    with warnings.catch_warnings():
        warnings.showwarning = _print_warning
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield


def _report(error: Exception) -> None:
    """Prints an error that a user can fix as one line; raises any other error again."""
    from vit_core.errors import InputError, one_line
    from vit_core.storage import StorageError

    if not isinstance(error, InputError | StorageError | OSError | MemoryError):
        raise error
    print(f"vit: error: {one_line(' '.join(_message(error).split())) or 'out of memory'}", file=sys.stderr)


def _message(error: Exception) -> str:
    """The text of an error; for an error of the operating system, the file and the reason ("a/b: Permission
    denied")."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        file = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(error.filename)
        return f"{file}: {error.strerror}"
    return str(error)
