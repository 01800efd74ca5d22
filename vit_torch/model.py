"""The Vision Transformer in PyTorch. Read it beside vit_jax/model.py: same classes, same order, same names.

Array names carry their axes: B batch; H W C image height, width, channels; P Q patch height, width; V values of a patch
(P Q C); h w patch grid; y x another grid; N M tokens (M: attended to); D width; T heads; K head width; A = T K; F
hidden width of the MLP; L classes. Parameters stay in the table's torch layout and under its names, which are timm's;
images are NCHW.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, cast, get_args

import torch
from torch import Tensor as Array
from torch import nn

from vit_core.errors import InputError, unknown_name
from vit_core.masks import POSITIONS, ROPE, of_layers
from vit_core.naflex import Patches
from vit_core.position_embeddings import axis_matrices, sincos2d
from vit_torch import arrays, naflex, relative, rope, stacking, traced_positions
from vit_torch.attention import Attention, AttentionKind, AttentionPool
from vit_torch.classifier import Classifier
from vit_torch.layers import LayerScale, drop, mean_of_heads, mean_of_tokens, norm_layer, padding_bias
from vit_torch.linear import Linear, linear
from vit_torch.masks import Masks, Positions, draw_masks
from vit_torch.mlp import block_mlp
from vit_torch.patch_kernels import resized
from vit_torch.relative import RelativeBias
from vit_torch.stacking import Remat
from vit_torch.stem import backbone

if TYPE_CHECKING:
    from vit_core.checkpoints.checkpoint import CheckpointConfig
    from vit_core.config import ViTConfig

Layer = Callable[[Array], Array]
Patch = tuple[int, int]


class PatchEmbed(nn.Module):
    """Images [B, C, H, W] to one token for each patch [B, H/P, W/Q, D]: a convolution whose stride is the patch size,
    after the ResNet of a hybrid model.

    patch_size: (height, width) of the patches, if not the config's; the kernel is then resized to it (FlexiViT,
    arXiv:2212.08013).
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        C, D, patch = config.stem_channels, config.width, config.patch_kernel
        self.backbone = backbone(config)
        self.norm_in = norm_layer(config, C * prod(patch)) if config.patch_norms else nn.Identity()
        self.proj = nn.Conv2d(C, D, patch, stride=patch, bias=config.patch_bias)
        self.norm = norm_layer(config) if config.patch_norms or config.embed_norm else nn.Identity()

    def forward(self, x_BCHW: Array, patch_size: Patch | None = None) -> Array:
        x_BCHW, config, weight_DCPQ = self.backbone(x_BCHW), self.config, self.proj.weight
        if patch_size is not None:
            weight_DCPQ = resized(weight_DCPQ, config.kernel_of(patch_size))
        elif config.patch_embedding == "conv" and not config.patch_norms:
            return self.norm(self.proj(x_BCHW).permute(0, 2, 3, 1))
        (P, Q), (B, C, H, W) = weight_DCPQ.shape[2:], x_BCHW.shape
        x_BChPwQ = x_BCHW.reshape(B, C, H // P, P, W // Q, Q)
        x_BhwV = self.norm_in(x_BChPwQ.permute(0, 2, 4, 1, 3, 5).reshape(B, H // P, W // Q, C * P * Q))
        return self.norm(linear(x_BhwV, weight_DCPQ.flatten(1), self.proj.bias))


class Block(nn.Module):
    """A transformer block: tokens [B, N, D] to tokens [B, N, D]. Attention, then MLP, each as a residual branch with a
    norm before it (arXiv:2010.11929, equations 2 and 3), or after it if branch_norm is "after"."""

    def __init__(self, config: ViTConfig, attention: AttentionKind) -> None:
        super().__init__()
        self.after = config.branch_norm == "after"
        self.norm1 = norm_layer(config)
        self.attn = Attention(config, attention)
        self.norm2 = norm_layer(config)
        self.mlp = block_mlp(config)
        scaled = config.layer_scale is not None
        self.ls1 = LayerScale(config) if scaled else nn.Identity()
        self.ls2 = LayerScale(config) if scaled else nn.Identity()

    def forward(self, x_BND: Array, masks: Masks | None = None, positions: Positions | None = None) -> Array:
        attended_BND = self.branch(self.norm1, lambda x_BND: self.attn(x_BND, masks, positions), x_BND)
        x_BND = x_BND + drop(self.ls1(attended_BND), "drop_path1", masks)
        hidden_BND = self.branch(self.norm2, lambda x_BND: self.mlp(x_BND, masks), x_BND)
        x_BND = x_BND + drop(self.ls2(hidden_BND), "drop_path2", masks)
        return x_BND

    def branch(self, norm: Layer, layer: Layer, x_BND: Array) -> Array:
        """A layer and its norm [B, N, D], before the residual connection: the norm first, or last if branch_norm is
        "after"."""
        return norm(layer(x_BND)) if self.after else layer(norm(x_BND))

    def attention_weights(self, x_BND: Array, positions: Positions) -> Array:
        """Attention weights [B, T, N, M] over the tokens that the block is given."""
        return self.attn.attention_weights(x_BND if self.after else self.norm1(x_BND), positions)


class ParallelBlock(nn.Module):
    """A block whose attention and MLP get the same normed tokens (ViT-22B, arXiv:2302.05442)."""

    def __init__(self, config: ViTConfig, attention: AttentionKind) -> None:
        super().__init__()
        self.norm1 = norm_layer(config)
        self.attn = Attention(config, attention)
        self.mlp = block_mlp(config)
        self.ls1 = LayerScale(config) if config.layer_scale is not None else nn.Identity()

    def forward(self, x_BND: Array, masks: Masks | None = None, positions: Positions | None = None) -> Array:
        normed_BND = self.norm1(x_BND)
        both_BND = self.attn(normed_BND, masks, positions) + self.mlp(normed_BND, masks)
        x_BND = x_BND + drop(self.ls1(both_BND), "drop_path1", masks)
        return x_BND

    def attention_weights(self, x_BND: Array, positions: Positions) -> Array:
        """Attention weights [B, T, N, M] over the tokens that the block is given."""
        return self.attn.attention_weights(self.norm1(x_BND), positions)


class PreLogits(nn.Module):
    """Pooled features [B, pooled] to the head's inputs [B, representation]: a linear layer and tanh, which are the
    hidden layer of ViT's pretraining head (arXiv:2010.11929, section 3.1)."""

    def __init__(self, config: ViTConfig, representation: int) -> None:
        super().__init__()
        self.fc = Linear(config.pooled, representation)

    def forward(self, x_BD: Array) -> Array:
        return torch.tanh(self.fc(x_BD))


class ViT(Classifier):
    """Images [B, C, H, W] to logits [B, classes], or to the head's inputs [B, features] if num_classes is 0.

    attention: "fused" is the device's fastest kernel (vit_torch/fused.py), exact in float64 too; "plain" computes it
    step by step.
    remat: what the backward pass recomputes: "none"; "dots", all but products with weights; "full", each block.
    generator: the generator of the initial values; by default torch's own.
    checkpoint: the config of the folder it was loaded from, which `save` writes again.
    """

    def __init__(
        self,
        config: ViTConfig,
        *,
        generator: torch.Generator | None = None,
        attention: AttentionKind = "fused",
        remat: Remat = "none",
    ) -> None:
        super().__init__()
        for what, chosen, known in (
            ("attention", attention, get_args(AttentionKind)),
            ("remat", remat, get_args(Remat)),
        ):
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
        self.norm_pre = norm_layer(config) if config.pre_norm else nn.Identity()
        if config.relative_bias_shared:
            self.shared_rel_pos = RelativeBias(config)
        block = ParallelBlock if config.parallel else Block
        self.blocks = nn.ModuleList([block(config, attention) for _ in range(config.depth)])
        self.norm = norm_layer(config) if config.final_norm == "before_pooling" else nn.Identity()
        if config.pooling == "map":
            self.attn_pool = AttentionPool(config, attention)
        self.fc_norm = norm_layer(config) if config.final_norm == "after_pooling" else nn.Identity()
        self.pre_logits = PreLogits(config, config.representation) if config.representation else nn.Identity()
        self.add_heads(config)
        arrays.initialize(self, generator)

    def forward(
        self,
        x_BCHW: Array | Patches,
        masks: Masks | None = None,
        *,
        interpolate: bool = False,
        patch_size: Patch | None = None,
        return_heads: bool = False,
    ) -> Array | list[tuple[Array, Array]]:
        """Logits. In training mode with dropout or stochastic depth, masks are drawn unless they are passed in.

        interpolate: accept another resolution than the config's; the positions are resampled by the config's method.
        patch_size: (height, width) of the patches, if not the config's: the kernel is resized as in FlexiViT
        (arXiv:2212.08013), the positions are resampled by the config's method. return_heads: return what
        `forward_heads` does, in place of logits. A batch of patches (vit_core.naflex.Patches) represents images of any
        aspect. Raises InputError for images that do not fit, and for return_heads with a batch of patches.
        """
        if isinstance(x_BCHW, Patches):
            if return_heads:
                raise InputError("return_heads: is not available for a batch of patches (vit_core.naflex.Patches)")
            return naflex.logits(self, x_BCHW, masks)
        x_BND = self.forward_features(x_BCHW, masks, interpolate=interpolate, patch_size=patch_size)
        # A flag, because DistributedDataParallel averages the gradients only of what is called through `forward`.
        return self.forward_heads(x_BND) if return_heads else self.forward_head(x_BND)

    def forward_features(
        self, x_BCHW: Array, masks: Masks | None = None, *, interpolate: bool = False, patch_size: Patch | None = None
    ) -> Array:
        """All tokens [B, N, D] after the last block (and after the final norm, if it is applied before pooling)."""
        if masks is None and self.training:
            self.check(x_BCHW, interpolate, patch_size)
            P, Q = patch_size or self.config.patch_size
            tokens = self.config.prefix_tokens + (x_BCHW.shape[2] // P) * (x_BCHW.shape[3] // Q)
            masks = draw_masks(self.config, len(x_BCHW), tokens=tokens, device=x_BCHW.device)
        x_BND, positions = self.embed(x_BCHW, masks, interpolate=interpolate, patch_size=patch_size)
        return self.norm(stacking.run(self.blocks, x_BND, of_layers(masks), positions, self.remat))

    def forward_head(self, x_BND: Array, pre_logits: bool = False, *, valid_BN: Array | None = None) -> Array:
        """Logits [B, classes] from the tokens that forward_features returns.

        pre_logits: return the head's inputs [B, features] instead. valid_BN: False for padding tokens
        (vit_core.naflex).
        """
        return mean_of_heads(self.forward_heads(x_BND, valid_BN), pre_logits)

    def forward_heads(self, x_BND: Array, valid_BN: Array | None = None) -> list[tuple[Array, Array]]:
        """(input [B, features], logits [B, classes]) of each head: one head, or two with distillation "head"."""
        x_BD = self.pre_logits(self.fc_norm(self.pool(x_BND, valid_BN)))
        heads = [(x_BD, self.head(x_BD))]
        if self.config.distillation == "head":
            heads.append((x_BND[:, 1], self.head_dist(x_BND[:, 1])))
        return heads

    def forward_intermediates(self, x_BCHW: Array, *, interpolate: bool = False) -> dict[str, Array]:
        """The output of every stage by name: embed, blocks.i and norm (tokens [B, N, D]), blocks.i.attn (attention
        weights [B, T, N, M]), pool ([B, D]; [B, 2 D] with pooling 'cls_gap'), logits."""
        x_BND, positions = self.embed(x_BCHW, interpolate=interpolate)
        stages = {"embed": x_BND}
        for i, block in enumerate(cast(list[Block], self.blocks)):
            stages[f"blocks.{i}.attn"] = block.attention_weights(x_BND, positions)
            stages[f"blocks.{i}"] = x_BND = block(x_BND, None, positions)
        stages["norm"] = x_BND = self.norm(x_BND)
        stages["pool"] = self.pool(x_BND)
        stages["logits"] = self.forward_head(x_BND)
        return stages

    def embed(
        self, x_BCHW: Array, masks: Masks | None = None, *, interpolate: bool = False, patch_size: Patch | None = None
    ) -> tuple[Array, Positions]:
        """The tokens before the first block [B, N, D]: class, distillation and register tokens (if the model has them),
        then patch tokens with positions. The second value contains the positions that the blocks need (rotary,
        relative)."""
        self.check(x_BCHW, interpolate, patch_size)
        x_BhwD = self.patch_embed(x_BCHW.to(self.patch_embed.proj.weight.dtype), patch_size)
        (B, h, w, D), config = x_BhwD.shape, self.config
        x_BND = x_BhwD.reshape(B, h * w, D)
        rope_augmentation_22, traced = (masks or {}).get(ROPE), interpolate and torch.compiler.is_compiling()
        pos_1ND = self.position_embeddings((h, w), x_BND, traced)
        prefix = [torch.broadcast_to(token_1ND, (B, *token_1ND.shape[1:])) for token_1ND in self.prefix(pos_1ND)]
        x_BND = torch.cat([*prefix, x_BND + pos_1ND[:, config.prefix_positions :]], dim=1)
        x_BND = self.norm_pre(drop(x_BND, POSITIONS, masks))
        positions = rope.positions(config, (h, w), x_BND, rope_augmentation_22, traced)
        positions |= relative.positions(config, (h, w), x_BND, traced)
        if config.relative_bias_shared:
            positions["bias"] = self.shared_rel_pos(positions)
        return x_BND, positions

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

    def position_embeddings(self, grid: tuple[int, int], like: Array, traced: bool = False) -> Array:
        """Position embeddings [1, N, D] for a grid (h, w) of patches; resampled or computed if it is not the config's.

        traced: the sides may be symbols.
        """
        config = self.config
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

    def pool(self, x_BND: Array, valid_BN: Array | None = None) -> Array:
        """The features [B, pooled] of all tokens, by the config's pooling; valid_BN: False for padding tokens."""
        config = self.config
        if config.pooling in ("cls", "first"):
            return x_BND[:, 0]
        first = 0 if config.pool_prefix else config.prefix_tokens
        pooled_BND, valid_BN = x_BND[:, first:], None if valid_BN is None else valid_BN[:, first:]
        if config.pooling == "map":
            return self.attn_pool(pooled_BND, None if valid_BN is None else padding_bias(valid_BN, x_BND.dtype))
        mean_BD = mean_of_tokens(pooled_BND, valid_BN)
        return mean_BD if config.pooling == "gap" else torch.cat([x_BND[:, 0], mean_BD], dim=1)

    def check(self, x_BCHW: Array, interpolate: bool, patch_size: Patch | None = None) -> None:
        """Raises InputError if the shape or type of the images does not fit the model."""
        if x_BCHW.ndim != 4:
            raise InputError(f"images have shape {list(x_BCHW.shape)}, the model takes [B, C, H, W]; for one, x[None]")
        if not x_BCHW.is_floating_point():
            raise InputError(f"images are {x_BCHW.dtype}, the model takes floats: vit_core.preprocess.normalize first")
        (_, C, H, W), config = x_BCHW.shape, self.config
        if config.channels != C:
            raise InputError(f"images have {C} channels, the model takes {config.channels} (NCHW)")
        if not interpolate and config.image_size != (H, W):
            raise InputError(f"images are {H}x{W}, the model takes {config.image_size}; resize, or interpolate=True")
        if patch_size is not None:
            config.kernel_of(patch_size)
        if H % (patch := patch_size or config.patch_size)[0] or W % patch[1]:
            raise InputError(f"images are {H}x{W}, not a multiple of the patch {patch}")
