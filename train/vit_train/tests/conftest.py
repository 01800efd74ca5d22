"""The fixtures that tests in this folder use by name or automatically."""

from vit_train.tests.fixtures import share_compiled_steps, vit, without_hardware

__all__ = ["share_compiled_steps", "vit", "without_hardware"]
