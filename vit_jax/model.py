"""The Vision Transformer in Flax NNX. Read it beside vit_torch/model.py: same classes, same order, same names.

Array names carry their axes: B batch; H W C image height, width, channels; P Q patch height, width; V values of a patch
(P Q C); h w patch grid; y x another grid; N M tokens (M: attended to); D width; T heads; K head width; A = T K; F
hidden width of the MLP; L classes. Parameters stay in the table's JAX layout (kernels with the input's axes first,
heads apart); images are NHWC.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, Any, get_args

import jax.numpy as jnp
from flax import nnx
from jax import Array

from vit_core.errors import InputError, unknown_name
from vit_core.masks import POSITIONS, ROPE, of_layers
from vit_core.naflex import Patches
from vit_core.position_embeddings import axis_matrices, sincos2d
from vit_jax import arrays, naflex, relative, rope, stacking, traced_positions
from vit_jax.attention import Attention, AttentionKind, AttentionPool
from vit_jax.classifier import Classifier
from vit_jax.layers import LayerScale, conv, drop, identity, mean_of_heads, mean_of_tokens, norm_layer, padding_bias
from vit_jax.linear import linear
from vit_jax.masks import Masks, Positions
from vit_jax.mlp import block_mlp
from vit_jax.patch_kernels import resized
from vit_jax.relative import RelativeBias
from vit_jax.sharding import constrain
from vit_jax.stacking import Remat
from vit_jax.stem import backbone

if TYPE_CHECKING:
    from vit_core.checkpoints.checkpoint import CheckpointConfig
    from vit_core.config import ViTConfig

Layer = Callable[[Array], Array]
Patch = tuple[int, int]


class PatchEmbed(nnx.Module):
    """Images [B, H, W, C] to one token for each patch [B, H/P, W/Q, D]: a convolution whose stride is the patch size,
    after the ResNet of a hybrid model.

    patch_size: (height, width) of the patches, if not the config's; the kernel is then resized to it (FlexiViT,
    arXiv:2212.08013).
    """

    def __init__(self, config: ViTConfig) -> None:
        self.config = config
        C, D, patch = config.stem_channels, config.width, config.patch_kernel
        self.backbone = backbone(config)
        self.norm_in = norm_layer(config, C * prod(patch)) if config.patch_norms else identity
        self.proj = conv(C, D, patch, strides=patch, padding="VALID", use_bias=config.patch_bias)
        self.norm = norm_layer(config) if config.patch_norms or config.embed_norm else identity

    def __call__(self, x_BHWC: Array, patch_size: Patch | None = None) -> Array:
        x_BHWC, config, kernel_PQCD = self.backbone(x_BHWC), self.config, self.proj.kernel[...]
        if patch_size is not None:
            kernel_PQCD = resized(kernel_PQCD, config.kernel_of(patch_size))
        elif config.patch_embedding == "conv" and not config.patch_norms:
            return self.norm(self.proj(x_BHWC))
        (P, Q), (B, H, W, C) = kernel_PQCD.shape[:2], x_BHWC.shape
        x_BhPwQC = x_BHWC.reshape(B, H // P, P, W // Q, Q, C)
        x_BhwV = self.norm_in(x_BhPwQC.transpose(0, 1, 3, 2, 4, 5).reshape(B, H // P, W // Q, P * Q * C))
        x_BhwD = x_BhwV @ kernel_PQCD.reshape(P * Q * C, -1)
        return self.norm(x_BhwD if self.proj.bias is None else x_BhwD + self.proj.bias[...])


class Block(nnx.Module):
    """A transformer block: tokens [B, N, D] to tokens [B, N, D]. Attention, then MLP, each as a residual branch with a
    norm before it (arXiv:2010.11929, equations 2 and 3), or after it if branch_norm is "after"."""

    def __init__(self, config: ViTConfig, attention: AttentionKind) -> None:
        self.after = config.branch_norm == "after"
        self.norm1 = norm_layer(config)
        self.attn = Attention(config, attention)
        self.norm2 = norm_layer(config)
        self.mlp = block_mlp(config)
        scaled = config.layer_scale is not None
        self.ls1 = LayerScale(config) if scaled else identity
        self.ls2 = LayerScale(config) if scaled else identity

    def __call__(self, x_BND: Array, masks: Masks | None = None, positions: Positions | None = None) -> Array:
        attended_BND = self.branch(self.norm1, lambda x_BND: self.attn(x_BND, masks, positions), x_BND)
        x_BND = x_BND + drop(self.ls1(attended_BND), "drop_path1", masks)
        hidden_BND = self.branch(self.norm2, lambda x_BND: self.mlp(x_BND, masks), x_BND)
        x_BND = x_BND + drop(self.ls2(hidden_BND), "drop_path2", masks)
        return constrain(x_BND, "batch tokens width")

    def branch(self, norm: Layer, layer: Layer, x_BND: Array) -> Array:
        """A layer and its norm [B, N, D], before the residual connection: the norm first, or last if branch_norm is
        "after"."""
        return norm(layer(x_BND)) if self.after else layer(norm(x_BND))

    def attention_weights(self, x_BND: Array, positions: Positions) -> Array:
        """Attention weights [B, T, N, M] over the tokens that the block is given."""
        return self.attn.attention_weights(x_BND if self.after else self.norm1(x_BND), positions)


class ParallelBlock(nnx.Module):
    """A block whose attention and MLP get the same normed tokens (ViT-22B, arXiv:2302.05442)."""

    def __init__(self, config: ViTConfig, attention: AttentionKind) -> None:
        self.norm1 = norm_layer(config)
        self.attn = Attention(config, attention)
        self.mlp = block_mlp(config)
        self.ls1 = LayerScale(config) if config.layer_scale is not None else identity

    def __call__(self, x_BND: Array, masks: Masks | None = None, positions: Positions | None = None) -> Array:
        normed_BND = self.norm1(x_BND)
        both_BND = self.attn(normed_BND, masks, positions) + self.mlp(normed_BND, masks)
        x_BND = x_BND + drop(self.ls1(both_BND), "drop_path1", masks)
        return constrain(x_BND, "batch tokens width")

    def attention_weights(self, x_BND: Array, positions: Positions) -> Array:
        """Attention weights [B, T, N, M] over the tokens that the block is given."""
        return self.attn.attention_weights(self.norm1(x_BND), positions)


class PreLogits(nnx.Module):
    """Pooled features [B, pooled] to the head's inputs [B, representation]: a linear layer and tanh, which are the
    hidden layer of ViT's pretraining head (arXiv:2010.11929, section 3.1)."""

    def __init__(self, config: ViTConfig, representation: int) -> None:
        self.fc = linear(config.pooled, representation)

    def __call__(self, x_BD: Array) -> Array:
        return jnp.tanh(self.fc(x_BD))


