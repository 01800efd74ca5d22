"""What a training run is: one typed, validated config that both engines follow."""

from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from vit_core.config import Positive, Rate, ViTConfig
from vit_core.preprocess import Preprocessing
from vit_core.schema import Schema

NonNegative = Annotated[float, Field(ge=0.0)]


class Optimizer(Schema):
    """How gradients g become updates of parameters p, with learning rate lr of the step.

    adamw: p <- p - lr (m / (sqrt(v) + epsilon) + weight_decay p), m and v bias-corrected (arXiv:1711.05101).
    sgd, decoupled: b <- momentum b + g; p <- p - lr (b + weight_decay p).
    sgd, coupled (torch.optim.SGD): b <- momentum b + g + weight_decay p; p <- p - lr b.
    Decay applies to the parameters whose row in the table says so. Clipping comes first, on all gradients together.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    learning_rate: NonNegative = 1e-3
    """Peak of the schedule."""
    weight_decay: NonNegative = 0.0
    """Multiplied by the learning rate (big_vision's is not)."""
    decay: Literal["decoupled", "coupled"] = "decoupled"
    """Coupled: added to the gradient before momentum; SGD only."""
    beta1: Rate = 0.9
    beta2: Rate = 0.999
    epsilon: Annotated[float, Field(gt=0.0)] = 1e-8
    momentum: Rate = 0.9
    """SGD's."""
    clip_norm: Annotated[float, Field(gt=0.0)] | None = None
    """Gradients are scaled by c / max(norm, c), norm over all of them."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.name == "adamw" and self.decay == "coupled":
            raise ValueError("decay: 'coupled' is for name 'sgd'; AdamW's decay is decoupled")
        return self


class Augmentation(Schema):
    """Random changes of a training image, after the evaluation transform."""

    rotation: NonNegative = 0.0
    """Largest angle, degrees."""
    shift: NonNegative = 0.0
    """Largest shift, as a fraction of each side."""


class TrainConfig(Schema):
    """A run. Batch i is a function of (seed, i) and nothing else."""

    model: ViTConfig
    preprocessing: Preprocessing
    augmentation: Augmentation = Augmentation()
    optimizer: Optimizer = Optimizer()
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """Cross entropy over classes; sigmoid: summed over classes, then the mean over examples."""
    label_smoothing: Rate = 0.0
    """Targets become (1 - s) target + s / classes."""
    steps: Positive
    batch_size: Positive
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of linear growth before the cosine."""
    seed: Annotated[int, Field(ge=0)] = 0
    dtype: Literal["float32", "float64"] = "float32"
    """Of parameters and computation."""
    log_every: Positive = 10

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.preprocessing.image_size != self.model.image_size or self.preprocessing.channels != self.model.channels:
            raise ValueError(
                f"preprocessing: gives {self.preprocessing.image_size} with {self.preprocessing.channels} channels, "
                f"the model takes {self.model.image_size} with {self.model.channels}"
            )
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps: {self.warmup_steps} leaves nothing of {self.steps} steps")
        if not self.model.num_classes:
            raise ValueError("model.num_classes: 0 leaves nothing to train towards")
        return self

    def learning_rate(self, step: int) -> float:
        """Of step 0, 1, ...: linear from peak / warmup_steps to the peak, then half a cosine towards 0; float64."""
        if step < self.warmup_steps:
            return self.optimizer.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / (self.steps - self.warmup_steps)
        return self.optimizer.learning_rate * float(0.5 * (1 + np.cos(np.pi * progress)))
