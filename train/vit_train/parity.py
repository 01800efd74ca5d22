"""Training parity: one training step in both engines, from the same checkpoint."""

import numpy as np

from vit_core.checkpoints import Checkpoint
from vit_train.config import TrainConfig
from vit_train.data.batches import Batch
from vit_train.engine import Engine
from vit_train.engines.jax.engine import JaxEngine
from vit_train.engines.torch.engine import TorchEngine


def one_step(
    checkpoint: Checkpoint, config: TrainConfig, batch: Batch
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The loss ("loss") and the weights ("step.<parameter>") after one update, by the JAX and by the PyTorch engine."""
    in_jax, in_torch = (
        _loss_and_weights(engine, batch) for engine in (JaxEngine(config, checkpoint), TorchEngine(config, checkpoint))
    )
    return in_jax, in_torch


def _loss_and_weights(engine: Engine, batch: Batch) -> dict[str, np.ndarray]:
    loss = np.asarray(float(engine.train_step(batch, 0).loss))
    return {"loss": loss, **{f"step.{name}": array for name, array in engine.export().items()}}
