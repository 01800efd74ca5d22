"""The Vision Transformer in Flax NNX. Read it beside vit_torch/model.py: same classes, same order, same names.

Array names carry their axes: B batch, H W C image height, width, channels; h w patch grid, N M tokens (M: attended to),
D width, T heads, K head width, F hidden width of the MLP, P values of a patch. Parameters stay in the table's JAX
layout (kernels with the input's axes first, heads apart); images are NHWC.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from vit_core.errors import InputError, unknown_name
from vit_core.masks import POSITIONS, of_layers
from vit_core.position_embeddings import axis_matrices, sincos2d
from vit_jax import arrays, stacking, traced_positions
from vit_jax.classifier import Classifier
from vit_jax.layers import LayerNorm, conv, fused_attention, linear, to_heads, to_width
from vit_jax.sharding import constrain
from vit_jax.stacking import Masks, Remat
from vit_jax.stem import backbone, identity

if TYPE_CHECKING:
    from vit_core.checkpoints.checkpoint import CheckpointConfig
    from vit_core.config import ViTConfig

Attend = Literal["plain", "fused"]


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


def layer_norm(config: ViTConfig, size: int | None = None) -> LayerNorm:
    return LayerNorm(size or config.width, config.norm_epsilon)


def drop(x: Array, site: str, masks: Masks | None) -> Array:
    """x times the mask of a site, if there is one; a mask with the batch axis alone drops whole examples."""
    if masks is None or site not in masks:
        return x
    mask = masks[site]
    return x * mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim)).astype(x.dtype)


class PatchEmbed(nnx.Module):
    def __init__(self, config: ViTConfig) -> None:
        self.config = config
        C, D, patch = config.stem_channels, config.width, config.patch_kernel
        self.backbone = backbone(config)
        self.norm_in = layer_norm(config, C * prod(patch)) if config.patch_norms else identity
        self.proj = conv(C, D, patch, strides=patch, padding="VALID", use_bias=config.patch_bias)
        self.norm = layer_norm(config) if config.patch_norms else identity

    def __call__(self, x_BHWC: Array) -> Array:
        x_BHWC = self.backbone(x_BHWC)
        if self.config.patch_embedding == "conv" and not self.config.patch_norms:
            return self.proj(x_BHWC)
        (P, Q), (B, H, W, C) = self.config.patch_kernel, x_BHWC.shape
        x_BhPwQC = x_BHWC.reshape(B, H // P, P, W // Q, Q, C)
        x_BhwP = self.norm_in(x_BhPwQC.transpose(0, 1, 3, 2, 4, 5).reshape(B, H // P, W // Q, P * Q * C))
        x_BhwD = x_BhwP @ self.proj.kernel.reshape(P * Q * C, -1)
        return self.norm(x_BhwD if self.proj.bias is None else x_BhwD + self.proj.bias[...])


class Attention(nnx.Module):
    def __init__(self, config: ViTConfig, attention: Attend) -> None:
        self.attention = attention
        D, T, K = config.width, config.heads, config.attention_dim
        self.qkv = linear(D, (3, T, K), use_bias=config.qkv_bias)
        self.q_norm = layer_norm(config, K) if config.qk_norm else identity
        self.k_norm = layer_norm(config, K) if config.qk_norm else identity
        self.proj = linear((T, K), D, axis=(-2, -1), use_bias=config.proj_bias)

    def __call__(self, x_BND: Array, masks: Masks | None = None) -> Array:
        q_BNTK, k_BMTK, v_BMTK = self.heads(x_BND)
        out_BNTK = attend(q_BNTK, k_BMTK, v_BMTK, self.attention, masks)
        return drop(to_width(self.proj, out_BNTK.reshape(*x_BND.shape[:2], -1), "heads"), "attn.proj_drop", masks)

    def heads(self, x_BND: Array) -> tuple[Array, ...]:
        q_BNTK, k_BMTK, v_BMTK = to_heads(self.qkv, x_BND)
        return self.q_norm(q_BNTK), self.k_norm(k_BMTK), v_BMTK

    def weights(self, x_BND: Array) -> Array:
        """Attention weights [B, T, N, M] of tokens that have passed norm1."""
        q_BNTK, k_BMTK, _ = self.heads(x_BND)
        return softmax_weights(q_BNTK, k_BMTK)


def softmax_weights(q_BNTK: Array, k_BMTK: Array) -> Array:
    powers_BTNM, sums_BTN1 = softmax_powers(q_BNTK, k_BMTK)
    return (powers_BTNM / sums_BTN1).astype(q_BNTK.dtype)


def softmax_powers(q_BNTK: Array, k_BMTK: Array) -> tuple[Array, Array]:
    scores_BTNM = jnp.einsum("bntk,bmtk->btnm", q_BNTK * q_BNTK.shape[-1] ** -0.5, k_BMTK)
    # At least float32 under a low-precision model, and float64 (which jax.nn.dot_product_attention lacks) in proofs.
    scores_BTNM = scores_BTNM.astype(jnp.promote_types(scores_BTNM.dtype, jnp.float32))
    powers_BTNM = jnp.exp(scores_BTNM - jax.lax.stop_gradient(scores_BTNM.max(axis=-1, keepdims=True)))
    return powers_BTNM, powers_BTNM.sum(axis=-1, keepdims=True)


def attend(q_BNTK: Array, k_BMTK: Array, v_BMTK: Array, attention: Attend, masks: Masks | None = None) -> Array:
    """Scaled dot-product attention [B, N, T, K]; the fused kernel cannot be given a mask for its weights."""
    if attention == "fused" and not (masks and "attn.attn_drop" in masks):
        return fused_attention(q_BNTK, k_BMTK, v_BMTK)
    powers_BTNM, sums_BTN1 = softmax_powers(q_BNTK, k_BMTK)
    powers_BTNM = drop(powers_BTNM.astype(v_BMTK.dtype), "attn.attn_drop", masks)
    # Divided after the product, which has fewer columns than there are scores: there is less to divide.
    out_BNTK = jnp.einsum("btnm,bmtk->bntk", powers_BTNM, v_BMTK) / sums_BTN1.swapaxes(1, 2)
    return out_BNTK.astype(v_BMTK.dtype)


class LayerScale(nnx.Module):
    def __init__(self, config: ViTConfig) -> None:
        self.gamma = nnx.Param(jnp.zeros(config.width))

    def __call__(self, x_BND: Array) -> Array:
        return x_BND * self.gamma[...]


class Mlp(nnx.Module):
    def __init__(self, config: ViTConfig, bias: bool = True) -> None:
        self.activation = config.activation
        self.fc1 = linear(config.width, config.mlp_dim, use_bias=bias)
        self.fc2 = linear(config.mlp_dim, config.width, use_bias=bias)

    def __call__(self, x_BND: Array, masks: Masks | None = None) -> Array:
        x_BNF = constrain(self.fc1(x_BND), "batch tokens mlp")
        x_BNF = drop(ACTIVATIONS[self.activation](x_BNF), "mlp.drop1", masks)
        return drop(to_width(self.fc2, x_BNF, "mlp"), "mlp.drop2", masks)


class SwiGLU(nnx.Module):
    """An MLP gated by SiLU (arXiv:2002.05202), the gate first: DINOv2's w12, timm's SwiGLUPacked."""

    def __init__(self, config: ViTConfig, bias: bool = True) -> None:
        self.fc1 = linear(config.width, (2, config.mlp_dim), use_bias=bias)
        self.fc2 = linear(config.mlp_dim, config.width, use_bias=bias)

    def __call__(self, x_BND: Array, masks: Masks | None = None) -> Array:
        gate_BNF, x_BNF = jnp.moveaxis(constrain(self.fc1(x_BND), "batch tokens gate mlp"), 2, 0)
        x_BNF = drop(jax.nn.silu(gate_BNF) * x_BNF, "mlp.drop1", masks)
        return drop(to_width(self.fc2, x_BNF, "mlp"), "mlp.drop2", masks)


class Block(nnx.Module):
    def __init__(self, config: ViTConfig, attention: Attend) -> None:
        self.norm1 = layer_norm(config)
        self.attn = Attention(config, attention)
        self.norm2 = layer_norm(config)
        self.mlp = (SwiGLU if config.mlp == "swiglu" else Mlp)(config, config.proj_bias)
        scaled = config.layer_scale is not None
        self.ls1 = LayerScale(config) if scaled else identity
        self.ls2 = LayerScale(config) if scaled else identity

    def __call__(self, x_BND: Array, masks: Masks | None = None) -> Array:
        x_BND = x_BND + drop(self.ls1(self.attn(self.norm1(x_BND), masks)), "drop_path1", masks)
        x_BND = x_BND + drop(self.ls2(self.mlp(self.norm2(x_BND), masks)), "drop_path2", masks)
        return constrain(x_BND, "batch tokens width")


class AttentionPool(nnx.Module):
    """Attention pooling by one learned query (MAP, arXiv:2106.04560), under the names of timm's AttentionPoolLatent."""

    def __init__(self, config: ViTConfig, attention: Attend) -> None:
        self.attention = attention
        D, T, K = config.width, config.heads, config.width // config.heads
        self.latent = nnx.Param(jnp.zeros((1, 1, D)))
        self.q = linear(D, (T, K))
        self.kv = linear(D, (2, T, K))
        self.proj = linear((T, K), D, axis=(-2, -1))
        self.norm = layer_norm(config)
        self.mlp = Mlp(config)

    def __call__(self, x_BND: Array) -> Array:
        B, _, D = x_BND.shape
        q_B1TK = self.q(jnp.broadcast_to(self.latent[...], (B, 1, D)))
        k_BMTK, v_BMTK = jnp.moveaxis(self.kv(x_BND), 2, 0)
        x_B1D = self.proj(attend(q_B1TK, k_BMTK, v_BMTK, self.attention))
        return (x_B1D + self.mlp(self.norm(x_B1D)))[:, 0]


