"""What a training run is: one typed, validated config that both engines follow."""

from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from vit_core.checkpoint import Checkpoint
from vit_core.config import ViTConfig
from vit_core.errors import InputError
from vit_core.preprocess import Preprocessing
from vit_core.schema import NonNegative, Positive, Rate, Real, Schema

Magnitude = Annotated[Real, Field(ge=0.0)]


class Optimizer(Schema):
    """How gradients g become updates of parameters p, with learning rate lr of the step.

    adamw: p <- p - lr (m / (sqrt(v) + epsilon) + weight_decay p), m and v bias-corrected (arXiv:1711.05101).
    sgd, decoupled: b <- momentum b + g; p <- p - lr (b + weight_decay p).
    sgd, coupled (torch.optim.SGD): b <- momentum b + g + weight_decay p; p <- p - lr b.
    Decay applies to the parameters whose row in the table says so. Clipping comes first, on all gradients together.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    learning_rate: Magnitude = 1e-3
    """Peak of the schedule."""
    weight_decay: Magnitude = 0.0
    """Multiplied by the learning rate (big_vision's is not)."""
    decay: Literal["decoupled", "coupled"] = "decoupled"
    """Coupled: added to the gradient before momentum; SGD only."""
    beta1: Rate = 0.9
    beta2: Rate = 0.999
    epsilon: Annotated[Real, Field(gt=0.0)] = 1e-8
    momentum: Rate = 0.9
    """SGD's."""
    clip_norm: Annotated[Real, Field(gt=0.0)] | None = None
    """Gradients are scaled by c / max(norm, c), norm over all of them."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.name == "adamw" and self.decay == "coupled":
            raise ValueError("decay: 'coupled' is for name 'sgd'; AdamW's decay is decoupled")
        return self


class Augmentation(Schema):
    """Random changes of a training image, after the evaluation transform."""

    rotation: Magnitude = 0.0
    """Largest angle, degrees."""
    shift: Magnitude = 0.0
    """Largest shift, as a fraction of each side."""


NOT_THE_NETWORK = {
    "dropout",
    "attention_dropout",
    "stochastic_depth",
    "head_bias_init",
    "patch_embedding",
    "position_resampling",
}
"""Fields of a model that a run may choose anew for given weights."""


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
    warmup_steps: NonNegative = 0
    """Steps of linear growth before the cosine."""
    seed: NonNegative = 0
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

    def fitted(self, weights: Checkpoint) -> Checkpoint:
        """The weights under this run's model config. InputError unless both compute the same network."""
        ours, theirs = self.model.model_dump(), weights.config.model.model_dump()
        differing = [name for name in ours if ours[name] != theirs[name] and name not in NOT_THE_NETWORK]
        if differing:
            found = ", ".join(f"{name} is {ours[name]} here and {theirs[name]} there" for name in differing)
            raise InputError(f"model: not that of checkpoint {weights.path}: {found}")
        return weights.with_config(weights.config.replace(model=self.model))

    def learning_rate(self, step: int) -> float:
        """Of step 0, 1, ...: linear from peak / warmup_steps to the peak, then half a cosine towards 0; float64."""
        if step < self.warmup_steps:
            return self.optimizer.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / (self.steps - self.warmup_steps)
        return self.optimizer.learning_rate * float(0.5 * (1 + np.cos(np.pi * progress)))
