"""The training commands of `vit`, with every field of a recipe's config as an option."""

import functools
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import tyro

from vit_core.checkpoint import checkpoint_of, open_checkpoint
from vit_core.cli import needs
from vit_core.conversion import parse_size
from vit_core.errors import InputError
from vit_core.places import Stored, local, place
from vit_core.schema import Positive

from . import recipe as recipes
from .config import Data, TrainConfig

if TYPE_CHECKING:
    from .sources import Split

Framework = Literal["jax", "torch"]
Recipe = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")]
Fields = Annotated[TrainConfig, tyro.conf.arg(name="")]
OF_A_RECIPE = ("pretrain", "finetune", "explain", "plan")


def pretrain(
    recipe: Recipe,
    config: Fields,
    *,
    framework: Framework = "jax",
    out: Path | None = None,
    distributed: str | None = None,
    preflight: bool = False,
) -> None:
    """Train from new weights by a recipe; on the folder of a run, go on with it.

    Every field of the recipe is an option: see `vit pretrain RECIPE --help`. The devices of all processes share a run
    as --mesh.data, --mesh.fsdp and --mesh.tensor say (default: each a part of the batch).

    Args:
        recipe: One of those that come with it (train/recipes: cifar10, digits, ...), or a Python file like theirs.
        framework: Who trains; either goes on with the other's run.
        out: Folder of the run (default: runs/RECIPE).
        distributed: Of several JAX processes: HOST:PORT,INDEX/COUNT, the first one's address and which this one is
            (default: found on TPU pods and under SLURM and Open MPI), or off. PyTorch's are torchrun's.
        preflight: Check that all processes agree, print devices, mesh, shards and the loader's speed, and end.
    """
    _ready(framework)
    from .commands import Launch
    from .commands import pretrain as run

    _end(run(config, out or Path("runs") / Path(recipe).stem, Launch(framework, distributed, preflight)))


def finetune(
    recipe: Recipe,
    config: Fields,
    *,
    init: Path,
    framework: Framework = "torch",
    out: Path | None = None,
    image_size: str | None = None,
    distributed: str | None = None,
    preflight: bool = False,
) -> None:
    """Train on from a checkpoint: positions resampled, the head replaced where the classes differ.

    Every field of the recipe is an option: see `vit finetune RECIPE --init CHECKPOINT --help`.

    Args:
        recipe: One of those that come with it (train/recipes: cifar10, digits, ...), or a Python file like theirs.
        init: Checkpoint of any format, run, or step to begin from.
        framework: Who trains; either goes on with the other's run.
        out: Folder of the run (default: runs/RECIPE_finetune).
        image_size: Short for --model.image-size: 384, or 384x512 (height x width).
        distributed: As in vit pretrain.
        preflight: As in vit pretrain.
    """
    _ready(framework)
    from .commands import Launch
    from .commands import finetune as run

    if image_size is not None:
        config = config.replace(model=config.model.replace(image_size=parse_size(image_size)))
    folder = out or Path("runs") / f"{Path(recipe).stem}_finetune"
    _end(run(config, checkpoint_of(init), folder, Launch(framework, distributed, preflight)))


def explain(recipe: Recipe, config: Fields, *, init: Path | None = None, image_size: str | None = None) -> None:
    """Show what a recipe comes to: config, schedule, parameter groups, tokens and FLOPs; nothing is run.

    Args:
        recipe: One of those that come with it (train/recipes: cifar10, digits, ...), or a Python file like theirs.
        init: Checkpoint to fine-tune: explains the recipe's finetune instead of its pretrain.
        image_size: Short for --model.image-size: 384, or 384x512 (height x width).
    """
    from .explain import explain as run

    if image_size is not None:
        config = config.replace(model=config.model.replace(image_size=parse_size(image_size)))
    split = _training_split(config.data)
    if init is not None and split is not None:
        config = config.replace(model=config.model.replace(num_classes=len(split.labels)))
    title = f"{recipe}: {'pretrain' if init is None else f'finetune {init}'}"
    run(title, config, None if split is None else len(split))


