"""The one table of parameters: for a config, every parameter once, in the order in which the network computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from math import prod, sqrt
from types import MappingProxyType
from typing import TYPE_CHECKING

from vit_core.parameters.row import Initializer, Parameter, axes_of
from vit_core.relative_positions import table_rows

if TYPE_CHECKING:
    from vit_core.config import ViTConfig
    from vit_core.masked_autoencoder import MaskedAutoencoder


@lru_cache(maxsize=64)
def parameters(config: ViTConfig, mae: MaskedAutoencoder | None = None) -> Mapping[str, Parameter]:
    """The table of a config: canonical name -> row, in the order in which the network computes; read-only.

    mae: the masked autoencoder that the model is pretrained with; the rows of its decoder follow those of the model,
    and their names begin with DECODER.
    """
    table = _Table(config)
    c = config
    _patch_embed(table, c)
    if c.class_token:
        table.tokens("cls_token", "one_b", ZEROS)
    if c.distillation != "none":
        table.tokens("dist_token", "one_b", Initializer("normal", 0.02))  # DeiT's
    if c.registers:
        table.tokens("reg_token", "registers", Initializer("normal", 1e-6))  # DINOv2's
    if c.position_embedding == "learned":
        table.add(
            "pos_embed",
            "one_a positions width",
            None,
            "one_a positions width",
            init=Initializer("normal", 0.02),
            matrix="positions width",
            decay=False,
        )
    if c.pre_norm:
        table.norm("norm_pre")
    if c.relative_bias_shared:
        _relative_bias(table, c, "shared_rel_pos")
    for layer in range(c.depth):
        table.enter(layer)
        _block(table, c)
    table.enter(None)
    if c.final_norm == "before_pooling":
        table.norm("norm")
    if c.pooling == "map":
        _attention_pool(table, c)
    if c.final_norm == "after_pooling":
        table.norm("fc_norm")
    features = "pooled" if c.pooling == "cls_gap" else "width"
    if c.representation:
        table.linear("pre_logits.fc", ["representation"], [features], init=_lecun_normal(c.pooled))
        table.bias("pre_logits.fc", "representation")
        features = "representation"
    for head in ("head", "head_dist") if c.distillation == "head" else ("head",):
        if c.num_classes:
            table.linear(head, ["classes"], [features], init=ZEROS)
            if c.head_bias:
                table.bias(head, "classes", init=Initializer("constant", c.head_bias_init))
    return MappingProxyType(table.rows | (_decoder(c, mae) if mae else {}))


def count(config: ViTConfig) -> int:
    """Number of parameters of a model with this config, all elements counted."""
    return sum(row.size for row in parameters(config).values())


DECODER = "decoder."
"""Beginning of the names of the parameters of a masked autoencoder's decoder."""
ZEROS = Initializer("constant", 0.0)
ONES = Initializer("constant", 1.0)


def _xavier_uniform(fan_in: int, fan_out: int) -> Initializer:
    return Initializer("uniform", sqrt(6 / (fan_in + fan_out)))


def _lecun_normal(fan_in: int) -> Initializer:
    """Flax's default: variance 1 / fan_in after truncation at two standard deviations, hence the constant."""
    return Initializer("truncated_normal", sqrt(1 / fan_in) / 0.87962566103423978)


def _patch_embed(table: _Table, c: ViTConfig) -> None:
    patch = "(channels patch_height patch_width)"
    if c.stem_layers is not None:
        _stem(table, c, c.stem_layers)
    if c.patch_norms:
        table.norm("patch_embed.norm_in", patch, "(patch_height patch_width channels)")
    table.add(
        "patch_embed.proj.weight",
        "width channels patch_height patch_width",
        "kernel",
        "patch_height patch_width channels width",
        init=_lecun_normal(c.stem_channels * prod(c.patch_kernel)),
        matrix=f"width {patch}",
    )
    if c.patch_bias:
        table.bias("patch_embed.proj", "width")
    if c.patch_norms or c.embed_norm:
        table.norm("patch_embed.norm")


def _stem(table: _Table, c: ViTConfig, layers: tuple[int, ...]) -> None:
    """The ResNet of Google's hybrids with the names of timm's ResNetV2 (of its stem, if there is no stage)."""
    root, into = "patch_embed.backbone.stem." if layers else "patch_embed.backbone.", c.stem_width
    table.convolution(f"{root}conv", f"{root}norm", 7, c.channels, into)
    for stage, units in enumerate(layers):
        inner, out = c.stem_width * 2**stage, c.stem_width * 4 * 2**stage
        for i in range(units):
            unit = f"patch_embed.backbone.stages.{stage}.blocks.{i}."
            if i == 0:
                table.convolution(f"{unit}downsample.conv", f"{unit}downsample.norm", 1, into, out)
            table.convolution(f"{unit}conv1", f"{unit}norm1", 1, into, inner)
            table.convolution(f"{unit}conv2", f"{unit}norm2", 3, inner, inner)
            table.convolution(f"{unit}conv3", f"{unit}norm3", 1, inner, out, scale=ZEROS)
            into = out


