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
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from vit_core.errors import InputError, one_line, unknown_name
from vit_core.formats import FORMATS, TARGETS
from vit_core.places import StoreError, local

if TYPE_CHECKING:
    from vit_core.checkpoint import Checkpoint
    from vit_core.config import ViTConfig

Fields = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(name="set", metavar="FIELD=VALUE")]
Format = Annotated[Literal[FORMATS] | None, tyro.conf.arg(name="from")]  # type: ignore[valid-type]


def demo(out: Path = Path("runs/demo"), seed: int = 0) -> None:
    """Pretrain on handwritten digits in JAX, open in PyTorch, prove parity, fine-tune at a higher resolution.

    Args:
        out: Folder for checkpoints, metrics and figures; overwritten.
        seed: Of everything random.
    """
    _not_negative("--seed", seed)
    _writable(local(out, "--out"))
    needs("train", "jax", "torch", "grain", "tensorflow_datasets", "sklearn", "matplotlib")
    from train.demo import main as run

    sys.exit(0 if run(out, seed) else 1)


def parity(
    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")],
    other: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="OTHER")] = None,
    dtype: Literal["float64", "float32", "bfloat16"] = "float64",
    twins: tuple[Literal["jax", "torch"], Literal["jax", "torch"]] = ("jax", "torch"),
    seed: int = 0,
    every_parameter: bool = False,
    set_: Fields = (),
) -> None:
    """Run a checkpoint in both twins (or two checkpoints) on the same random images; compare every stage and gradient.

    Exit status 1 when something is out of bounds: everything within 1e-12 in float64; the outputs within 1e-5 in
    float32; errors of the outputs against float64 within three times each other's in bfloat16.

    Args:
        checkpoint: Checkpoint of any format.
        other: Another checkpoint, of any format, to compare it with (each stage, float64).
        dtype: Of parameters and computation.
        twins: Which one runs the first and which one the second.
        seed: Of the random images.
        every_parameter: One row for each gradient instead of one for each block (float64).
        set_: A field of the model's config that a file cannot tell, as heads=6 (of both checkpoints).
    """
    from vit_core import conversion, display, open_checkpoint
    from vit_core import parity as measure

    _not_negative("--seed", seed)
    if other is not None and dtype != "float64":
        raise InputError(f"--dtype {dtype}: two checkpoints are compared in float64")
    fields = conversion.fields_of(set_)
    opened = [open_checkpoint(path, fields=fields) for path in (checkpoint, other) if path is not None]
    for one in opened:
        _tell(one)
    packages = [_twin(name) for name in twins]
    if other is not None:
        with display.working("running both"):
            a, b = measure.run_each(opened, packages, seed)
        display.parity_report(f"{checkpoint} and {other}, float64", report := measure.compare(a, b), every_parameter)
        sys.exit(0 if report.ok else 1)
    awake, idle = measure.awakened(opened[0], seed)
    if idle:
        some = ", ".join(idle[:4]) + (f" and {len(idle) - 4} more" if len(idle) > 4 else "")
        display.say(f"constant, so given random values (they would prove nothing): {some}")
    names = " and ".join({"jax": "JAX", "torch": "PyTorch"}[name] for name in twins)
    with display.working("running both twins"):
        first, second = measure.run(awake, packages, dtype, seed)
    if dtype == "float64":
        display.parity_report(
            f"{checkpoint}: {names}, float64", report := measure.compare(first, second), every_parameter
        )
        sys.exit(0 if report.ok else 1)
    with display.working("running the float64 oracle"):
        (oracle,) = measure.run(awake, packages[1:], "float64", seed)
    rows = measure.against_oracle(first, second, oracle, dtype)
    display.oracle_report(f"{checkpoint}: {names} in {dtype}, against float64", rows)
    sys.exit(0 if all(row.ok for row in rows) else 1)


