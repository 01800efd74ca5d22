"""The part that both twins share: the config schema, the parameter table, checkpoints of all formats. NumPy only."""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from vit_core.errors import InputError

if TYPE_CHECKING:
    from vit_core.checkpoints import Checkpoint, CheckpointConfig, Provenance, open_checkpoint, save_checkpoint
    from vit_core.config import ViTConfig
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

if not TYPE_CHECKING:  # a checker knows the names from the imports above, and no others
    _MODULES = {"ViTConfig": "config", "VARIANTS": "variants", "variant": "variants"}

    def __getattr__(name: str) -> object:
        """Imports a name, or a module of this package, when it is first used: both twins import this package, and the
        schemas and formats behind these names take longer than the twins themselves."""
        if name in __all__:
            return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'checkpoints')}"), name)
        if find_spec(f"{__name__}.{name}"):
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
