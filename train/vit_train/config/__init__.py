"""What a training run is: one typed, validated config that both engines follow."""

from vit_train.config.data import Augmentation, Data
from vit_train.config.evaluation import EvaluationOptions, Loss
from vit_train.config.fields import flatten, leaf_fields
from vit_train.config.mesh import Mesh
from vit_train.config.optimization import FACTORED_FROM, Optimizer, Schedule
from vit_train.config.run_config import TrainConfig

__all__ = [
    "FACTORED_FROM",
    "Augmentation",
    "Data",
    "EvaluationOptions",
    "Loss",
    "Mesh",
    "Optimizer",
    "Schedule",
    "TrainConfig",
    "flatten",
    "leaf_fields",
]
