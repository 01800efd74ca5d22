"""Config of distillation: what a run learns from another model, beside the labels."""

from typing import Annotated, Literal

from pydantic import Field

from vit_core.schema import Real, Schema
from vit_train.config.data import Above0


class Distillation(Schema):
    """Distillation from a teacher: the loss of an example is (1 - weight) times its own and weight times the teacher's.

    hard: cross entropy with the class that the teacher finds most probable (DeiT, arXiv:2012.12877, equation 3).
    logits: temperature^2 KL(teacher, student) of the softmax of logits / temperature (arXiv:1503.02531; DeiT's
        equation 2).
    features: 1 - the cosine between what the teacher's head reads and what the student's reads.
    Where the student has model.distillation "head", its own loss is that of the class token's head, and the teacher's
    that of the distillation token's. Otherwise both are of the same output.
    """

    teacher: str | None = None
    """Checkpoint of any format, training run or saved step to learn from; none: no distillation."""
    kind: Literal["hard", "logits", "features"] = "hard"
    """What is learned of it: its answers, its probabilities, or its features, which have to be as wide as the
    student's."""
    weight: Annotated[Real, Field(gt=0.0, le=1.0)] = 0.5
    """Share of the teacher in the loss."""
    temperature: Above0 = 1.0
    """What the logits of both are divided by, for kind 'logits'."""
