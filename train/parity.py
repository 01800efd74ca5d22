"""Training parity: the same step in both engines."""

import numpy as np

from vit_core.checkpoint import Checkpoint

from .config import TrainConfig
from .data import Batch
from .engine_jax import JaxEngine
from .engine_torch import TorchEngine


def one_step(
    checkpoint: Checkpoint, config: TrainConfig, batch: Batch
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The loss and the weights ("step.<parameter>") after one update by each engine, from the same checkpoint."""
    results = []
    for engine in (JaxEngine(config, checkpoint), TorchEngine(config, checkpoint)):
        loss = engine.train_step(batch, 0).loss
        weights = {f"step.{name}": array for name, array in engine.export().items()}
        results.append({"loss": np.asarray(float(loss)), **weights})
    return results[0], results[1]
