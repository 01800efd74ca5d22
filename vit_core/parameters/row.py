"""One row of the parameter table: a parameter's name, its two layouts, and what is derived from them.

The layouts are einops patterns over named axes: `torch="(qkv heads head_dim) width"` is how the parameter is stored on
disk and in PyTorch, `jax="width qkv heads head_dim"` how the JAX twin keeps it. The shapes, the conversion between the
layouts, the logical axes for sharding and the fans of the initializers all follow from these names.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np
from einops import rearrange


@dataclass(frozen=True)
class Initializer:
    """A distribution to draw a parameter from, its fans already worked out.

    kind, value: constant (the value), normal (standard deviation), uniform (the limit, symmetric about 0),
    truncated_normal (standard deviation before truncation at two of it), rope (the base; see vit_core.rotations).
    """

    kind: Literal["constant", "normal", "truncated_normal", "uniform", "rope"]
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
    """The block it stands in, if any (of the encoder, or of a masked autoencoder's decoder)."""
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
        names = {name: self.sizes[name] for name in axes_of(source)}
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


def axes_of(layout: str) -> list[str]:
    return [name for group in groups_of(layout) for name in group]
