"""The classes and processes of a framework by its name; a framework is imported only when it is used."""

import importlib
from typing import cast

from vit_train.engine import Framework, MakeEngine, MakePredictor
from vit_train.freed_memory import keep_freed_memory
from vit_train.processes import Processes


def join_processes(framework: Framework, distributed: str | None = None) -> Processes:
    """Connects this process with the others of the run, and returns its index and their number.

    distributed: for JAX, see engines.jax.processes.join; PyTorch's processes are those of torchrun.
    """
    keep_freed_memory()
    processes = importlib.import_module(f"vit_train.engines.{framework}.processes")
    return cast(Processes, processes.join(distributed) if framework == "jax" else processes.join())


def device_count(framework: Framework, processes: Processes) -> int:
    """Number of devices of all processes of a run. processes: those that this process has joined."""
    return processes.count if framework == "torch" else int(importlib.import_module("jax").device_count())


def engine_class(framework: Framework, dtype: str) -> MakeEngine:
    """The class of a framework's engine. JAX is configured to allow 64-bit types if `dtype` is one, and to cache
    compiled programs."""
    _prepare(framework, dtype)
    engine = importlib.import_module(f"vit_train.engines.{framework}.engine")
    return cast(MakeEngine, engine.JaxEngine if framework == "jax" else engine.TorchEngine)


def predictor_class(framework: Framework, dtype: str) -> MakePredictor:
    """The class of a framework's predictor. JAX is configured as for `engine_class`."""
    _prepare(framework, dtype)
    predictor = importlib.import_module(f"vit_train.engines.{framework}.predictor")
    return cast(MakePredictor, predictor.JaxPredictor if framework == "jax" else predictor.TorchPredictor)


def _prepare(framework: Framework, dtype: str) -> None:
    keep_freed_memory()
    if framework == "jax":
        importlib.import_module("vit_train.engines.jax.compilation_cache").keep_compiled_programs()
        if dtype == "float64":
            importlib.import_module("jax").config.update("jax_enable_x64", True)