def plan(recipe: Recipe, config: Fields, *, topology: str = "local", fit: bool = False) -> None:
    """Compile a recipe's train step for a TPU slice, without the hardware, and show what it needs of each device.

    Exit status 1 when it does not fit. Compilations are kept under ~/.cache/vit-parity.

    Args:
        recipe: One of those that come with it (train/recipes: cifar10, digits, ...), or a Python file like theirs.
        topology: A slice of v4, v5e, v5p, v6e or tpu7x and its chips along each side, as v5e:16x16 or v5p:8x8x4;
            local: the devices of this machine.
        fit: Search batch, remat and mesh for the largest batch that fits.
    """
    from . import topologies

    asked = None if topology == topologies.LOCAL else topologies.parse(topology)
    needs("jax", "jax", "flax", "optax")
    if asked is not None:
        needs("tpu", "libtpu")
        os.environ |= topologies.WITHOUT_HARDWARE
    report = importlib.import_module(".plan_report", __package__)
    sys.exit(0 if report.run(recipe, config, asked, fit) else 1)


def evaluate(
    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")],
    *,
    data: str | None = None,
    data_dir: str | None = None,
    split: str | None = None,
    held_out: float = 1.0,
    split_seed: int = 0,
    framework: Framework = "torch",
    image_size: str | None = None,
    batch_size: int = 100,
    compute_dtype: Literal["float32", "bfloat16"] = "float32",
    allow_undecodable: bool = False,
) -> None:
    """Accuracy of a checkpoint on a data set, each image once, by the preprocessing the checkpoint carries.

    Args:
        checkpoint: Checkpoint of any format, run, or step.
        data: A folder (written with a slash), a tensorflow-datasets set's name, or digits (default: the run's own).
        data_dir: Where tensorflow-datasets sets are prepared.
        split: Default: the one there is of test, validation and val.
        held_out: Share of a folder without splits (default: all of it; the run's own, where data is not given).
        split_seed: Which share.
        framework: Who computes.
        image_size: Resample the positions for another size: 384, or 384x512 (height x width).
        batch_size: Images at once; changes no result.
        compute_dtype: Of the forward pass.
        allow_undecodable: Leave images out that cannot be read, instead of stopping.
    """
    _ready(framework)
    if batch_size < 1:
        raise InputError(f"--batch-size {batch_size}: expected 1 or more")
    from .commands import evaluate_checkpoint
    from .run import RUN, read_request

    if data is None:
        source = read_request(checkpoint).config.data if (checkpoint / RUN).exists() else None
        if source is None:
            raise InputError(
                f"{checkpoint}: no training run, so it does not say on what to evaluate; name it with --data"
            )
    else:
        source = Data(name=data, held_out=held_out, split_seed=split_seed)
    evaluate_checkpoint(
        checkpoint_of(checkpoint),
        source.replace(directory=data_dir or source.directory),
        framework,
        split=split,
        image_size=None if image_size is None else parse_size(image_size),
        batch_size=batch_size,
        compute_dtype=compute_dtype,
        allow_undecodable=allow_undecodable,
    )


def compare(
    a: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    b: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    *,
    out: Path = Path("compared.png"),
) -> None:
    """How far two runs of one config part (one in JAX, one in PyTorch, say): losses, weights, a figure.

    Args:
        a: Folder of a run.
        b: Folder of another.
        out: Figure to draw.
    """
    needs("train", "matplotlib")
    from .compare import compare as run

    run(a, b, local(out, "--out"))


def prepare(
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")],
    *,
    out: Path,
    name: str | None = None,
    held_out: float = 0.1,
    split_seed: int = 0,
    workers: int | None = None,
    shard_size_mib: int = 256,
) -> None:
    """Pack class folders of images into ArrayRecord, as tensorflow-datasets lays it out; started again, it goes on.

    Args:
        folder: FOLDER/CLASS/... or FOLDER/train/CLASS/... with test, validation or val beside it.
        out: Where to make NAME/1.0.0; read it with --data.name NAME --data.directory OUT, or with tfds.data_source.
        name: Name of the set (default: the folder's).
        held_out: Share of each class that becomes the split "test" where the folder has no splits.
        split_seed: Which ones, and in what order the images are packed.
        workers: Processes (default: one for each core).
        shard_size_mib: A shard is closed at this size.
    """
    needs("train", "tensorflow_datasets", "array_record")
    from vit_core.display import say

    from .prepare import prepare as run

    prepared = run(
        local(folder, "FOLDER"),
        local(out, "--out"),
        name=name,
        held_out=held_out,
        split_seed=split_seed,
        workers=workers,
        shard_size_mib=shard_size_mib,
    )
    say(prepared.summary)


