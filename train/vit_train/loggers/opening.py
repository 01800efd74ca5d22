"""Checks and opens the loggers of a run."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec

from vit_core.errors import InputError
from vit_core.storage import Location, is_local
from vit_train.loggers import mlflow, weights_and_biases
from vit_train.loggers.interface import LoggedRun, Logger
from vit_train.loggers.mlflow import MLflow
from vit_train.loggers.tensorboard import TensorBoard
from vit_train.loggers.weights_and_biases import WeightsAndBiases

_LOGGERS: dict[str, Callable[[LoggedRun], Logger]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}
_SERVERS = {
    "wandb": (weights_and_biases.is_online, "WANDB_MODE=online"),
    "mlflow": (mlflow.is_online, "MLFLOW_TRACKING_URI to the address of a server"),
}
"""Logger -> function that returns whether it sends to a server, and the setting for that."""


def check_loggers(names: Sequence[str], run: Location) -> None:
    """Raises InputError for loggers that a run in this folder cannot use; nothing is written."""
    for name in names:
        if find_spec(name) is None:
            raise InputError(f"--loggers {name}: {name} is not installed: pip install 'vit-parity[{name}]'")
        online, setting = _SERVERS[name]
        if not is_local(run) and not online():
            raise InputError(f"--loggers {name}: a run in a store has no folder for its files; set {setting}")


def open_loggers(names: Sequence[str], run: LoggedRun) -> list[Logger]:
    """The loggers with these names: "tensorboard", "wandb", "mlflow". LoggerError for one that cannot be used."""
    return [_LOGGERS[name](run) for name in names]
