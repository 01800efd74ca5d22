"""An independent DINOv3 in PyTorch with the names of Meta's files, for tests: Meta's own code is in no package.

It follows the equations of the paper (arXiv:2508.10104) and computes in the type of its parameters throughout. Where
Meta's package `dinov3` can be imported, the tests use its class beside this one.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Qkv(nn.Linear):
    """Queries, keys and values, whose bias a mask may cover."""

    def __init__(self, width: int, bias: bool, masked: bool) -> None:
        super().__init__(width, 3 * width, bias=bias)
        if bias and masked:
            self.register_buffer("bias_mask", torch.full((3 * width,), torch.nan))

    def forward(self, x: Tensor) -> Tensor:
        masked = hasattr(self, "bias_mask")
        return F.linear(x, self.weight, self.bias * self.bias_mask if masked else self.bias)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, a: dict[str, Any]) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Qkv(width, a["qkv_bias"], a["mask_k_bias"])
        self.proj = nn.Linear(width, width, bias=a["proj_bias"])

    def forward(self, x_BND: Tensor, angles_PA: Tensor) -> Tensor:
        batch, tokens, width = x_BND.shape
        q, k, v = (x.view(batch, tokens, self.heads, -1).transpose(1, 2) for x in self.qkv(x_BND).chunk(3, dim=-1))
        scores = turned(q, angles_PA) @ turned(k, angles_PA).mT / (width // self.heads) ** 0.5
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, tokens, width))


def turned(x_BTNK: Tensor, angles_PA: Tensor) -> Tensor:
    """The last tokens, the patches, as complex numbers x[i] + j x[i + K / 2], multiplied by exp(j angle)."""
    patches, half = angles_PA.shape
    before, x = x_BTNK.split([x_BTNK.shape[2] - patches, patches], dim=2)
    z = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles_PA), angles_PA)
    return torch.cat([before, torch.cat([z.real, z.imag], dim=-1)], dim=2)


class Gated(nn.Module):
    def __init__(self, width: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Linear(width, hidden, bias=bias), nn.Linear(width, hidden, bias=bias)
        self.w3 = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.w3(F.silu(self.w1(x)) * self.w2(x))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden, bias=bias), nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    def __init__(self, width: int, heads: int, a: dict[str, Any]) -> None:
        super().__init__()
        hidden = int(width * a["ffn_ratio"])
        gated = a["ffn_layer"] == "swiglu"
        third = int(hidden * 2 / 3)
        self.norm1, self.norm2 = norm(width, a), norm(width, a)
        self.attn = Attention(width, heads, a)
        self.mlp = Gated(width, third + -third % 8, a["ffn_bias"]) if gated else Mlp(width, hidden, a["ffn_bias"])
        scale = a["layerscale_init"] is not None
        self.ls1, self.ls2 = (Scale(width) if scale else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor, angles_PA: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x), angles_PA))
        return x + self.ls2(self.mlp(self.norm2(x)))


def norm(width: int, a: dict[str, Any]) -> nn.Module:
    epsilon = 1e-6 if a["norm_layer"] == "layernorm" else 1e-5
    return nn.RMSNorm(width, eps=epsilon) if a["norm_layer"] == "rmsnorm" else nn.LayerNorm(width, eps=epsilon)


class PatchEmbed(nn.Module):
    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)


class RopeEmbed(nn.Module):
    def __init__(self, head_dim: int, base: float) -> None:
        super().__init__()
        self.register_buffer("periods", base ** (torch.arange(head_dim // 4) / (head_dim // 4)))


class DINOv3(nn.Module):
    """Takes the arguments of Meta's DinoVisionTransformer."""

    def __init__(self, **a: Any) -> None:
        super().__init__()
        width, heads, registers = a["embed_dim"], a["num_heads"], a["n_storage_tokens"]
        self.normalize = a["pos_embed_rope_normalize_coords"]
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        if registers:
            self.storage_tokens = nn.Parameter(torch.zeros(1, registers, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        self.patch_embed = PatchEmbed(a["in_chans"], width, a["patch_size"])
        self.rope_embed = RopeEmbed(width // heads, a["pos_embed_rope_base"])
        self.blocks = nn.ModuleList(Block(width, heads, a) for _ in range(a["depth"]))
        self.norm = norm(width, a)

    def angles(self, rows: int, columns: int) -> Tensor:
        """[patches, K / 2]: those of the rows, then those of the columns."""
        divisors = {"separate": (rows, columns), "min": (min(rows, columns),) * 2, "max": (max(rows, columns),) * 2}
        periods = self.rope_embed.periods
        y, x = (
            2 * torch.pi * (2 * (torch.arange(n, dtype=periods.dtype) + 0.5) / by - 1)
            for n, by in zip((rows, columns), divisors[self.normalize], strict=True)
        )
        y_RCA, x_RCA = torch.broadcast_tensors(y[:, None, None] / periods, x[None, :, None] / periods)
        return torch.cat([y_RCA, x_RCA], dim=-1).flatten(0, 1)

    def blocks_and_tokens(self, x_BCHW: Tensor) -> list[Tensor]:
        """Tokens after every block, and after the last norm."""
        x = self.patch_embed.proj(x_BCHW)
        angles_PA = self.angles(*x.shape[2:])
        prefix = [self.cls_token, *([self.storage_tokens] if hasattr(self, "storage_tokens") else [])]
        x = torch.cat([*(one.expand(len(x), -1, -1) for one in prefix), x.flatten(2).mT], dim=1)
        found = []
        for block in self.blocks:
            x = block(x, angles_PA)
            found.append(x)
        return [*found, self.norm(x)]


def classes() -> dict[str, Any]:
    """The reference above, and Meta's own class where it is installed."""
    found: dict[str, Any] = {"reference": DINOv3}
    if find_spec("dinov3") is not None:
        found["Meta's"] = import_module("dinov3.models.vision_transformer").DinoVisionTransformer
    return found


def tokens_of(model: Any, x_BCHW: Tensor) -> list[Tensor]:
    """Tokens after every block, and after the last norm, in float64."""
    if isinstance(model, DINOv3):
        return model.blocks_and_tokens(x_BCHW)
    model.rope_embed.dtype = torch.float64  # in which it computes coordinates; its hub has float32
    depth = len(model.blocks)
    layers = [model._get_intermediate_layers_not_chunked(x_BCHW, depth)][0]
    out = model.forward_features(x_BCHW)
    return [
        *layers,
        torch.cat([out["x_norm_clstoken"][:, None], out["x_storage_tokens"], out["x_norm_patchtokens"]], 1),
    ]
