"""What the twins agree on: the config schema, the parameter table, the checkpoint folder. NumPy only."""

from vit_core.checkpoints import Checkpoint, CheckpointConfig, Provenance, open_checkpoint, save_checkpoint
from vit_core.config import ViTConfig
from vit_core.errors import InputError
from vit_core.variants import VARIANTS, variant

__all__ = [
    "VARIANTS",
    "Checkpoint",
    "CheckpointConfig",
    "InputError",
    "Provenance",
    "ViTConfig",
    "open_checkpoint",
    "save_checkpoint",
    "variant",
]
