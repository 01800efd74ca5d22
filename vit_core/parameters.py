"""The one table of parameters. For a config: every parameter once, with all that the rest of the house asks about it.

A parameter's two layouts are written as einops patterns over named axes: `torch="(qkv heads head_dim) width"` is how it
is stored on disk and in PyTorch, `jax="width qkv heads head_dim"` how the JAX twin keeps it. The shapes, the layout
change, the logical axes that shardings are derived from and the fans of the initialisers all follow from these names.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod, sqrt
from types import MappingProxyType
from typing import Literal
from zlib import crc32

import numpy as np
from einops import rearrange

from vit_core.config import ViTConfig


@dataclass(frozen=True)
class Initializer:
    """A distribution to draw a parameter from, its fans already worked out.

    kind, value: constant (the value), normal (standard deviation), uniform (the limit, symmetric about 0),
    truncated_normal (standard deviation before truncation at two of it).
    """

    kind: Literal["constant", "normal", "truncated_normal", "uniform"]
    value: float


@dataclass(frozen=True)
class Parameter:
    """One row of the table."""

    name: str
    """Canonical name (timm's)."""
    torch: str
    """Layout on disk and in PyTorch: axis names, those fused into one dimension in parentheses."""
    jax_name: str
    """Dotted path in the JAX twin."""
    jax: str
    """Layout in the JAX twin, likewise; its axis names are the logical axes for sharding."""
    sizes: Mapping[str, int]
    """Length of each named axis."""
    initializer: Initializer
    matrix: str | None
    """The view that optimizers with structure work on: `[batch] rows columns`, outputs by inputs; none for vectors."""
    decay: bool
    """Whether weight decay applies (the kernels, as in big_vision: not positions, tokens, scales and biases)."""
    depth: int
    """0 for the embeddings, i + 1 for block i, depth + 1 after the blocks: layer-wise learning rates."""
    layer: int | None
    """The block it stands in, if any."""
    key_bias: slice | None
    """Where on its first JAX axis stands what is added to all keys alike, if anything is. Softmax is blind to it: its
    gradient is zero in exact arithmetic, and the rounding noise in its place is all that would tell two engines'
    training apart."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape on disk and in PyTorch."""
        return self._shape(self.torch)

    @property
    def jax_shape(self) -> tuple[int, ...]:
        """Shape in the JAX twin."""
        return self._shape(self.jax)

    @property
    def matrix_shape(self) -> tuple[int, ...]:
        """(rows, columns) of each of its matrices; (size,) of one that is none."""
        return (self.size,) if self.matrix is None else self._shape(self.matrix)[-2:]

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    def to_jax(self, array: np.ndarray) -> np.ndarray:
        """From torch's layout to the JAX twin's; a view where NumPy can make one."""
        return self._convert(array, self.torch, self.jax)

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """From the JAX twin's layout to torch's; a view where NumPy can make one."""
        return self._convert(array, self.jax, self.torch)

    def _convert(self, array: np.ndarray, source: str, target: str) -> np.ndarray:
        names = {name: self.sizes[name] for name in _axes(source)}
        return rearrange(array, f"{source} -> {target}", **names)

    def _shape(self, layout: str) -> tuple[int, ...]:
        return tuple(prod(self.sizes[name] for name in group) for group in groups_of(layout))


def groups_of(layout: str) -> Iterator[list[str]]:
    """Axis names by dimension: "(qkv heads) width" gives [qkv, heads], [width]."""
    fused: list[str] | None = None
    for word in layout.replace("(", "( ").replace(")", " )").split():
        if word == "(":
            fused = []
        elif word == ")":
            assert fused is not None
            yield fused
            fused = None
        elif fused is None:
            yield [word]
        else:
            fused.append(word)


def _axes(layout: str) -> list[str]:
    return [name for group in groups_of(layout) for name in group]


@lru_cache(maxsize=64)
def parameters(config: ViTConfig) -> Mapping[str, Parameter]:
    """The table of a config: canonical name -> row, in the order the network computes; read-only."""
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
    for layer in range(c.depth):
        table.enter(layer)
        _block(table, c)
    table.enter(None)
    norm = "norm" if c.final_norm == "before_pooling" else "fc_norm"
    if c.final_norm == "before_pooling":
        table.norm(norm)
    if c.pooling == "map":
        _attention_pool(table, c)
    if c.final_norm == "after_pooling":
        table.norm(norm)
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
    return MappingProxyType(table.rows)


@dataclass(frozen=True)
class Stack:
    """Parameters of one kind in several blocks, which may be kept as one array with a layer axis first; or a parameter
    that stands in no block, by itself."""

    rows: tuple[Parameter, ...]

    @property
    def name(self) -> str:
        """ "blocks.0-11.attn.qkv.weight"; of a parameter in no block its own."""
        first = self.rows[0]
        layers = [row.layer for row in self.rows if row.layer is not None]
        return first.name.replace(f"blocks.{first.layer}.", f"blocks.{spans(layers)}.", 1) if layers else first.name

    @property
    def layers(self) -> int | None:
        """How many; none of a parameter in no block, which has no layer axis."""
        return None if self.rows[0].layer is None else len(self.rows)

    @property
    def jax(self) -> str:
        """Layout in the JAX twin, stacked."""
        return self.rows[0].jax if self.layers is None else f"layers {self.rows[0].jax}"

    @property
    def jax_shape(self) -> tuple[int, ...]:
        """Shape in the JAX twin, stacked."""
        return self.rows[0].jax_shape if self.layers is None else (self.layers, *self.rows[0].jax_shape)


def stacks(rows: Iterable[Parameter]) -> dict[str, Stack]:
    """The rows gathered in stacks, by name, in the order of their first rows."""
    alike: dict[str, list[Parameter]] = {}
    for row in rows:
        alike.setdefault(row.name.replace(f"blocks.{row.layer}.", "blocks.", 1), []).append(row)
    return {stack.name: stack for stack in (Stack(tuple(group)) for group in alike.values())}


def spans(numbers: Iterable[int]) -> str:
    """Ascending numbers in short: "0-3,7"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def count(config: ViTConfig) -> int:
    """Number of parameters."""
    return sum(row.size for row in parameters(config).values())


def draw(row: Parameter, seed: int) -> np.ndarray:
    """The row's initial value, float64 in torch's layout: a function of the seed and the name, in any framework."""
    rng = np.random.default_rng([seed, crc32(row.name.encode())])
    kind, value = row.initializer.kind, row.initializer.value
    if kind == "constant":
        return np.full(row.shape, value)
    if kind == "uniform":
        return rng.uniform(-value, value, row.shape)
    sample = rng.standard_normal(row.shape)
    if kind == "truncated_normal":
        while (outside := np.abs(sample) > 2).any():
            sample[outside] = rng.standard_normal(int(outside.sum()))
    return sample * value


ZEROS = Initializer("constant", 0.0)
ONES = Initializer("constant", 1.0)


def _xavier_uniform(fan_in: int, fan_out: int) -> Initializer:
    return Initializer("uniform", sqrt(6 / (fan_in + fan_out)))


def _lecun_normal(fan_in: int) -> Initializer:
    """Flax's default: variance 1 / fan_in after truncation at two standard deviations, hence the constant."""
    return Initializer("truncated_normal", sqrt(1 / fan_in) / 0.87962566103423978)


def _patch_embed(table: "_Table", c: ViTConfig) -> None:
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
    if c.patch_norms:
        table.norm("patch_embed.norm")


def _stem(table: "_Table", c: ViTConfig, layers: tuple[int, ...]) -> None:
    """The ResNet of Google's hybrids under the names of timm's ResNetV2 (of its stem, where there is no stage)."""
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


def _block(table: "_Table", c: ViTConfig) -> None:
    table.norm("norm1")
    # Xavier's fans are those of one of the three projections, which Google's code keeps apart.
    projection = _xavier_uniform(c.width, c.heads * c.attention_dim)
    table.linear("attn.qkv", ["qkv", "heads", "head_dim"], ["width"], init=projection, batch="qkv")
    if c.qkv_bias:
        table.bias("attn.qkv", "qkv heads head_dim", key_bias=None if c.qk_norm else slice(1, 2))
    if c.qk_norm:
        table.norm("attn.q_norm", "head_dim")
        table.norm("attn.k_norm", "head_dim", key_bias=slice(None))
    table.linear("attn.proj", ["width"], ["heads", "head_dim"], init=projection)
    if c.proj_bias:
        table.bias("attn.proj", "width")
    table.layer_scale("ls1")
    table.norm("norm2")
    _mlp(table, "mlp", c, gated=c.mlp == "swiglu", bias=c.proj_bias)
    table.layer_scale("ls2")


def _mlp(table: "_Table", name: str, c: ViTConfig, *, gated: bool = False, bias: bool = True) -> None:
    xavier, small = _xavier_uniform(c.width, c.mlp_dim), Initializer("normal", 1e-6)
    gate = ["gate"] if gated else []
    table.linear(f"{name}.fc1", [*gate, "mlp"], ["width"], init=xavier, batch="".join(gate))
    if bias:
        table.bias(f"{name}.fc1", " ".join([*gate, "mlp"]), init=small)
    table.linear(f"{name}.fc2", ["width"], ["mlp"], init=xavier)
    if bias:
        table.bias(f"{name}.fc2", "width", init=small)


def _attention_pool(table: "_Table", c: ViTConfig) -> None:
    """big_vision's MAPHead under timm's names (AttentionPoolLatent). The probe's fans are (1, width) there."""
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


class _Table:
    """Collects rows; `enter` says which block the following ones stand in."""

    def __init__(self, config: ViTConfig) -> None:
        self.rows: dict[str, Parameter] = {}
        self.config = config
        self.prefix, self.depth = "", 0
        self.layer: int | None = None
        self.sizes = {
            "width": config.width,
            "heads": config.heads,
            "head_dim": config.attention_dim,
            "qkv": 3,
            "kv": 2,
            "pool_dim": config.width // config.heads,
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
        sizes = {axis: self.sizes[axis] for axis in _axes(torch)}
        decay = matrix is not None if decay is None else decay
        self.rows[name] = Parameter(
            name, torch, jax_name, jax, sizes, init, matrix, decay, self.depth, self.layer, key_bias
        )

    def linear(self, name: str, out: list[str], into: list[str], *, init: Initializer, batch: str = "") -> None:
        """A projection: torch keeps [out, in], JAX the input's axes first and every axis apart."""
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
