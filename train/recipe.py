"""Recipes by name or by file, and how the command line overrides their fields."""

import importlib.util
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from vit_core.checkpoint import CheckpointConfig
from vit_core.errors import InputError, unknown_name

from .config import TrainConfig

SHIPPED = Path(__file__).parent / "recipes"


def names() -> list[str]:
    """Recipes that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("[!_]*.py"))


def load(recipe: str, stage: str, init: CheckpointConfig | None = None) -> TrainConfig:
    """The config of a recipe's stage: `pretrain()`, or `finetune(init)` from a checkpoint's config.

    recipe: a name of `names()`, or a Python file, which is run. InputError for one that is not there, lacks the stage,
    or fails.
    """
    path = Path(recipe) if recipe.endswith(".py") else SHIPPED / f"{recipe}.py"
    if not path.is_file():
        if recipe.endswith(".py"):
            raise InputError(f"{recipe}: no such file; a recipe is a Python file, or one of {', '.join(names())}")
        raise unknown_name("recipe", recipe, names())
    module = _run(path, partial(_import, path))
    if not callable(function := getattr(module, stage, None)):
        found = [name for name in ("pretrain", "finetune") if callable(getattr(module, name, None))]
        raise InputError(f"{recipe}: has no function {stage}, only {', '.join(found) or 'neither of the two'}")
    config = _run(path, partial(function, init) if stage == "finetune" else function)
    if not isinstance(config, TrainConfig):
        raise InputError(f"{recipe}: {stage} returns {type(config).__name__}; expected a train.config.TrainConfig")
    return config


def _import(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run(path: Path, call: Callable[[], Any]) -> Any:
    """The call, its errors as one line that names the line of the recipe."""
    try:
        return call()
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = getattr(error, "lineno", None) or (lines[-1] if lines else "?")
        kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        raise InputError(f"{path}, line {line}: {kind}{error}") from None
