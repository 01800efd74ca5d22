"""What the training commands share: what they need, how progress and results are shown, how they end."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from vit_cli.recipe_options import Changes, changed
from vit_cli.requirements import TRAINING, TWINS, require
from vit_cli.twins import Framework
from vit_core.checkpoints import Checkpoint
from vit_core.errors import InputError
from vit_train import recipes
from vit_train.config import TrainConfig

if TYPE_CHECKING:
    from vit_train.stages import Launch, StageResult

Recipe = Annotated[str, Parameter(metavar="RECIPE")]
"""Name of a shipped recipe, or a Python file."""
Stage = Literal["pretrain", "finetune"]


def require_training(framework: Framework) -> None:
    """Raises InputError where packages are missing, or where torchrun starts processes for JAX."""
    require("train", *TRAINING)
    require(framework, *TWINS[framework])
    if framework == "jax" and os.environ.get("WORLD_SIZE", "1") != "1":
        raise InputError("torchrun starts processes for PyTorch: add --framework torch, or start JAX without torchrun")


def recipe_config(recipe: str, stage: Stage, changes: Changes, init: Checkpoint | None = None) -> TrainConfig:
    """The config of a recipe's stage with the changes of the command line."""
    return changed(recipes.load(recipe, stage, init.config if init else None), changes)


def launch(framework: Framework, distributed: str | None, preflight: bool) -> "Launch":
    """How to start a run, with everything shown in the terminal."""
    from vit_cli.reports.training import TerminalDisplay
    from vit_train.stages import Launch

    return Launch(framework, distributed, preflight, TerminalDisplay())


def finish(result: "StageResult") -> int:
    """Prints how a run ended, and returns the exit status: 128 + the signal's number where one stopped it."""
    from vit_cli.reports.training import print_stage

    print_stage(result)
    return 0 if result.fit.signal is None else 128 + result.fit.signal


@contextmanager
def stopped_by_signal() -> Iterator[None]:
    """Within it, a task that a signal stops ends the command with exit status 128 + the signal's number."""
    from vit_train.signals import StoppedBySignal

    try:
        yield
    except StoppedBySignal as stopped:
        if stopped.number == signal.SIGINT:
            raise KeyboardInterrupt from None  # reported as any Ctrl-C
        raise SystemExit(128 + stopped.number) from None


def run_name(recipe: str) -> str:
    """The recipe's name, for the folder of its runs."""
    return recipe.rpartition("/")[2].removesuffix(".py")