def convert(
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")],
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TARGET")],
    to: Literal[TARGETS] = "vit",  # type: ignore[valid-type]
    from_: Format = None,
    image_size: str | None = None,
    num_classes: int | None = None,
    method: str | None = None,
    dtype: str | None = None,
    set_: Fields = (),
    allow_lossy: bool = False,
    check: bool = True,
) -> None:
    """Write a checkpoint, training run or step of any format in another format, and prove that it is the same model.

    Afterwards what was written is opened again and both sides run in float64 on random images, also in the library that
    the format belongs to where it is installed. Exit status 1 if they are not within 1e-12 of each other.

    Args:
        source: Checkpoint file or folder of any format, training run or step.
        target: Folder or file to write.
        to: Format to write.
        from_: Format to read, where it should not be recognised.
        image_size: Resample the position embeddings for another size: 384, or 384x512 (height x width).
        num_classes: Put a new head for so many classes; 0 removes it.
        method: How to resample the positions (default: the checkpoint's own).
        dtype: Stored type: bfloat16, float16, float32 or float64 (default: as it is).
        set_: A field of the model's config that the file cannot tell, as heads=6; may be repeated.
        allow_lossy: Write also what the format cannot hold exactly, with its own activation or epsilon instead.
        check: Open and run what was written.
    """
    from vit_core import conversion, display, formats, open_checkpoint
    from vit_core.formats import widening

    size = None if image_size is None else conversion.parse_size(image_size)
    opened = open_checkpoint(source, format=from_, fields=conversion.fields_of(set_))
    conversion.check_apart(target, source, opened.path)
    _tell(opened)
    checkpoint = opened.adapt(image_size=size, num_classes=num_classes, position_embedding_method=method)
    checkpoint = checkpoint.adapt(dtype=dtype)  # afterwards, so that positions are resampled from what is there
    if opened.format == "vit":
        provenance = checkpoint.config.provenance.replace(source=source.name, source_format="vit-parity")
        checkpoint = checkpoint.with_config(checkpoint.config.replace(provenance=provenance))
    expressed, notes = formats.expressed(checkpoint, to, allow_lossy)
    with display.working(f"writing {target}"):
        notes += formats.save_as(target, expressed, to)
    for note in notes:
        display.say(note)
    display.say(f"wrote {target} ({to})")
    if check:
        with warnings.catch_warnings(action="ignore"):  # they were given when it was read
            proved = _proved(checkpoint, target, to, expressed.config.model, widening.bound_of(notes))
        sys.exit(0 if proved else 1)


def _proved(checkpoint: "Checkpoint", target: Path, to: str, model: "ViTConfig", bound: float) -> bool:
    """Whether what was written gives the checkpoint's outputs, as far as can be run here; prints each difference."""
    from vit_core import conversion, display
    from vit_core import parity as measure

    written, unsaid = conversion.read_back(target, to, model)
    if unsaid:
        display.say(
            "the file alone does not tell: " + " ".join(f"--set {conversion.word_of(k, v)}" for k, v in unsaid.items())
        )
    twin = next((name for name in ("torch", "jax") if not _missing(name)), None)
    if twin is None:
        display.say("not run: neither PyTorch nor JAX is installed")
        return True
    x_BHWC, _ = measure.probe(checkpoint.config.model, 0)
    with display.working("running both sides"):
        package = _twin(twin)
        before = conversion.outputs_of(package, checkpoint, x_BHWC)
        found = [conversion.difference("read back", conversion.outputs_of(package, written, x_BHWC), before, bound)]
        if twin == "torch":
            from vit_torch import proofs
            from vit_torch.references import NotInstalled

            try:
                if (theirs := proofs.outputs_by_library(target, to, model, x_BHWC)) is not None:
                    found.append(conversion.difference(f"{to} itself", theirs, before, bound))
            except NotInstalled as error:
                display.say(str(error))
    for one in found:
        display.say(str(one))
    return all(one.ok for one in found)