def _block(table: _Table, c: ViTConfig) -> None:
    if c.branch_norm == "before":
        table.norm("norm1")
    _attention(table, c)
    if c.branch_norm == "after":
        table.norm("norm1")
    if not c.parallel:
        table.layer_scale("ls1")
    if not c.parallel and c.branch_norm == "before":
        table.norm("norm2")
    _mlp(table, "mlp", c, gated=c.mlp == "swiglu", bias=c.proj_bias, norm=c.mlp_norm)
    if c.branch_norm == "after":
        table.norm("norm2")
    table.layer_scale("ls1" if c.parallel else "ls2")


def _attention(table: _Table, c: ViTConfig) -> None:
    # Xavier's fans are those of one of the three projections, which are separate in Google's code.
    projection = _xavier_uniform(c.width, c.heads * c.head_width)
    table.linear("attn.qkv", ["qkv", "heads", "head_dim"], ["width"], init=projection, batch="qkv")
    if c.qkv_bias and c.key_bias:
        # A norm or a rotation of the keys makes their bias matter.
        table.bias("attn.qkv", "qkv heads head_dim", key_bias=None if c.qk_norm or c.rope else slice(1, 2))
    elif c.qkv_bias:
        for name in ("attn.q_bias", "attn.v_bias"):
            table.add(name, "(heads head_dim)", None, "heads head_dim", init=ZEROS)
    if c.qk_norm:
        table.norm("attn.q_norm", "head_dim")
        table.norm("attn.k_norm", "head_dim", key_bias=None if c.rope else slice(None))
    if c.rope is not None and c.rope.frequencies == "mixed":
        start = Initializer("rope", c.rope.base)
        layout = "coordinates heads pairs"
        table.add("attn.rope.freqs", layout, None, layout, init=start)
    if c.relative_bias_per_block:
        _relative_bias(table, c, "attn.rel_pos")
    if c.attention_norm:
        table.norm("attn.norm", "(heads head_dim)")
    table.linear("attn.proj", ["width"], ["heads", "head_dim"], init=projection)
    if c.proj_bias:
        table.bias("attn.proj", "width")


def _relative_bias(table: _Table, c: ViTConfig, name: str) -> None:
    if c.relative_bias == "table":
        layout, start = "displacements heads", Initializer("truncated_normal", 0.02)
        table.add(f"{name}.relative_position_bias_table", layout, None, layout, init=start)
        return
    hidden, out = "relative_hidden", "heads"
    table.linear(f"{name}.mlp.fc1", [hidden], ["coordinates"], init=_xavier_uniform(2, c.relative_bias_dim))
    table.bias(f"{name}.mlp.fc1", hidden)
    table.linear(f"{name}.mlp.fc2", [out], [hidden], init=_xavier_uniform(c.relative_bias_dim, c.heads))
    table.bias(f"{name}.mlp.fc2", out)


def _mlp(table: _Table, name: str, c: ViTConfig, *, gated: bool = False, bias: bool = True, norm: bool = False) -> None:
    xavier, small = _xavier_uniform(c.width, table.sizes["mlp"]), Initializer("normal", 1e-6)
    gate = ["gate"] if gated else []
    table.linear(f"{name}.fc1", [*gate, "mlp"], ["width"], init=xavier, batch="".join(gate))
    if bias:
        table.bias(f"{name}.fc1", " ".join([*gate, "mlp"]), init=small)
    if norm:
        table.norm(f"{name}.norm", "mlp")
    table.linear(f"{name}.fc2", ["width"], ["mlp"], init=xavier)
    if bias:
        table.bias(f"{name}.fc2", "width", init=small)


def _attention_pool(table: _Table, c: ViTConfig) -> None:
    """big_vision's MAPHead under timm's names (AttentionPoolLatent). The probe's fans are (1, width) there."""
    pool_dim = c.width // c.pooling_heads
    table.sizes |= {"heads": c.pooling_heads, "pool_dim": pool_dim, "mlp": c.pooling_mlp_dim}
    xavier = _xavier_uniform(c.width, c.width)
    table.tokens("attn_pool.latent", "one_b", _xavier_uniform(1, c.width))
    table.linear("attn_pool.q", ["heads", "pool_dim"], ["width"], init=xavier)
    table.linear("attn_pool.kv", ["kv", "heads", "pool_dim"], ["width"], init=xavier, batch="kv")
    table.bias("attn_pool.q", "heads pool_dim")
    table.bias("attn_pool.kv", "kv heads pool_dim", key_bias=slice(0, 1))
    table.linear("attn_pool.proj", ["width"], ["heads", "pool_dim"], init=xavier)
    table.bias("attn_pool.proj", "width")
    table.norm("attn_pool.norm")
    _mlp(table, "attn_pool.mlp", c)


