"""Checkpoints: the data (`Checkpoint`), opening one of any format, and writing one in any format."""

from vit_core.checkpoints.checkpoint import Checkpoint, CheckpointConfig, Provenance, Resampling
from vit_core.checkpoints.opening import open_checkpoint
from vit_core.checkpoints.saving import save_checkpoint

__all__ = ["Checkpoint", "CheckpointConfig", "Provenance", "Resampling", "open_checkpoint", "save_checkpoint"]
