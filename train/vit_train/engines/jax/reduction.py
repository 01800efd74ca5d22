"""Gradients summed over the devices that share a batch in a type of choice.

XLA chooses the type otherwise: where the passes are in bfloat16, each device's part of a product is rounded to it, sent
in it and summed in it. Here the gradients of each device's part of the batch stand beside each other, by jax.vmap over
the parts, until they are summed: each device holds them whole for that long.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vit_jax import sharding
from vit_train.data.batches import Batch
from vit_train.engines.jax.forward import Params
from vit_train.engines.jax.mesh import batch_shards

Gradients = Callable[[Params, Batch], tuple[jax.Array, Params]]
"""(trained parameters, batch) -> the loss and its gradients, both sums over the batch's examples."""


def reduced_in(dtype: str, mesh: Mesh, mask_layout: Callable[[str], str], gradients: Gradients) -> Gradients:
    """The same function, whose gradients are computed for each device's part of the batch and then summed in a type.

    mask_layout: the layout of a mask; one without a batch axis serves all parts.
    """
    shards = batch_shards(mesh)
    if shards == 1:
        return gradients

    def split(x: jax.Array, axis: int | None) -> jax.Array:
        """x with its batch axis as two: the parts, and the rows of each."""
        if axis is None:
            return x
        parts = x.reshape(*x.shape[:axis], shards, x.shape[axis] // shards, *x.shape[axis + 1 :])
        return sharding.constrain(parts, " ".join((*"abc"[:axis], "batch", "rows", *"defg"[: parts.ndim - axis - 2])))

    def sum_of(parts: jax.Array) -> jax.Array:
        zero = jnp.zeros((), dtype)
        return jax.lax.reduce(parts.astype(dtype), zero, jax.lax.add, (0,)).astype(parts.dtype)

    def of_batch(trained: Params, batch: Batch) -> tuple[jax.Array, Params]:
        axes: Batch = jax.tree.map(lambda _: 0, batch._replace(masks={}))
        axes = axes._replace(masks={site: batch_axis(mask_layout(site)) for site in batch.masks})
        masks = {site: split(mask, axes.masks[site]) for site, mask in batch.masks.items()}
        parts: Batch = jax.tree.map(lambda x: split(x, 0), batch._replace(masks={}))
        with sharding.within_shard():
            each = jax.vmap(gradients, (None, axes), spmd_axis_name=sharding.BATCH_AXES)
            losses, found = each(trained, parts._replace(masks=masks))
        return losses.sum(), jax.tree.map(sum_of, found)

    return of_batch


def batch_axis(layout: str) -> int | None:
    """Index of the batch axis in a layout; None without one."""
    return layout.split().index("batch") if layout else None
