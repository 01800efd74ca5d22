"""Runs the blocks one after the other, and defines what their backward pass recomputes. Read it beside
vit_torch/stacking.py, whose blocks are never stacked along a layer axis."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from vit_jax.masks import Masks, Positions

if TYPE_CHECKING:
    from vit_jax.model import Block

Remat = Literal["none", "dots", "full"]

CHEAP = {
    "abs", "add", "add_any", "and", "bitcast_convert_type", "broadcast_in_dim", "concatenate", "convert_element_type",
    "copy", "cos", "div", "eq", "erf", "erfc", "exp", "expand_dims", "ge", "gt", "integer_pow", "iota", "le", "log",
    "logistic", "lt", "max", "min", "mul", "ne", "neg", "one_minus_square", "polynomial", "pow", "reshape", "rsqrt",
    "select_n", "sharding_constraint", "sign", "sin", "slice", "split", "sqrt", "square", "squeeze", "stop_gradient",
    "sub", "tanh", "transpose",
}  # fmt: skip
"""Names of JAX's operations on single elements, and of those that only move them."""


def stack(blocks: "nnx.List[Any]") -> "Block":
    """One block whose every parameter has a leading layer axis."""
    graph, first = nnx.split(blocks[0])
    states = [first] + [nnx.state(block) for block in blocks[1:]]
    return nnx.merge(graph, jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))


def unstack(blocks: "Block | nnx.List[Any]", depth: int) -> Iterator["Block"]:
    """The separate blocks, from stacked or unstacked ones."""
    if isinstance(blocks, nnx.List):
        yield from blocks
        return
    graph, stacked = nnx.split(blocks)
    for i in range(depth):
        yield nnx.merge(graph, jax.tree.map(lambda leaf, i=i: leaf[i], stacked))


def run(
    blocks: "Block | nnx.List[Any]", x_BND: jax.Array, masks: Masks, positions: Positions, remat: Remat
) -> jax.Array:
    """x through all blocks; the masks have a leading layer axis, the positions are the same for all."""
    if not isinstance(blocks, nnx.List):
        graph, stacked = nnx.split(blocks)
        apply = _call(graph, remat, scanned=True)
        return jax.lax.scan(lambda x, layer: (apply(layer[0], x, layer[1], positions), None), x_BND, (stacked, masks))[
            0
        ]
    for i, block in enumerate(blocks):
        graph, state = nnx.split(block)
        own = {site: mask[i] for site, mask in masks.items()}
        x_BND = _call(graph, remat)(state, x_BND, own, positions)
    return x_BND


def _call(graph: Any, remat: Remat, scanned: bool = False) -> Callable[[Any, jax.Array, Masks, Positions], jax.Array]:
    """A block as a function of its state, as jax.checkpoint and jax.lax.scan need it."""

    def call(state: Any, x_BND: jax.Array, masks: Masks, positions: Positions) -> jax.Array:
        return nnx.merge(graph, state)(x_BND, masks, positions)

    if remat == "none":
        # What a loop keeps for the backward pass is written into stacks of all layers and read again, where unrolled
        # layers let the compiler choose. A loop's passes are apart, so that nothing would undo the recomputation.
        return jax.checkpoint(call, policy=_is_kept, prevent_cse=False) if scanned else call
    keep = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    return jax.checkpoint(call, policy=keep)


def _is_kept(primitive: Any, *_: Any, **parameters: Any) -> bool:
    """Whether scanned layers store an operation's result: not if the operation costs less than writing and reading the
    result."""
    if primitive.name == "custom_jvp_call":  # since JAX 0.12 in the derivative of erfc
        return any(_is_kept(each.primitive, **each.params) for each in parameters["call_jaxpr"].eqns)
    return primitive.name not in CHEAP
