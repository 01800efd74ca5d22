"""The `vit` command: a thin dispatcher that imports what a subcommand needs when it is called."""

import functools
import io
import json
import os
import re
import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from vit_core.errors import InputError, unknown_name
from vit_core.places import StoreError, local


def demo(out: Path = Path("runs/demo"), seed: int = 0) -> None:
    """Pretrain on handwritten digits in JAX, open in PyTorch, prove parity, fine-tune at a higher resolution.

    Args:
        out: Folder for checkpoints, metrics and figures; overwritten.
        seed: Of everything random.
    """
    if seed < 0:
        raise InputError(f"--seed {seed}: expected 0 or more")
    _writable(local(out, "--out"))
    needs("train", "jax", "torch", "grain", "tensorflow_datasets", "sklearn", "matplotlib")
    from train.demo import main as run

    sys.exit(0 if run(out, seed) else 1)


def parity(
    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")],
    dtype: Literal["float64", "float32", "bfloat16"] = "float64",
    seed: int = 0,
    every_parameter: bool = False,
) -> None:
    """Run a checkpoint in both twins on the same random images and compare every stage and gradient.

    Exit status 1 when something is out of bounds: everything within 1e-12 in float64; the outputs within 1e-5 in
    float32; errors of the outputs against float64 within three times each other's in bfloat16.

    Args:
        checkpoint: Checkpoint folder.
        dtype: Of parameters and computation.
        seed: Of the random images.
        every_parameter: One row for each gradient instead of one for each block (float64).
    """
    from vit_core import display, open_checkpoint
    from vit_core import parity as measure

    if seed < 0:
        raise InputError(f"--seed {seed}: expected 0 or more")
    opened, idle = measure.awakened(open_checkpoint(checkpoint), seed)
    needs("jax,torch", "jax", "flax", "torch")
    import jax

    jax.config.update("jax_enable_x64", True)
    import vit_jax
    import vit_torch

    if idle:
        some = ", ".join(idle[:4]) + (f" and {len(idle) - 4} more" if len(idle) > 4 else "")
        display.say(f"constant, so given random values (they would prove nothing): {some}")
    with display.working("running both twins"):
        in_jax, in_torch = measure.run(opened, (vit_jax, vit_torch), dtype, seed)
    if dtype == "float64":
        report = measure.compare(in_jax, in_torch)
        display.parity_report(f"{checkpoint}: JAX and PyTorch, float64", report, every_parameter)
        sys.exit(0 if report.ok else 1)
    with display.working("running the float64 oracle"):
        (oracle,) = measure.run(opened, (vit_torch,), "float64", seed)
    rows = measure.against_oracle(in_jax, in_torch, oracle, dtype)
    display.oracle_report(f"{checkpoint}: JAX and PyTorch in {dtype}, against float64", rows)
    sys.exit(0 if all(row.ok for row in rows) else 1)


def convert(
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")],
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TARGET")],
    image_size: str | None = None,
    num_classes: int | None = None,
    method: str | None = None,
    dtype: str | None = None,
) -> None:
    """Write a checkpoint folder from a training run (finished, or its newest step), a step, or another folder.

    Args:
        source: Run, step or checkpoint folder.
        target: Checkpoint folder to write.
        image_size: Resample the position embeddings for another size: 384, or 384x512 (height x width).
        num_classes: Put a new head for so many classes; 0 removes it.
        method: How to resample the positions (default: the checkpoint's own).
        dtype: Stored type: bfloat16, float16, float32 or float64 (default: as it is).
    """
    from vit_core import open_checkpoint, save_checkpoint
    from vit_core.checkpoint import as_dtype, checkpoint_of

    stored = None if dtype is None else as_dtype(dtype)
    size = None if image_size is None else parse_size(image_size)
    checkpoint = open_checkpoint(checkpoint_of(source)).adapt(
        image_size=size, num_classes=num_classes, position_embedding_method=method
    )
    provenance = checkpoint.config.provenance.replace(source=source.name, source_format="vit-parity")
    save_checkpoint(target, checkpoint.config.replace(provenance=provenance), checkpoint.arrays, stored)
    print(f"wrote {target}")


