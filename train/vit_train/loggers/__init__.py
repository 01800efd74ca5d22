"""Services that show a run's curves, in addition to metrics.jsonl: TensorBoard, Weights & Biases, MLflow."""

from vit_train.loggers.interface import Logger, LoggerError
from vit_train.loggers.opening import check_loggers, open_loggers

__all__ = ["Logger", "LoggerError", "check_loggers", "open_loggers"]
