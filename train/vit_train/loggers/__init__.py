"""Where a run's curves are shown, beside metrics.jsonl: TensorBoard, Weights & Biases, MLflow."""

from vit_train.loggers.interface import Logger, LoggerError
from vit_train.loggers.opening import check_loggers, open_loggers

__all__ = ["Logger", "LoggerError", "check_loggers", "open_loggers"]
