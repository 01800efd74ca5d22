"""Where arrays lie on a mesh (data, fsdp, tensor): one list of rules for parameters, statistics and activations."""

from collections.abc import Sequence

import jax
from jax.sharding import PartitionSpec

from vit_core.parameters import Parameter, Stack, groups_of

AXES = ("data", "fsdp", "tensor")

RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "width": ("fsdp",),
    "pooled": ("fsdp",),
}
"""Logical axis -> mesh axes; the others lie whole on every device. A mesh axis cuts an array once: the first of its
axes that has a rule for it is the one, so that the tokens of a batch keep their width."""


def spec(layout: str, whole: Sequence[str] = ()) -> PartitionSpec:
    """Of an array with these named axes, `whole` of them not cut; axes in one dimension are cut along the first."""
    free = set(AXES)

    def place(name: str) -> tuple[str, ...] | None:
        axes = () if name in whole else tuple(axis for axis in RULES.get(name, ()) if axis in free)
        free.difference_update(axes)
        return axes or None

    return PartitionSpec(*(place(names[0]) for names in groups_of(layout)))


def constrain(x: jax.Array, layout: str) -> jax.Array:
    """x, told to lie as the rules say while traced for a mesh with their axes; elsewhere as it is.

    The compiler would otherwise be free to gather a batch instead of weights: 3 to 11 times the memory of a ViT-L/16.
    """
    if jax.sharding.get_abstract_mesh().axis_names != AXES:
        return x
    return jax.lax.with_sharding_constraint(x, spec(layout))


def of_parameter(stack: Stack) -> PartitionSpec:
    """In the JAX layout. Vectors keep their width: whole, they cost next to nothing."""
    return spec(stack.jax, whole=() if stack.rows[0].matrix else ("width",))


def of_pieces(row: Parameter) -> PartitionSpec:
    """Of [matrices, rows, columns], as optimizers with structure see a parameter; of [layers, size] vectors."""
    if row.matrix is None:
        return PartitionSpec()
    rows, columns = (f"({' '.join(names)})" for names in list(groups_of(row.matrix))[-2:])
    return spec(f"matrices {rows} {columns}")
