"""The MLPs of the blocks in PyTorch. Read it beside vit_jax/mlp.py; model.py explains the names of arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor as Array
from torch import nn

from vit_torch.layers import drop, norm_layer
from vit_torch.linear import Linear, linear_gelu
from vit_torch.masks import Masks

if TYPE_CHECKING:
    from vit_core.config import ViTConfig

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu": lambda x: F.gelu(x),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


class Mlp(nn.Module):
    """Two linear layers with a GELU between them, from tokens [B, N, D] to [B, N, D] (arXiv:2010.11929, section 3.1).

    norm: a norm of the hidden values [B, N, F] before the second layer (NormFormer, arXiv:2110.09456).
    """

    def __init__(self, config: ViTConfig, hidden: int, *, bias: bool = True, norm: bool = False) -> None:
        super().__init__()
        self.activation = config.activation
        self.fc1 = Linear(config.width, hidden, bias=bias)
        self.norm = norm_layer(config, hidden) if norm else nn.Identity()
        self.fc2 = Linear(hidden, config.width, bias=bias)

    def forward(self, x_BND: Array, masks: Masks | None = None) -> Array:
        x_BNF = linear_gelu(self.fc1, x_BND, self.activation)
        if x_BNF is None:
            x_BNF = ACTIVATIONS[self.activation](self.fc1(x_BND))
        x_BNF = drop(x_BNF, "mlp.drop1", masks)
        return drop(self.fc2(self.norm(x_BNF)), "mlp.drop2", masks)


class SwiGLU(nn.Module):
    """An MLP gated by SiLU (arXiv:2002.05202), the gate first: DINOv2's w12, timm's SwiGLUPacked."""

    def __init__(self, config: ViTConfig, hidden: int, *, bias: bool = True, norm: bool = False) -> None:
        super().__init__()
        self.fc1 = Linear(config.width, 2 * hidden, bias=bias)
        self.norm = norm_layer(config, hidden) if norm else nn.Identity()
        self.fc2 = Linear(hidden, config.width, bias=bias)

    def forward(self, x_BND: Array, masks: Masks | None = None) -> Array:
        gate_BNF, x_BNF = self.fc1(x_BND).chunk(2, dim=2)
        x_BNF = drop(F.silu(gate_BNF) * x_BNF, "mlp.drop1", masks)
        return drop(self.fc2(self.norm(x_BNF)), "mlp.drop2", masks)


def block_mlp(config: ViTConfig) -> Mlp | SwiGLU:
    """The MLP of a block."""
    layer = SwiGLU if config.mlp == "swiglu" else Mlp
    return layer(config, config.mlp_dim, bias=config.proj_bias, norm=config.mlp_norm)
