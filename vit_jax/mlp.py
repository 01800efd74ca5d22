"""The MLPs of the blocks in JAX. Read it beside vit_torch/mlp.py; model.py explains the names of arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from vit_jax.layers import drop, identity, norm_layer
from vit_jax.linear import linear, to_hidden, to_width
from vit_jax.masks import Masks
from vit_jax.sharding import constrain

if TYPE_CHECKING:
    from vit_core.config import ViTConfig

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


class Mlp(nnx.Module):
    """Two linear layers with a GELU between them, from tokens [B, N, D] to [B, N, D] (arXiv:2010.11929, section 3.1).

    norm: a norm of the hidden values [B, N, F] before the second layer (NormFormer, arXiv:2110.09456).
    """

    def __init__(self, config: ViTConfig, hidden: int, *, bias: bool = True, norm: bool = False) -> None:
        self.activation = config.activation
        self.fc1 = linear(config.width, hidden, use_bias=bias)
        self.norm = norm_layer(config, hidden) if norm else identity
        self.fc2 = linear(hidden, config.width, use_bias=bias)

    def __call__(self, x_BND: Array, masks: Masks | None = None) -> Array:
        x_BNF = constrain(to_hidden(self.fc1, x_BND), "batch tokens mlp")
        x_BNF = drop(ACTIVATIONS[self.activation](x_BNF), "mlp.drop1", masks)
        return drop(to_width(self.fc2, self.norm(x_BNF), "mlp"), "mlp.drop2", masks)


class SwiGLU(nnx.Module):
    """An MLP gated by SiLU (arXiv:2002.05202), the gate first: DINOv2's w12, timm's SwiGLUPacked."""

    def __init__(self, config: ViTConfig, hidden: int, *, bias: bool = True, norm: bool = False) -> None:
        self.fc1 = linear(config.width, (2, hidden), use_bias=bias)
        self.norm = norm_layer(config, hidden) if norm else identity
        self.fc2 = linear(hidden, config.width, use_bias=bias)

    def __call__(self, x_BND: Array, masks: Masks | None = None) -> Array:
        gate_BNF, x_BNF = jnp.moveaxis(constrain(to_hidden(self.fc1, x_BND), "batch tokens gate mlp"), 2, 0)
        x_BNF = drop(jax.nn.silu(gate_BNF) * x_BNF, "mlp.drop1", masks)
        return drop(to_width(self.fc2, self.norm(x_BNF), "mlp"), "mlp.drop2", masks)


def block_mlp(config: ViTConfig) -> Mlp | SwiGLU:
    """The MLP of a block."""
    layer = SwiGLU if config.mlp == "swiglu" else Mlp
    return layer(config, config.mlp_dim, bias=config.proj_bias, norm=config.mlp_norm)
