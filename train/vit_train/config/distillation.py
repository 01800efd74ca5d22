"""Config of distillation: what a run learns from another model, in addition to the labels."""

from typing import Annotated, Literal

from pydantic import Field

from vit_core.schema import Real, Schema
from vit_train.config.data import Above0


class Distillation(Schema):
    """Distillation from a teacher: the loss of an example is (1 - weight) times that of its label plus weight times the
    teacher's part.

    hard: cross entropy with the class that the teacher finds most probable (DeiT, arXiv:2012.12877, equation 3).
    logits: temperature^2 KL(teacher, student) of the softmax of logits / temperature (arXiv:1503.02531; DeiT's equation
        2).
    features: 1 - the cosine similarity between the inputs of the teacher's head and of the student's head.
    If the student has model.distillation "head", the label's loss applies to the class token's head, and the teacher's
    part to the distillation token's head. Otherwise both apply to the same output.
    """

    teacher: str | None = None
    """Checkpoint of any format, training run or saved step to learn from; none: no distillation."""
    kind: Literal["hard", "logits", "features"] = "hard"
    """What the student learns from the teacher: its most probable class, its probabilities, or its features, which must
    have the student's width."""
    weight: Annotated[Real, Field(gt=0.0, le=1.0)] = 0.5
    """Weight of the teacher's part in the loss."""
    temperature: Above0 = 1.0
    """Divisor of the logits of both models, for kind 'logits'."""