def schema() -> None:
    """Print the JSON schema of config.json."""
    from vit_core import CheckpointConfig

    print(json.dumps(CheckpointConfig.json_schema(), indent=2))


def parse_size(text: str) -> int | tuple[int, int]:
    """384 or 384x512, height first."""
    numbers = text.lower().split("x")
    if len(numbers) > 2 or not all(re.fullmatch("[0-9]{1,6}", number) for number in numbers):
        raise InputError(f"image size '{text}': expected pixels, as 384, or height x width, as 384x512")
    return int(numbers[0]) if len(numbers) == 1 else (int(numbers[0]), int(numbers[1]))


COMMANDS: dict[str, Callable[..., None]] = {"demo": demo, "parity": parity, "convert": convert, "schema": schema}


def main() -> None:
    """Entry point: exit status 0; 1 where a comparison fails; 2 with one line on bad input; 128 + a signal's number."""
    from train.topologies import silence

    warnings.showwarning = lambda message, *_: print(f"vit: warning: {message}", file=sys.stderr)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    try:
        silence()
        parse(sys.argv[1:])()
    except KeyboardInterrupt:
        print("vit: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (InputError, StoreError, OSError, MemoryError) as error:
        print(f"vit: error: {' '.join(str(error).split()) or 'out of memory'}", file=sys.stderr)
        sys.exit(2)


def parse(words: list[str]) -> Callable[[], None]:
    """The command that the words ask for, ready to be called; InputError, in one line, for words it does not know."""
    from train import cli as training

    known = [*COMMANDS, *training.COMMANDS]
    if words and not words[0].startswith("-") and words[0] not in known:
        raise unknown_name("command", words[0], known)
    commands = COMMANDS | training.commands(words)
    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint), training.registry:
            return tyro.extras.subcommand_cli_from_dict(
                {name: _deferred(command) for name, command in commands.items()},
                prog="vit",
                description="One Vision Transformer, in JAX and in PyTorch.",
                args=words,
                config=(tyro.conf.AvoidSubcommands,),
            )
    except SystemExit as exit:
        if exit.code in (0, None):
            raise
        raise InputError(_squeezed(complaint.getvalue())) from None


def _deferred(command: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """With the same signature, but giving the call instead of making it."""

    @functools.wraps(command)
    def bind(*args: Any, **kwargs: Any) -> Callable[[], None]:
        return functools.partial(command, *args, **kwargs)

    bind.__annotations__ = {**command.__annotations__, "return": Callable[[], None]}
    return bind


def _squeezed(box: str) -> str:
    """tyro's boxed complaint as one line: what is wrong, and the first thing it suggests."""
    sections: list[list[str]] = [[]]
    for line in box.splitlines():
        text = line.strip("│╭╮╰╯|+ ")
        if re.search("──|---", text):
            sections.append([])
        elif text:
            sections[-1].append(text)
    said = [section for section in sections if section and not section[0].startswith("For full helptext")]
    if "╭" not in box:  # not a UTF-8 terminal: the title is a section instead of being in the border
        said = said[1:] or said
    line = "; ".join(" ".join(section[:2]) for section in said[:2])
    # "Error parsing __tyro-dummy-inner__.config.optimizer: beta1: ..." names the field by its way through the parser.
    return re.sub(r"^Error parsing (?:\S*?\bconfig\.?)?(\S*?): ", lambda way: f"--{way[1]}: " if way[1] else "", line)


def needs(extra: str, *modules: str) -> None:
    from importlib.util import find_spec

    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise InputError(f"this command needs {', '.join(missing)}: pip install 'vit-parity[{extra}]'")


def _writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise InputError(f"{folder}: cannot write there ({error.strerror}); choose another folder with --out") from None
