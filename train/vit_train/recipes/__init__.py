"""Recipes: Python files whose functions return the config of a run, found by name or by file."""

import ast
import importlib.util
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from vit_core.checkpoints import CheckpointConfig
from vit_core.errors import InputError, unknown_name
from vit_train import config
from vit_train.config import TrainConfig

SHIPPED = Path(__file__).parent
"""Folder of the package's recipes."""
STAGES = ("pretrain", "finetune")
OLD_CONFIG = "train.config"
"""The module that recipes of earlier versions import."""

Result = TypeVar("Result")


def names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("[!_]*.py"))


@dataclass(frozen=True)
class Recipe:
    """A recipe that was found and imported."""

    name: str
    """As the user wrote it."""
    path: Path
    module: ModuleType

    def config(self, stage: str, init: CheckpointConfig | None = None) -> TrainConfig:
        """The config of a stage: of `pretrain()`, or of `finetune(init)` from a checkpoint's config.

        For a checkpoint without a head (DINOv3, CLIP, MAE), the stage gets its config with a head for the number of
        classes of `pretrain()`; the number of classes in the training data replaces it later.

        Raises InputError for a recipe without this stage, and for one that fails.
        """
        if not callable(function := getattr(self.module, stage, None)):
            raise InputError(f"{self.name}: has no function {stage}; {self._has_instead()}")
        if stage == "finetune" and init is not None and not init.model.num_classes:
            classes = self.config("pretrain").model.num_classes if hasattr(self.module, "pretrain") else 0
            init = init.replace(model=init.model.with_classes(classes or 2))
        result = _call(self.path, partial(function, init) if stage == "finetune" else function)
        if not isinstance(result, TrainConfig):
            found = type(result).__name__
            raise InputError(f"{self.name}: {stage} returns {found}; expected a vit_train.config.TrainConfig")
        return result

    def has(self, stage: str) -> bool:
        """Whether the recipe has a stage."""
        return callable(getattr(self.module, stage, None))

    def most_epochs(self, stage: str) -> int | None:
        """The recipe's `MOST_EPOCHS[stage]`, or None: such a recipe is not fitted to small sets (vit_train.fitting)."""
        limits = getattr(self.module, "MOST_EPOCHS", {})
        if not isinstance(limits, dict) or not all(isinstance(value, int) and value > 0 for value in limits.values()):
            raise InputError(
                f"{self.name}: MOST_EPOCHS: expected numbers of epochs by stage, such as {{'pretrain': 300}}"
            )
        return limits.get(stage)

    def _has_instead(self) -> str:
        defined = [name for name in STAGES if self.has(name)]
        if defined == ["finetune"]:
            return "it has finetune, which begins from a checkpoint: --init CHECKPOINT"
        return f"it has {defined[0]}" if defined else f"a recipe has {' or '.join(STAGES)}, or both"


def open_recipe(recipe: str) -> Recipe:
    """A recipe by name or by file: one of `names()`, or a Python file, which is executed.

    Raises InputError for a recipe that is not there or cannot be imported.
    """
    path = Path(recipe) if recipe.endswith(".py") else SHIPPED / f"{recipe}.py"
    if not path.is_file():
        if recipe.endswith(".py"):
            raise InputError(f"{recipe}: no such file; a recipe is a Python file, or one of {', '.join(names())}")
        if os.path.exists(recipe):
            raise InputError(f"{recipe}: no recipe; the recipe comes first, then the images: folder --data {recipe}")
        raise unknown_name("recipe", recipe, names())
    return Recipe(recipe, path, _call(path, partial(_import, path)))


def load(recipe: str, stage: str, init: CheckpointConfig | None = None) -> TrainConfig:
    """The config of a recipe's stage. Raises InputError as `open_recipe` and `Recipe.config` do."""
    return open_recipe(recipe).config(stage, init)


def _import(path: Path) -> ModuleType:
    _refuse_old_imports(path)
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _refuse_old_imports(path: Path) -> None:
    """Raises InputError for a recipe of an earlier version, whose config was in a package called `train`.

    It is not executed to find out: a `train.py` of the user's would be imported, and might begin to train.
    """
    for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
        if isinstance(node, ast.ImportFrom) and node.module == OLD_CONFIG and not node.level:
            imported = [alias.name for alias in node.names]
            if set(imported) <= {*config.__all__, "*"}:
                new = f"from {config.__name__} import {', '.join(imported)}"
                raise InputError(f"{path}, line {node.lineno}: {OLD_CONFIG} is now {config.__name__}; write: {new}")


def _call(path: Path, call: Callable[[], Result]) -> Result:
    """What a call returns; its errors in one line that names the line of the recipe."""
    try:
        return call()
    except Exception as error:
        if str(error).startswith(f"{path}, line "):
            raise
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        number = getattr(error, "lineno", None) or (lines[-1] if lines else None)
        where = f"{path}, line {number}" if number else str(path)  # a file that cannot be read fails at no line
        kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        old = isinstance(error, ImportError) and (error.name or "").partition(".")[0] == "train"
        hint = "; the package train of earlier versions is now vit_train" if old else ""
        raise InputError(f"{where}: {kind}{error}{hint}") from None
