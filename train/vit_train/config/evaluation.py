"""Config of an evaluation, of a run's weights or of a checkpoint."""

from typing import Literal

from vit_core.preprocess import Preprocessing
from vit_core.schema import Flag, NonNegative, Positive, Schema

Loss = Literal["softmax", "sigmoid"]


class EvaluationOptions(Schema):
    """How a split is evaluated."""

    preprocessing: Preprocessing
    """How images become arrays."""
    batch_size: Positive = 100
    """Batch size over all processes, rounded up to a multiple of its shards. It does not change the results."""
    loss: Loss = "softmax"
    allow_undecodable: Flag = False
    """Skip images that cannot be read, instead of stopping."""
    threads: Positive = 2
    """Threads that make batches, in each worker."""
    workers: NonNegative = 0
    """Number of processes that make batches; 0: only threads of this process."""