def _decoder(c: ViTConfig, mae: MaskedAutoencoder) -> dict[str, Parameter]:
    """The decoder of a masked autoencoder: its blocks and their norm, and the layers before and after them."""
    inner, values = mae.decoder(c), mae.patch_values(c)
    table = _Table(inner)
    table.enter(None)
    table.sizes |= {"encoder_width": c.width, "patch_values": values}
    table.linear("embed", ["width"], ["encoder_width"], init=_xavier_uniform(c.width, inner.width))
    table.bias("embed", "width")
    table.tokens("mask_token", "one_b", Initializer("normal", 0.02))
    blocks = parameters(inner).items()
    table.rows |= {name: row for name, row in blocks if row.layer is not None or name.startswith("norm.")}
    table.linear("pred", ["patch_values"], ["width"], init=_xavier_uniform(inner.width, values))
    table.bias("pred", "patch_values")
    return {
        DECODER + name: replace(row, name=DECODER + name, jax_name=DECODER + row.jax_name, depth=c.depth + 1)
        for name, row in table.rows.items()
    }


class _Table:
    """Collects rows; `enter` sets the block to which the following rows belong."""

    def __init__(self, config: ViTConfig) -> None:
        self.rows: dict[str, Parameter] = {}
        self.config = config
        self.prefix, self.depth = "", 0
        self.layer: int | None = None
        self.sizes = {
            "width": config.width,
            "heads": config.heads,
            "head_dim": config.head_width,
            "qkv": 3,
            "kv": 2,
            "coordinates": 2,
            "displacements": table_rows(config.grid, config.class_token),
            "relative_hidden": config.relative_bias_dim,
            "pairs": config.head_width // 2,
            "mlp": config.mlp_dim,
            "gate": 2,
            "channels": config.stem_channels,
            "patch_height": config.patch_kernel[0],
            "patch_width": config.patch_kernel[1],
            "positions": config.positions,
            "registers": config.registers,
            "pooled": config.pooled,
            "representation": config.representation or 0,
            "classes": config.num_classes,
            "one_a": 1,
            "one_b": 1,
        }

    def enter(self, layer: int | None) -> None:
        self.layer = layer
        self.prefix = "" if layer is None else f"blocks.{layer}."
        self.depth = self.config.depth + 1 if layer is None else layer + 1

    def add(
        self,
        name: str,
        torch: str,
        jax_leaf: str | None,
        jax: str,
        *,
        init: Initializer,
        matrix: str | None = None,
        decay: bool | None = None,
        key_bias: slice | None = None,
    ) -> None:
        name = self.prefix + name
        jax_name = f"{name.rpartition('.')[0]}.{jax_leaf}" if jax_leaf else name
        sizes = {axis: self.sizes[axis] for axis in axes_of(torch)}
        decay = matrix is not None if decay is None else decay
        self.rows[name] = Parameter(
            name, torch, jax_name, jax, sizes, init, matrix, decay, self.depth, self.layer, key_bias
        )

    def linear(self, name: str, out: list[str], into: list[str], *, init: Initializer, batch: str = "") -> None:
        """A projection: stored as [out, in] in torch's layout, and with the input's axes first and all axes separate in
        JAX's."""
        rows, columns = _fused(out), _fused(into)
        matrix = f"{batch} {_fused([axis for axis in out if axis != batch])} {columns}".strip()
        self.add(f"{name}.weight", f"{rows} {columns}", "kernel", " ".join(into + out), init=init, matrix=matrix)

    def bias(self, name: str, axes: str, init: Initializer = ZEROS, key_bias: slice | None = None) -> None:
        self.add(f"{name}.bias", _fused(axes.split()), "bias", axes, init=init, key_bias=key_bias)

    def norm(
        self,
        name: str,
        torch: str = "width",
        jax: str = "",
        *,
        scale: Initializer = ONES,
        key_bias: slice | None = None,
    ) -> None:
        self.add(f"{name}.weight", torch, "scale", jax or torch, init=scale)
        if self.config.norm == "layer_norm" or name.startswith("patch_embed.backbone."):
            self.add(f"{name}.bias", torch, "bias", jax or torch, init=ZEROS, key_bias=key_bias)

    def convolution(self, name: str, norm: str, kernel: int, into: int, out: int, *, scale: Initializer = ONES) -> None:
        """A square convolution of the stem and the norm after it."""
        self.sizes |= {"kernel_height": kernel, "kernel_width": kernel, "stem_in": into, "stem_out": out}
        self.add(
            f"{name}.weight",
            "stem_out stem_in kernel_height kernel_width",
            "kernel",
            "kernel_height kernel_width stem_in stem_out",
            init=_lecun_normal(kernel**2 * into),
            matrix="stem_out (stem_in kernel_height kernel_width)",
        )
        self.norm(norm, "stem_out", scale=scale)

    def tokens(self, name: str, number: str, init: Initializer) -> None:
        layout = f"one_a {number} width"
        self.add(name, layout, None, layout, init=init)

    def layer_scale(self, name: str) -> None:
        if self.config.layer_scale is not None:
            init = Initializer("constant", self.config.layer_scale)
            self.add(f"{name}.gamma", "width", "gamma", "width", init=init)


def _fused(axes: list[str]) -> str:
    return axes[0] if len(axes) == 1 else f"({' '.join(axes)})"