class ViT(Classifier):
    """Images [B, H, W, C] to logits [B, classes], or to the head's inputs [B, features] if num_classes is 0.

    attention: "plain" is exact in every dtype and is fused by XLA itself; "fused" is the devices' own kernel in 16 bits
    (vit_jax.fused), otherwise jax.nn.dot_product_attention, whose softmax is float32 even in float64.
    scan: keep the blocks' parameters stacked and run them by jax.lax.scan, which compiles one block instead of all.
    remat: what the backward pass recomputes: "none", no product (scanned layers recompute element-wise operations);
    "dots", all but products with weights; "full", each block.
    checkpoint: the config of the folder it was loaded from, which `save` writes again.
    """

    def __init__(
        self,
        config: ViTConfig,
        *,
        rngs: nnx.Rngs,
        attention: AttentionKind = "plain",
        scan: bool = False,
        remat: Remat = "none",
    ) -> None:
        for what, chosen, known in (
            ("attention", attention, get_args(AttentionKind)),
            ("remat", remat, get_args(Remat)),
        ):
            if chosen not in known:
                raise unknown_name(what, chosen, known)
        self.config, self.scan, self.remat = config, scan, remat
        self.checkpoint: CheckpointConfig | None = None
        self.patch_embed = PatchEmbed(config)
        if config.class_token:
            self.cls_token = nnx.Param(jnp.zeros((1, 1, config.width)))
        if config.distillation != "none":
            self.dist_token = nnx.Param(jnp.zeros((1, 1, config.width)))
        if config.registers:
            self.reg_token = nnx.Param(jnp.zeros((1, config.registers, config.width)))
        if config.position_embedding == "learned":
            self.pos_embed = nnx.Param(jnp.zeros((1, config.positions, config.width)))
        self.norm_pre = norm_layer(config) if config.pre_norm else identity
        if config.relative_bias_shared:
            self.shared_rel_pos = RelativeBias(config)
        block = ParallelBlock if config.parallel else Block
        blocks = nnx.List([block(config, attention) for _ in range(config.depth)])
        self.blocks = stacking.stack(blocks) if scan else blocks
        self.norm = norm_layer(config) if config.final_norm == "before_pooling" else identity
        if config.pooling == "map":
            self.attn_pool = AttentionPool(config, attention)
        self.fc_norm = norm_layer(config) if config.final_norm == "after_pooling" else identity
        self.pre_logits = PreLogits(config, config.representation) if config.representation else identity
        self.add_heads(config)
        arrays.initialize(self, rngs.params())

    def __call__(
        self,
        x_BHWC: Array | Patches,
        masks: Masks | None = None,
        *,
        interpolate: bool = False,
        patch_size: Patch | None = None,
    ) -> Array:
        """Logits. With masks (from `draw_masks`, or others) as in training, without masks as in evaluation.

        interpolate: accept another resolution than the config's; the positions are resampled by the config's method.
        patch_size: (height, width) of the patches, if not the config's: the kernel is resized as in FlexiViT
        (arXiv:2212.08013), the positions are resampled by the config's method. Raises InputError for images that do not
        fit. A batch of patches (vit_core.naflex.Patches) represents images of any aspect.
        """
        if isinstance(x_BHWC, Patches):
            return naflex.logits(self, x_BHWC, masks)
        return self.forward_head(self.forward_features(x_BHWC, masks, interpolate=interpolate, patch_size=patch_size))

    def forward_features(
        self, x_BHWC: Array, masks: Masks | None = None, *, interpolate: bool = False, patch_size: Patch | None = None
    ) -> Array:
        """All tokens [B, N, D] after the last block (and after the final norm, if it is applied before pooling)."""
        x_BND, positions = self.embed(x_BHWC, masks, interpolate=interpolate, patch_size=patch_size)
        return self.norm(stacking.run(self.blocks, x_BND, of_layers(masks), positions, self.remat))

    def forward_head(self, x_BND: Array, pre_logits: bool = False, *, valid_BN: Array | None = None) -> Array:
        """Logits [B, classes] from the tokens that forward_features returns.

        pre_logits: return the head's inputs [B, features] instead. valid_BN: False for padding tokens
        (vit_core.naflex).
        """
        return constrain(mean_of_heads(self.forward_heads(x_BND, valid_BN), pre_logits), "batch classes")

    def forward_heads(self, x_BND: Array, valid_BN: Array | None = None) -> list[tuple[Array, Array]]:
        """(input [B, features], logits [B, classes]) of each head: one head, or two with distillation "head"."""
        x_BD = self.pre_logits(self.fc_norm(constrain(self.pool(x_BND, valid_BN), "batch width")))
        heads = [(x_BD, self.head(x_BD))]
        if self.config.distillation == "head":
            heads.append((x_BND[:, 1], self.head_dist(x_BND[:, 1])))
        return heads

    def forward_intermediates(self, x_BHWC: Array, *, interpolate: bool = False) -> dict[str, Array]:
        """The output of every stage by name: embed, blocks.i and norm (tokens [B, N, D]), blocks.i.attn (attention
        weights [B, T, N, M]), pool ([B, D]; [B, 2 D] with pooling 'cls_gap'), logits."""
        x_BND, positions = self.embed(x_BHWC, interpolate=interpolate)
        stages = {"embed": x_BND}
        for i, block in enumerate(stacking.unstack(self.blocks, self.config.depth)):
            stages[f"blocks.{i}.attn"] = block.attention_weights(x_BND, positions)
            stages[f"blocks.{i}"] = x_BND = block(x_BND, None, positions)
        stages["norm"] = x_BND = self.norm(x_BND)
        stages["pool"] = self.pool(x_BND)
        stages["logits"] = self.forward_head(x_BND)
        return stages

    def embed(
        self, x_BHWC: Array, masks: Masks | None = None, *, interpolate: bool = False, patch_size: Patch | None = None
    ) -> tuple[Array, Positions]:
        """The tokens before the first block [B, N, D]: class, distillation and register tokens (if the model has them),
        then patch tokens with positions. The second value contains the positions that the blocks need (rotary,
        relative)."""
        self.check(x_BHWC, interpolate, patch_size)
        x_BhwD = self.patch_embed(x_BHWC.astype(self.patch_embed.proj.kernel.dtype), patch_size)
        (B, h, w, D), config = x_BhwD.shape, self.config
        x_BND = constrain(x_BhwD.reshape(B, h * w, D), "batch tokens width")
        rope_augmentation_22, traced = (masks or {}).get(ROPE), traced_positions.is_traced((h, w))
        pos_1ND = self.position_embeddings((h, w), x_BND.dtype, traced)
        prefix = [jnp.broadcast_to(token_1ND, (B, *token_1ND.shape[1:])) for token_1ND in self.prefix(pos_1ND)]
        x_BND = jnp.concatenate([*prefix, x_BND + pos_1ND[:, config.prefix_positions :]], axis=1)
        x_BND = self.norm_pre(constrain(drop(x_BND, POSITIONS, masks), "batch tokens width"))
        dtype = x_BND.dtype
        positions = rope.positions(config, (h, w), dtype, rope_augmentation_22, traced)
        positions |= relative.positions(config, (h, w), dtype, traced)
        if config.relative_bias_shared:
            positions["bias"] = self.shared_rel_pos(positions)
        return x_BND, positions

    def prefix(self, pos_1ND: Array) -> list[Array]:
        """The tokens before the patches, [1, 1, D] or [1, registers, D] each, with their positions added."""
        config = self.config
        tokens: list[Array] = []
        if config.class_token:
            tokens.append(self.cls_token[...])
        if config.distillation != "none":
            tokens.append(self.dist_token[...])
        for i in range(config.prefix_positions):
            tokens[i] = tokens[i] + pos_1ND[:, i : i + 1]
        if config.registers:
            tokens.append(self.reg_token[...])
        return tokens

    def position_embeddings(self, grid: tuple[int, int], dtype: Any, traced: bool = False) -> Array:
        """Position embeddings [1, N, D] for a grid (h, w) of patches; resampled or computed if it is not the config's.

        traced: the sides may be symbols.
        """
        config = self.config
        if config.position_embedding == "none":
            return jnp.zeros((1, 1, config.width), dtype)
        if config.position_embedding != "learned":
            if traced:
                return traced_positions.sincos2d(config, grid).astype(dtype)[None]
            return jnp.asarray(sincos2d(grid, config.width, config.sincos_formula), dtype)[None]
        pos_1ND = self.pos_embed[...]
        if not traced and grid == config.grid:
            return pos_1ND
        # At least in float32, and rounded once, as when resized at load.
        precise, prefix = jnp.promote_types(dtype, jnp.float32), config.prefix_positions
        pos_hwD = pos_1ND[0, prefix:].reshape(*config.grid, config.width).astype(precise)
        if traced:
            pos_yxD = traced_positions.resampled(config, grid, pos_hwD)
        else:
            matrices = axis_matrices(config.position_resampling, config.grid, grid)
            rows, columns = (jnp.asarray(matrix, precise) for matrix in matrices)
            pos_yxD = jnp.einsum("yh,xw,hwd->yxd", rows, columns, pos_hwD)
        pos_ND = pos_yxD.reshape(-1, config.width).astype(dtype)
        return jnp.concatenate([pos_1ND[:, :prefix], pos_ND[None]], axis=1)

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
        return mean_BD if config.pooling == "gap" else jnp.concatenate([x_BND[:, 0], mean_BD], axis=1)

    def check(self, x_BHWC: Array, interpolate: bool, patch_size: Patch | None = None) -> None:
        """Raises InputError if the shape or type of the images does not fit the model."""
        if x_BHWC.ndim != 4:
            raise InputError(f"images have shape {list(x_BHWC.shape)}, the model takes [B, H, W, C]; for one, x[None]")
        if not jnp.issubdtype(x_BHWC.dtype, jnp.floating):
            raise InputError(f"images are {x_BHWC.dtype}, the model takes floats: vit_core.preprocess.normalize first")
        (_, H, W, C), config = x_BHWC.shape, self.config
        if config.channels != C:
            raise InputError(f"images have {C} channels, the model takes {config.channels} (NHWC)")
        if not interpolate and config.image_size != (H, W):
            raise InputError(f"images are {H}x{W}, the model takes {config.image_size}; resize, or interpolate=True")
        if patch_size is not None:
            config.kernel_of(patch_size)
        if H % (patch := patch_size or config.patch_size)[0] or W % patch[1]:
            raise InputError(f"images are {H}x{W}, not a multiple of the patch {patch}")