def bench(
    what: Annotated[Literal["convert"], tyro.conf.Positional],
    variant: str = "L/16",
    folder: Path = Path("."),
    repeats: int = 5,
) -> None:
    """Measure what converting a large checkpoint costs in time and memory, against a plain copy of the file.

    Args:
        what: The only benchmark there is here.
        variant: Published architecture, with random weights in float32: "L/16", "H/14", ...
        folder: Where the files are made (about five times the checkpoint's size), and removed again.
        repeats: How often each is measured; the best is shown.
    """
    from vit_core import bench, display

    if repeats < 1:
        raise InputError(f"--repeats {repeats}: expected 1 or more")
    _writable(folder)
    config = bench.model_of(variant)
    with display.working(f"making {variant} in several formats, and converting"):
        costs = list(bench.convert(config, folder, repeats))
    display.costs(f"{what} {variant} in float32, {costs[0].bytes / 1e6:,.0f} MB", costs)


def formats() -> None:
    """Show each format on small random models: written, opened by its own library, read back; with the differences.

    Exit status 1 when something is not as it should be.
    """
    needs("test", "torch", "timm", "transformers", "torchvision", "vit_pytorch")
    from vit_core import display
    from vit_torch import proofs

    with display.working("writing, opening and reading small models"):
        found = list(proofs.proofs())
    display.proofs(found, proofs.READ_ONLY)
    sys.exit(0 if all(proof.ok for proof in found) else 1)


def inspect(
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")],
    json: bool = False,
    from_: Format = None,
    set_: Fields = (),
) -> None:
    """Tell what a checkpoint of any format is: config, parameters by module, types, and what looks wrong in it.

    Args:
        source: Checkpoint file or folder of any format, training run or step.
        json: Print one JSON object instead of tables.
        from_: Format to read, where it should not be recognised.
        set_: A field of the model's config that the file cannot tell, as heads=6; may be repeated.
    """
    import json as text

    from vit_core import conversion, display, inspection, open_checkpoint

    checkpoint = open_checkpoint(source, format=from_, fields=conversion.fields_of(set_))
    with warnings.catch_warnings(action="ignore"), display.working("reading every array"):  # the report says it
        report = inspection.report(checkpoint)
    if json:
        print(text.dumps(report, indent=2))
    else:
        display.inspection(report, inspection.chosen(checkpoint.config.model))


def _tell(checkpoint: "Checkpoint") -> None:
    """What was assumed in reading a checkpoint of another project."""
    from vit_core import display

    if checkpoint.format != "vit":
        display.say(f"{checkpoint.path}: {checkpoint.format}")
        for note in checkpoint.notes:
            display.say(f"  {note}")


def _twin(name: str) -> Any:
    """A twin's package, ready for float64."""
    needs(name, *NEEDED[name])
    if name == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
        import vit_jax

        return vit_jax
    import vit_torch

    return vit_torch


def schema() -> None:
    """Print the JSON schema of config.json."""
    from vit_core import CheckpointConfig

    print(json.dumps(CheckpointConfig.json_schema(), indent=2))


COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "parity": parity,
    "convert": convert,
    "inspect": inspect,
    "formats": formats,
    "bench": bench,
    "schema": schema,
}


def main() -> None:
    """Entry point: exit status 0; 1 where a comparison fails; 2 with one line on bad input; 128 + a signal's number."""
    from train.topologies import silence

    warnings.showwarning = lambda message, *_: print(f"vit: warning: {one_line(str(message))}", file=sys.stderr)
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
        print(f"vit: error: {one_line(' '.join(str(error).split())) or 'out of memory'}", file=sys.stderr)
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


def _not_negative(option: str, value: int) -> None:
    if value < 0:
        raise InputError(f"{option} {value}: expected 0 or more")


NEEDED = {"jax": ("jax", "flax"), "torch": ("torch",)}
"""The modules that a twin cannot do without."""


def _missing(*extras: str) -> list[str]:
    from importlib.util import find_spec

    return [module for extra in extras for module in NEEDED[extra] if find_spec(module) is None]


def needs(extra: str, *modules: str) -> None:
    from importlib.util import find_spec

    if missing := [module for module in modules if find_spec(module) is None]:
        raise InputError(f"this command needs {', '.join(missing)}: pip install 'vit-parity[{extra}]'")


def _writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise InputError(f"{folder}: cannot write there ({error.strerror}); choose another folder with --out") from None