COMMANDS: dict[str, Callable[..., None]] = {
    "pretrain": pretrain,
    "finetune": finetune,
    "evaluate": evaluate,
    "explain": explain,
    "plan": plan,
    "compare": compare,
    "prepare": prepare,
}


def commands(words: Sequence[str]) -> dict[str, Callable[..., None]]:
    """The commands by name. Those of a recipe take its fields as options once the words name one."""
    asked = words[0] if words else ""
    config = _default(words) if asked in OF_A_RECIPE and words[1:2] not in (["-h"], ["--help"]) else None
    return {
        name: _with_fields(command, config if name == asked else None) if name in OF_A_RECIPE else command
        for name, command in COMMANDS.items()
    }


def _with_fields(command: Callable[..., None], config: TrainConfig | None) -> Callable[..., None]:
    """The command with a recipe's config as the default of its fields; without one, with no fields at all."""

    @functools.wraps(command)
    def bound(*args: Any, **kwargs: Any) -> None:
        command(*args, **kwargs)

    signature = inspect.signature(command)
    parameters = [
        parameter.replace(default=config) if parameter.name == "config" else parameter
        for parameter in signature.parameters.values()
        if config is not None or parameter.name != "config"
    ]
    bound.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return bound


def _default(words: Sequence[str]) -> TrainConfig:
    """The config of the recipe that the words name, from the checkpoint they name with --init."""
    if len(words) < 2 or words[1].startswith("-"):
        raise InputError(f"vit {words[0]}: name a recipe first: a Python file, or one of {', '.join(recipes.names())}")
    for word in words:
        if follows := re.match(r"--preprocessing\.(image[-_]size|channels)", word):
            raise InputError(f"{word}: follows the model's; set --model.{follows[1]}")
    init = _value(words, "--init")
    if init is None and words[0] == "finetune":
        raise InputError("vit finetune: name the checkpoint to begin from: --init CHECKPOINT")
    if init is None:
        return recipes.load(words[1], "pretrain")

    return recipes.load(words[1], "finetune", open_checkpoint(checkpoint_of(place(init))).config)


def _value(words: Sequence[str], option: str) -> str | None:
    """What the words give an option, before they are parsed as a whole."""
    for i, word in enumerate(words):
        if word == option and i + 1 < len(words):
            return words[i + 1]
        if word.startswith(f"{option}="):
            return word.removeprefix(f"{option}=")
    return None


def _ready(framework: Framework) -> None:
    needs("train", "grain", "tensorflow_datasets", "scipy", "matplotlib", "tensorboardX")
    needs(framework, framework)
    if framework == "jax" and os.environ.get("WORLD_SIZE", "1") != "1":
        raise InputError("torchrun starts processes for PyTorch: add --framework torch, or start JAX without torchrun")


def _training_split(data: Data) -> "Split | None":
    """Where it is at hand."""
    needs("train", "tensorflow_datasets")
    from .sources import open_split

    try:
        return open_split(data, "train")
    except InputError:
        return None


def _end(fitted: Any) -> None:
    """128 + the signal's number, where one ended the run."""
    if fitted.signal is not None:
        sys.exit(128 + fitted.signal)


registry = tyro.constructors.ConstructorRegistry()


@registry.primitive_rule
def _place(info: Any) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
    """Paths, of this machine or in a store: pathlib alone would make gs:/ of gs://."""
    if info.type is not Path:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda words: place(words[0]),
        is_instance=lambda value: isinstance(value, Path | Stored),
        str_from_instance=lambda value: [str(value)],
    )


@registry.primitive_rule
def _size(info: Any) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
    """Sizes in pixels as everywhere here: 384, or 384x512 (height x width)."""
    if get_args(info.type) != (Positive, Positive):
        return None

    def read(words: list[str]) -> tuple[int, int]:
        size = parse_size(words[0])
        return (size, size) if isinstance(size, int) else size

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="SIZE",
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, tuple) and len(value) == 2,
        str_from_instance=lambda value: [f"{value[0]}x{value[1]}"],
    )
