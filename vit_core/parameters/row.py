"""One row of the parameter table: a parameter's name, its two layouts, and what is derived from them.

The layouts are einops patterns over named axes: `torch="(qkv heads head_dim) width"` is the layout on disk and in
PyTorch, `jax="width qkv heads head_dim"` the layout in the JAX twin. The shapes, the conversion between the layouts,
the logical axes for sharding and the fans of the initializers all follow from these names.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np
from einops import rearrange


@dataclass(frozen=True)
class Initializer:
    """A distribution for a parameter's initial values; the fans are already included in `value`.

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
    """Layout on disk and in PyTorch: axis names; names in parentheses are fused into one dimension."""
    jax_name: str
    """Dotted path in the JAX twin."""
    jax: str
    """Layout in the JAX twin, in the same notation; its axis names are the logical axes for sharding."""
    sizes: Mapping[str, int]
    """Length of each named axis."""
    initializer: Initializer
    matrix: str | None
    """The matrices that optimizers such as Muon and Adafactor use: `[batch] rows columns`, outputs by inputs; none for
    vectors."""
    decay: bool
    """Whether weight decay applies (to kernels only, as in big_vision: not to positions, tokens, scales and biases)."""
    depth: int
    """For layer-wise learning rates: 0 for the embeddings, i + 1 for block i, depth + 1 after the blocks."""
    layer: int | None
    """Number of the block that the parameter belongs to, if any (of the encoder, or of a masked autoencoder's
    decoder)."""
    key_bias: slice | None
    """The slice of the first JAX axis that is added to all keys, if there is one. Softmax is invariant to it, so its
    gradient is zero in exact arithmetic. The engines set it to zero, because its rounding noise would be the only
    difference between their training runs."""

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
        """(rows, columns) of each of the parameter's matrices; (size,) for a vector."""
        return (self.size,) if self.matrix is None else self._shape(self.matrix)[-2:]

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    def to_jax(self, array: np.ndarray) -> np.ndarray:
        """Converts an array from torch's layout (`shape`) to the JAX twin's (`jax_shape`); a view if NumPy can make
        one."""
        return self._convert(array, self.torch, self.jax)

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Converts an array from the JAX twin's layout (`jax_shape`) to torch's (`shape`); a view if NumPy can make
        one."""
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