class PreLogits(nnx.Module):
    def __init__(self, config: ViTConfig, representation: int) -> None:
        self.fc = linear(config.pooled, representation)

    def __call__(self, x_BD: Array) -> Array:
        return jnp.tanh(self.fc(x_BD))


class ViT(Classifier):
    """Images [B, H, W, C] to logits [B, classes] (to the features it would read where num_classes is 0).

    attention: "plain" is exact in every dtype and what XLA fuses itself; "fused" is jax.nn.dot_product_attention, on
        GPUs in 16 bits by cuDNN's kernel; its softmax is float32 even in float64.
    scan: keep the blocks' parameters stacked and run them by jax.lax.scan, which compiles one block instead of all.
    remat: what the backward pass recomputes: "none"; "dots", all but products with weights; "full", each block.
    checkpoint: the config of the folder it was loaded from, which `save` writes again.
    """

    def __init__(
        self,
        config: ViTConfig,
        *,
        rngs: nnx.Rngs,
        attention: Attend = "plain",
        scan: bool = False,
        remat: Remat = "none",
    ) -> None:
        for what, chosen, known in (("attention", attention, get_args(Attend)), ("remat", remat, get_args(Remat))):
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
        self.norm_pre = layer_norm(config) if config.pre_norm else identity
        blocks = nnx.List([Block(config, attention) for _ in range(config.depth)])
        self.blocks = stacking.stack(blocks) if scan else blocks
        before = config.final_norm == "before_pooling"
        self.norm = layer_norm(config) if before else identity
        if config.pooling == "map":
            self.attn_pool = AttentionPool(config, attention)
        self.fc_norm = identity if before else layer_norm(config)
        self.pre_logits = PreLogits(config, config.representation) if config.representation else identity
        self.add_heads(config)
        arrays.initialize(self, rngs.params())

    def __call__(self, x_BHWC: Array, masks: Masks | None = None, *, interpolate: bool = False) -> Array:
        """Logits. With masks (`draw_masks`, or one's own) as in training, without as in evaluation.

        interpolate: accept another resolution than the config's, with the positions resampled by its method.
        Raises InputError for images that do not fit.
        """
        return self.forward_head(self.forward_features(x_BHWC, masks, interpolate=interpolate))

    def forward_features(self, x_BHWC: Array, masks: Masks | None = None, *, interpolate: bool = False) -> Array:
        """All tokens [B, N, D] after the last block (and the final norm, if it is applied before pooling)."""
        x_BND = self.embed(x_BHWC, masks, interpolate=interpolate)
        return self.norm(stacking.run(self.blocks, x_BND, of_layers(masks), self.remat))

    def forward_head(self, x_BND: Array, pre_logits: bool = False) -> Array:
        """Logits [B, classes] from the tokens that forward_features returns; pre_logits: what the head reads."""
        x_BD = self.pre_logits(self.fc_norm(constrain(self.pool(x_BND), "batch width")))
        x_BC = x_BD if pre_logits else self.head(x_BD)
        if self.config.distillation == "head":
            x_BC = (x_BC + (x_BND[:, 1] if pre_logits else self.head_dist(x_BND[:, 1]))) / 2
        return constrain(x_BC, "batch classes")

    def forward_intermediates(self, x_BHWC: Array, *, interpolate: bool = False) -> dict[str, Array]:
        """Every stage by name: embed, blocks.i.attn (weights [B, T, N, M]), blocks.i, norm, pool, logits."""
        x_BND = self.embed(x_BHWC, interpolate=interpolate)
        stages = {"embed": x_BND}
        for i, block in enumerate(stacking.unstack(self.blocks, self.config.depth)):
            stages[f"blocks.{i}.attn"] = block.attn.weights(block.norm1(x_BND))
            stages[f"blocks.{i}"] = x_BND = block(x_BND)
        stages["norm"] = x_BND = self.norm(x_BND)
        stages["pool"] = self.pool(x_BND)
        stages["logits"] = self.forward_head(x_BND)
        return stages

    def embed(self, x_BHWC: Array, masks: Masks | None = None, *, interpolate: bool = False) -> Array:
        """Class, distillation and register tokens (where it has them), then patch tokens with positions: [B, N, D]."""
        self.check(x_BHWC, interpolate)
        x_BhwD = self.patch_embed(x_BHWC.astype(self.patch_embed.proj.kernel.dtype))
        (B, h, w, D), config = x_BhwD.shape, self.config
        x_BND = constrain(x_BhwD.reshape(B, h * w, D), "batch tokens width")
        pos_1ND = self.positions((h, w), x_BND.dtype)
        prefix = [jnp.broadcast_to(token_1ND, (B, *token_1ND.shape[1:])) for token_1ND in self.prefix(pos_1ND)]
        x_BND = jnp.concatenate([*prefix, x_BND + pos_1ND[:, config.prefix_positions :]], axis=1)
        return self.norm_pre(constrain(drop(x_BND, POSITIONS, masks), "batch tokens width"))

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

    def positions(self, grid: tuple[int, int], dtype: Any) -> Array:
        """Position embeddings [1, N, D] for a grid of patches, resampled or computed anew where it is not the own."""
        config = self.config
        if config.position_embedding == "none":
            return jnp.zeros((1, 1, config.width), dtype)
        traced = traced_positions.is_traced(grid)
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

    def pool(self, x_BND: Array) -> Array:
        config = self.config
        if config.pooling in ("cls", "first"):
            return x_BND[:, 0]
        patches_BND = x_BND[:, config.prefix_tokens :]
        if config.pooling == "map":
            return self.attn_pool(patches_BND)
        mean_BD = patches_BND.mean(axis=1)
        return mean_BD if config.pooling == "gap" else jnp.concatenate([x_BND[:, 0], mean_BD], axis=1)

    def check(self, x_BHWC: Array, interpolate: bool) -> None:
        """Raises InputError for images that the model cannot take."""
        if x_BHWC.ndim != 4:
            raise InputError(f"images have shape {list(x_BHWC.shape)}, the model takes [B, H, W, C]; for one, x[None]")
        if not jnp.issubdtype(x_BHWC.dtype, jnp.floating):
            raise InputError(f"images are {x_BHWC.dtype}, the model takes floats: vit_core.preprocess.normalise first")
        (_, H, W, C), config = x_BHWC.shape, self.config
        if config.channels != C:
            raise InputError(f"images have {C} channels, the model takes {config.channels} (NHWC)")
        if not interpolate and config.image_size != (H, W):
            raise InputError(f"images are {H}x{W}, the model takes {config.image_size}; resize, or interpolate=True")
        if H % config.patch_size[0] or W % config.patch_size[1]:
            raise InputError(f"images are {H}x{W}, not a multiple of the patch {config.patch_size}")
