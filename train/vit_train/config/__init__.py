"""The config of a training run: typed, validated, and used by both engines."""

from vit_train.config.data import Augmentation, Data, RandAugment
from vit_train.config.distillation import Distillation
from vit_train.config.evaluation import EvaluationOptions, Loss
from vit_train.config.fields import changed_fields, field_value, flatten, leaf_fields, with_fields
from vit_train.config.mesh import Mesh
from vit_train.config.optimization import (
    FACTORED_FROM,
    MUON_RMS,
    NEWTON_SCHULZ,
    NEWTON_SCHULZ_STEPS,
    Optimizer,
    Schedule,
)
from vit_train.config.run_config import TrainConfig
from vit_train.config.run_fields import Continued

__all__ = [
    "FACTORED_FROM",
    "MUON_RMS",
    "NEWTON_SCHULZ",
    "NEWTON_SCHULZ_STEPS",
    "Augmentation",
    "Continued",
    "Data",
    "Distillation",
    "EvaluationOptions",
    "Loss",
    "Mesh",
    "Optimizer",
    "RandAugment",
    "Schedule",
    "TrainConfig",
    "changed_fields",
    "field_value",
    "flatten",
    "leaf_fields",
    "with_fields",
]
