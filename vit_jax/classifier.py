"""The model's head, and the methods by which timm's users change it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from flax import nnx

from vit_core.parameters import Parameter, initial_value, parameters
from vit_jax.layers import identity
from vit_jax.linear import linear

if TYPE_CHECKING:
    from vit_core.checkpoints.checkpoint import CheckpointConfig
    from vit_core.config import ViTConfig


class Classifier(nnx.Module):
    """A model that ends in a head, or in two with distillation; without classes in none."""

    config: ViTConfig
    checkpoint: CheckpointConfig | None
    patch_embed: Any
    pre_logits: Any

    @property
    def table(self) -> Mapping[str, Parameter]:
        """The rows of the parameter table that the model has."""
        return parameters(self.config)

    def add_heads(self, config: ViTConfig) -> None:
        """Sets `head`, and with distillation `head_dist`, without initial values."""
        head = partial(linear, config.features, config.num_classes, use_bias=config.head_bias)
        self.head: Any = head() if config.num_classes else identity
        if config.distillation == "head":
            self.head_dist: Any = head() if config.num_classes else identity

    def get_classifier(self) -> Any:
        """The head; with distillation both heads. The identity function without classes."""
        return (self.head, self.head_dist) if self.config.distillation == "head" else self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Replaces the head by a new one with `num_classes` outputs and the initial values of the config (zeros, unless
        head_bias_init is set), as `vit_jax.load(..., num_classes=...)` does. 0: removes the head; the model then
        returns the features that are the head's inputs.

        Labels are dropped. Make the optimizer afterwards: the head's parameters are new ones.
        """
        self.config = self.config.with_classes(num_classes)
        if self.config.representation is None:
            self.pre_logits = identity
        self.add_heads(self.config)
        rows, dtype = parameters(self.config), self.patch_embed.proj.kernel.dtype
        for name, row in rows.items():
            if name.startswith(("head.", "head_dist.")):
                module, _, leaf = row.jax_name.partition(".")
                getattr(getattr(self, module), leaf).set_value(jnp.asarray(row.to_jax(initial_value(row, 0)), dtype))
        if self.checkpoint is not None:
            self.checkpoint = self.checkpoint.with_head_of(self.config)
