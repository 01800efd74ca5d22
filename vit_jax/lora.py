"""Low-rank adapters in the JAX twin, beside the weights (vit_core.lora explains them)."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from vit_core.lora import Lora, adapter_rows
from vit_core.parameters import Stack, stacks
from vit_jax.arrays import path_of
from vit_jax.model import ViT


def attach(model: ViT, lora: Lora, value: Callable[[Stack], jax.Array]) -> None:
    """Gives a model adapters: `value` returns the array of a stack of adapters' matrices, layers along its first axis.

    The weights stay as they are; the adapters are the parameters `lora_A` and `lora_B` of the layers that have them.
    """
    for stack in stacks(adapter_rows(model.config, lora).values()).values():
        layers = value(stack)
        for i, row in enumerate(stack.rows[:1] if model.scan else stack.rows):
            *path, name = path_of(row, model.scan).split(".")
            module: Any = model
            for part in path:
                module = module[int(part)] if part.isdigit() else getattr(module, part)
            setattr(module, name, nnx.Param(layers if model.scan else layers[i]))
            module.lora_scale = lora.scale
