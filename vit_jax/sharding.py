"""How arrays are sharded over a mesh (data, fsdp, tensor): one list of rules for parameters, optimizer statistics and
activations."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import jax
from jax.sharding import PartitionSpec

from vit_core.parameters import Parameter, Stack, groups_of

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
"""Those that share a batch."""

_within_shard = ContextVar("_within_shard", default=False)

RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "width": ("fsdp",),
    "pooled": ("fsdp",),
}
"""Logical axis -> mesh axes; axes without a rule are replicated. A mesh axis shards an array once, along the first of
the array's axes with a rule for it, so that the tokens of a batch keep their whole width."""


def spec(layout: str, whole: Sequence[str] = (), unused: Sequence[str] = ()) -> PartitionSpec:
    """The sharding of an array with named axes; the axes in `whole` are replicated, and axes fused into one dimension
    are sharded along the first. unused: axes of the mesh that shard nothing."""
    free = set(AXES) - set(unused)

    def place(name: str) -> tuple[str, ...] | None:
        axes = () if name in whole else tuple(axis for axis in RULES.get(name, ()) if axis in free)
        free.difference_update(axes)
        return axes or None

    return PartitionSpec(*(place(names[0]) for names in groups_of(layout)))


def constrain(x: jax.Array, layout: str) -> jax.Array:
    """x with a sharding constraint by the rules while it is traced for a mesh with these axes; elsewhere x itself.

    Without it the compiler may gather a batch instead of weights, which takes 3 to 11 times the memory for a ViT-L/16.
    """
    if jax.sharding.get_abstract_mesh().axis_names != AXES:
        return x
    return jax.lax.with_sharding_constraint(x, _traced_spec(layout))


def by_device(function: Callable[..., jax.Array], layouts: Sequence[str], out: str) -> Callable[..., jax.Array]:
    """A function that each device computes of its own parts of the arguments, which are sharded by the rules, while it
    is traced for a mesh with these axes; elsewhere the function itself. XLA cannot share kernels of Pallas itself."""
    if jax.sharding.get_abstract_mesh().axis_names != AXES:
        return function
    # A kernel does not say along which axes its results differ, so that JAX cannot check it.
    return jax.shard_map(
        function, in_specs=tuple(map(_traced_spec, layouts)), out_specs=_traced_spec(out), check_vma=False
    )


def platform() -> str:
    """The platform of the devices it is traced for: of the mesh, or JAX's default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def _traced_spec(layout: str) -> PartitionSpec:
    """The sharding of an array that is being traced."""
    return spec(layout, unused=BATCH_AXES if _within_shard.get() else ())


@contextmanager
def within_shard() -> Iterator[None]:
    """Within the context what is traced is what the devices of one part of a batch compute, under a jax.vmap over the
    parts: `constrain` does not share it over the batch's axes again."""
    token = _within_shard.set(True)
    try:
        yield
    finally:
        _within_shard.reset(token)


def shares_kernels() -> bool:
    """Whether it is traced for a mesh with these axes, whose devices each have a part of a kernel."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.axis_names == AXES and mesh.shape["fsdp"] * mesh.shape["tensor"] > 1


def of_parameter(stack: Stack) -> PartitionSpec:
    """The sharding of a parameter in the JAX layout. Vectors are replicated, since they are small."""
    return spec(stack.jax, whole=() if stack.rows[0].matrix else ("width",))


def of_pieces(row: Parameter) -> PartitionSpec:
    """The sharding of a parameter as optimizers with structure see it: [matrices, rows, columns], or [layers, size]."""
    if row.matrix is None:
        return PartitionSpec()
    rows, columns = (f"({' '.join(names)})" for names in list(groups_of(row.matrix))[-2:])
    return spec(f"matrices {rows} {columns}")
