"""The Vision Transformer in PyTorch. Read it beside vit_jax/model.py: same classes, same order, same names.

Array names carry their axes: B batch, H W C image height, width, channels; h w patch grid, N M tokens (M: attended to),
D width, T heads, K head width, F hidden width of the MLP, P values of a patch. Parameters stay in the table's torch
layout and under its names, which are timm's; images are NCHW.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor as Array
from torch import nn

from vit_core.errors import InputError, unknown_name
from vit_core.masks import POSITIONS, of_layers
from vit_core.position_embeddings import axis_matrices, sincos2d
from vit_torch import arrays, stacking, traced_positions
from vit_torch.classifier import Classifier
from vit_torch.masks import Masks, draw_masks
from vit_torch.stacking import Remat
from vit_torch.stem import backbone

if TYPE_CHECKING:
    from vit_core.checkpoints.checkpoint import CheckpointConfig
    from vit_core.config import ViTConfig

Attend = Literal["plain", "fused"]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu": lambda x: F.gelu(x),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


def layer_norm(config: ViTConfig, size: int | None = None) -> nn.LayerNorm:
    return nn.LayerNorm(size or config.width, eps=config.norm_epsilon)


def drop(x: Array, site: str, masks: Masks | None) -> Array:
    """x times the mask of a site, if there is one; a mask with the batch axis alone drops whole examples."""
    if masks is None or site not in masks:
        return x
    mask = masks[site]
    return x * mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim)).to(x.dtype)


class PatchEmbed(nn.Module):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        C, D, patch = config.stem_channels, config.width, config.patch_kernel
        self.backbone = backbone(config)
        self.norm_in = layer_norm(config, C * prod(patch)) if config.patch_norms else nn.Identity()
        self.proj = nn.Conv2d(C, D, patch, stride=patch, bias=config.patch_bias)
        self.norm = layer_norm(config) if config.patch_norms else nn.Identity()

    def forward(self, x_BCHW: Array) -> Array:
        x_BCHW = self.backbone(x_BCHW)
        if self.config.patch_embedding == "conv" and not self.config.patch_norms:
            return self.proj(x_BCHW).permute(0, 2, 3, 1)
        (P, Q), (B, C, H, W) = self.config.patch_kernel, x_BCHW.shape
        x_BChPwQ = x_BCHW.reshape(B, C, H // P, P, W // Q, Q)
        x_BhwP = self.norm_in(x_BChPwQ.permute(0, 2, 4, 1, 3, 5).reshape(B, H // P, W // Q, C * P * Q))
        return self.norm(F.linear(x_BhwP, self.proj.weight.flatten(1), self.proj.bias))


class Attention(nn.Module):
    def __init__(self, config: ViTConfig, attention: Attend) -> None:
        super().__init__()
        self.attention, self.config = attention, config
        D, T, K = config.width, config.heads, config.attention_dim
        self.qkv = nn.Linear(D, 3 * T * K, bias=config.qkv_bias)
        self.q_norm = layer_norm(config, K) if config.qk_norm else nn.Identity()
        self.k_norm = layer_norm(config, K) if config.qk_norm else nn.Identity()
        self.proj = nn.Linear(T * K, D, bias=config.proj_bias)

    def forward(self, x_BND: Array, masks: Masks | None = None) -> Array:
        q_BNTK, k_BMTK, v_BMTK = self.heads(x_BND)
        out_BNTK = attend(q_BNTK, k_BMTK, v_BMTK, self.attention, masks)
        return drop(self.proj(out_BNTK.flatten(2)), "attn.proj_drop", masks)

    def heads(self, x_BND: Array) -> tuple[Array, ...]:
        T, K = self.config.heads, self.config.attention_dim
        q_BNTK, k_BMTK, v_BMTK = self.qkv(x_BND).unflatten(2, (3, T, K)).unbind(2)
        return self.q_norm(q_BNTK), self.k_norm(k_BMTK), v_BMTK

    def weights(self, x_BND: Array) -> Array:
        """Attention weights [B, T, N, M] of tokens that have passed norm1."""
        q_BNTK, k_BMTK, _ = self.heads(x_BND)
        return softmax_weights(q_BNTK, k_BMTK)


def softmax_weights(q_BNTK: Array, k_BMTK: Array) -> Array:
    scores_BTNM = torch.einsum("bntk,bmtk->btnm", q_BNTK * q_BNTK.shape[-1] ** -0.5, k_BMTK)
    # At least float32 under a low-precision model, and float64 in proofs.
    precise = torch.promote_types(scores_BTNM.dtype, torch.float32)
    return torch.softmax(scores_BTNM, dim=-1, dtype=precise).to(q_BNTK.dtype)


def attend(q_BNTK: Array, k_BMTK: Array, v_BMTK: Array, attention: Attend, masks: Masks | None = None) -> Array:
    """Scaled dot-product attention [B, N, T, K]; the fused kernel cannot be given a mask for its weights."""
    if attention == "fused" and not (masks and "attn.attn_drop" in masks):
        q_BTNK, k_BTMK, v_BTMK = q_BNTK.transpose(1, 2), k_BMTK.transpose(1, 2), v_BMTK.transpose(1, 2)
        return F.scaled_dot_product_attention(q_BTNK, k_BTMK, v_BTMK).transpose(1, 2)
    weights_BTNM = drop(softmax_weights(q_BNTK, k_BMTK), "attn.attn_drop", masks)
    return torch.einsum("btnm,bmtk->bntk", weights_BTNM, v_BMTK)


class LayerScale(nn.Module):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(config.width))

    def forward(self, x_BND: Array) -> Array:
        return x_BND * self.gamma


class Mlp(nn.Module):
    def __init__(self, config: ViTConfig, bias: bool = True) -> None:
        super().__init__()
        self.activation = config.activation
        self.fc1 = nn.Linear(config.width, config.mlp_dim, bias=bias)
        self.fc2 = nn.Linear(config.mlp_dim, config.width, bias=bias)

    def forward(self, x_BND: Array, masks: Masks | None = None) -> Array:
        x_BNF = drop(ACTIVATIONS[self.activation](self.fc1(x_BND)), "mlp.drop1", masks)
        return drop(self.fc2(x_BNF), "mlp.drop2", masks)


class SwiGLU(nn.Module):
    """An MLP gated by SiLU (arXiv:2002.05202), the gate first: DINOv2's w12, timm's SwiGLUPacked."""

    def __init__(self, config: ViTConfig, bias: bool = True) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, 2 * config.mlp_dim, bias=bias)
        self.fc2 = nn.Linear(config.mlp_dim, config.width, bias=bias)

    def forward(self, x_BND: Array, masks: Masks | None = None) -> Array:
        gate_BNF, x_BNF = self.fc1(x_BND).chunk(2, dim=2)
        x_BNF = drop(F.silu(gate_BNF) * x_BNF, "mlp.drop1", masks)
        return drop(self.fc2(x_BNF), "mlp.drop2", masks)


class Block(nn.Module):
    def __init__(self, config: ViTConfig, attention: Attend) -> None:
        super().__init__()
        self.norm1 = layer_norm(config)
        self.attn = Attention(config, attention)
        self.norm2 = layer_norm(config)
        self.mlp = (SwiGLU if config.mlp == "swiglu" else Mlp)(config, config.proj_bias)
        scaled = config.layer_scale is not None
        self.ls1 = LayerScale(config) if scaled else nn.Identity()
        self.ls2 = LayerScale(config) if scaled else nn.Identity()

    def forward(self, x_BND: Array, masks: Masks | None = None) -> Array:
        x_BND = x_BND + drop(self.ls1(self.attn(self.norm1(x_BND), masks)), "drop_path1", masks)
        x_BND = x_BND + drop(self.ls2(self.mlp(self.norm2(x_BND), masks)), "drop_path2", masks)
        return x_BND


class AttentionPool(nn.Module):
    """Attention pooling by one learned query (MAP, arXiv:2106.04560), under the names of timm's AttentionPoolLatent."""

    def __init__(self, config: ViTConfig, attention: Attend) -> None:
        super().__init__()
        self.attention, self.config = attention, config
        D = config.width
        self.latent = nn.Parameter(torch.zeros((1, 1, D)))
        self.q = nn.Linear(D, D)
        self.kv = nn.Linear(D, 2 * D)
        self.proj = nn.Linear(D, D)
        self.norm = layer_norm(config)
        self.mlp = Mlp(config)

    def forward(self, x_BND: Array) -> Array:
        (B, _, D), T = x_BND.shape, self.config.heads
        q_B1TK = self.q(torch.broadcast_to(self.latent, (B, 1, D))).unflatten(2, (T, D // T))
        k_BMTK, v_BMTK = self.kv(x_BND).unflatten(2, (2, T, D // T)).unbind(2)
        x_B1D = self.proj(attend(q_B1TK, k_BMTK, v_BMTK, self.attention).flatten(2))
        return (x_B1D + self.mlp(self.norm(x_B1D)))[:, 0]


class PreLogits(nn.Module):
    def __init__(self, config: ViTConfig, representation: int) -> None:
        super().__init__()
        self.fc = nn.Linear(config.pooled, representation)

    def forward(self, x_BD: Array) -> Array:
        return torch.tanh(self.fc(x_BD))


class ViT(Classifier):
    """Images [B, C, H, W] to logits [B, classes] (to the features it would read where num_classes is 0).

    attention: "fused" is torch's scaled_dot_product_attention, exact in float64 too; "plain" spells it out.
    remat: what the backward pass recomputes: "none"; "dots", all but products with weights; "full", each block.
    generator: where the initial values are drawn from; by default torch's own.
    checkpoint: the config of the folder it was loaded from, which `save` writes again.
    """

    def __init__(
        self,
        config: ViTConfig,
        *,
        generator: torch.Generator | None = None,
        attention: Attend = "fused",
        remat: Remat = "none",
    ) -> None:
        super().__init__()
        for what, chosen, known in (("attention", attention, get_args(Attend)), ("remat", remat, get_args(Remat))):
            if chosen not in known:
                raise unknown_name(what, chosen, known)
        self.config, self.remat = config, remat
        self.checkpoint: CheckpointConfig | None = None
        self.patch_embed = PatchEmbed(config)
        if config.class_token:
            self.cls_token = nn.Parameter(torch.zeros((1, 1, config.width)))
        if config.distillation != "none":
            self.dist_token = nn.Parameter(torch.zeros((1, 1, config.width)))
        if config.registers:
            self.reg_token = nn.Parameter(torch.zeros((1, config.registers, config.width)))
        if config.position_embedding == "learned":
            self.pos_embed = nn.Parameter(torch.zeros((1, config.positions, config.width)))
        self.norm_pre = layer_norm(config) if config.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList([Block(config, attention) for _ in range(config.depth)])
        before = config.final_norm == "before_pooling"
        self.norm = layer_norm(config) if before else nn.Identity()
        if config.pooling == "map":
            self.attn_pool = AttentionPool(config, attention)
        self.fc_norm = nn.Identity() if before else layer_norm(config)
        self.pre_logits = PreLogits(config, config.representation) if config.representation else nn.Identity()
        self.add_heads(config)
        arrays.initialize(self, generator)

    def forward(self, x_BCHW: Array, masks: Masks | None = None, *, interpolate: bool = False) -> Array:
        """Logits. In training mode with dropout or stochastic depth, masks are drawn unless they are passed in.

        interpolate: accept another resolution than the config's, with the positions resampled by its method.
        Raises InputError for images that do not fit.
        """
        return self.forward_head(self.forward_features(x_BCHW, masks, interpolate=interpolate))

    def forward_features(self, x_BCHW: Array, masks: Masks | None = None, *, interpolate: bool = False) -> Array:
        """All tokens [B, N, D] after the last block (and the final norm, if it is applied before pooling)."""
        if masks is None and self.training:
            self.check(x_BCHW, interpolate)
            h, w = x_BCHW.shape[2] // self.config.patch_size[0], x_BCHW.shape[3] // self.config.patch_size[1]
            tokens = self.config.prefix_tokens + h * w
            masks = draw_masks(self.config, len(x_BCHW), tokens=tokens, device=x_BCHW.device)
        x_BND = self.embed(x_BCHW, masks, interpolate=interpolate)
        return self.norm(stacking.run(self.blocks, x_BND, of_layers(masks), self.remat))

    def forward_head(self, x_BND: Array, pre_logits: bool = False) -> Array:
        """Logits [B, classes] from the tokens that forward_features returns; pre_logits: what the head reads."""
        x_BD = self.pre_logits(self.fc_norm(self.pool(x_BND)))
        x_BC = x_BD if pre_logits else self.head(x_BD)
        if self.config.distillation == "head":
            x_BC = (x_BC + (x_BND[:, 1] if pre_logits else self.head_dist(x_BND[:, 1]))) / 2
        return x_BC

    def forward_intermediates(self, x_BCHW: Array, *, interpolate: bool = False) -> dict[str, Array]:
        """Every stage by name: embed, blocks.i.attn (weights [B, T, N, M]), blocks.i, norm, pool, logits."""
        x_BND = self.embed(x_BCHW, interpolate=interpolate)
        stages = {"embed": x_BND}
        for i, block in enumerate(cast(list[Block], self.blocks)):
            stages[f"blocks.{i}.attn"] = block.attn.weights(block.norm1(x_BND))
            stages[f"blocks.{i}"] = x_BND = block(x_BND)
        stages["norm"] = x_BND = self.norm(x_BND)
        stages["pool"] = self.pool(x_BND)
        stages["logits"] = self.forward_head(x_BND)
        return stages

    def embed(self, x_BCHW: Array, masks: Masks | None = None, *, interpolate: bool = False) -> Array:
        """Class, distillation and register tokens (where it has them), then patch tokens with positions: [B, N, D]."""
        self.check(x_BCHW, interpolate)
        x_BhwD = self.patch_embed(x_BCHW.to(self.patch_embed.proj.weight.dtype))
        (B, h, w, D), config = x_BhwD.shape, self.config
        x_BND = x_BhwD.reshape(B, h * w, D)
        pos_1ND = self.positions((h, w) if interpolate else None, x_BND)
        prefix = [torch.broadcast_to(token_1ND, (B, *token_1ND.shape[1:])) for token_1ND in self.prefix(pos_1ND)]
        x_BND = torch.cat([*prefix, x_BND + pos_1ND[:, config.prefix_positions :]], dim=1)
        return self.norm_pre(drop(x_BND, POSITIONS, masks))

    def prefix(self, pos_1ND: Array) -> list[Array]:
        """The tokens before the patches, [1, 1, D] or [1, registers, D] each, with their positions added."""
        config = self.config
        tokens: list[Array] = []
        if config.class_token:
            tokens.append(self.cls_token)
        if config.distillation != "none":
            tokens.append(self.dist_token)
        for i in range(config.prefix_positions):
            tokens[i] = tokens[i] + pos_1ND[:, i : i + 1]
        if config.registers:
            tokens.append(self.reg_token)
        return tokens

    def positions(self, grid: tuple[int, int] | None, like: Array) -> Array:
        """Position embeddings [1, N, D] for a grid of patches (None: the own); resampled or computed for others."""
        config, traced = self.config, grid is not None and torch.compiler.is_compiling()  # then the sides are symbols
        grid = grid or config.grid
        if config.position_embedding == "none":
            return like.new_zeros((1, 1, config.width))
        if config.position_embedding != "learned":
            if traced:
                return traced_positions.sincos2d(config, grid).to(like)[None]
            return like.new_tensor(sincos2d(grid, config.width, config.sincos_formula))[None]
        pos_1ND = self.pos_embed
        if not traced and grid == config.grid:
            return pos_1ND
        # At least in float32, and rounded once, as when resized at load.
        like = like.to(torch.promote_types(like.dtype, torch.float32))
        prefix = config.prefix_positions
        pos_hwD = pos_1ND[0, prefix:].reshape(*config.grid, config.width).to(like.dtype)
        if traced:
            pos_yxD = traced_positions.resampled(config, grid, pos_hwD)
        else:
            rows, columns = (like.new_tensor(m) for m in axis_matrices(config.position_resampling, config.grid, grid))
            pos_yxD = torch.einsum("yh,xw,hwd->yxd", rows, columns, pos_hwD)
        pos_ND = pos_yxD.reshape(-1, config.width).to(pos_1ND.dtype)
        return torch.cat([pos_1ND[:, :prefix], pos_ND[None]], dim=1)

    def pool(self, x_BND: Array) -> Array:
        config = self.config
        if config.pooling in ("cls", "first"):
            return x_BND[:, 0]
        patches_BND = x_BND[:, config.prefix_tokens :]
        if config.pooling == "map":
            return self.attn_pool(patches_BND)
        mean_BD = patches_BND.mean(dim=1)
        return mean_BD if config.pooling == "gap" else torch.cat([x_BND[:, 0], mean_BD], dim=1)

    def check(self, x_BCHW: Array, interpolate: bool) -> None:
        """Raises InputError for images that the model cannot take."""
        if x_BCHW.ndim != 4:
            raise InputError(f"images have shape {list(x_BCHW.shape)}, the model takes [B, C, H, W]; for one, x[None]")
        if not x_BCHW.is_floating_point():
            raise InputError(f"images are {x_BCHW.dtype}, the model takes floats: vit_core.preprocess.normalise first")
        (_, C, H, W), config = x_BCHW.shape, self.config
        if config.channels != C:
            raise InputError(f"images have {C} channels, the model takes {config.channels} (NCHW)")
        if not interpolate and config.image_size != (H, W):
            raise InputError(f"images are {H}x{W}, the model takes {config.image_size}; resize, or interpolate=True")
        if H % config.patch_size[0] or W % config.patch_size[1]:
            raise InputError(f"images are {H}x{W}, not a multiple of the patch {config.patch_size}")
