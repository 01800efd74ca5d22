"""train.config.Optimizer in JAX: optax's transformations on stacked parameters. Its twin is optimizers_torch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange
from jax.sharding import PartitionSpec
from jax.tree_util import GetAttrKey

from vit_core.parameters import Parameter, Stack
from vit_jax import sharding

from .config import FACTORED_FROM, Optimizer

Params = dict[str, jax.Array]
"""Stack's name -> its parameters, in the JAX layout with the layers first."""

KINDS = {
    "mu": "first_moment",
    "nu": "second_moment",
    "trace": "momentum",
    "ema": "momentum",
    "v": "second_moment",
    "v_row": "second_moment_rows",
    "v_col": "second_moment_columns",
}
"""optax's name of a statistic -> ours, the same in both engines and on disk."""

FIRST_MOMENTS = ("first_moment", "momentum")


@dataclass(frozen=True)
class Update:
    """Parameters, gradients and statistics become new ones: pure, to be traced by jax.jit.

    Statistics are "<kind>/<stack>" -> array: as the parameter, or, for optimizers with structure, [matrices, rows,
    columns] and means over rows or columns [matrices, length].
    """

    config: Optimizer
    """Resolved."""
    stacks: Mapping[str, Stack]
    """Those that are trained."""
    factors: Mapping[str, float]
    """On the learning rate, by canonical name."""
    dtype: Any
    """Of parameters."""

    @property
    def structured(self) -> bool:
        return self.config.name in ("adafactor", "lamb")

    def update(
        self,
        params: Params,
        gradients: Params,
        statistics: Mapping[str, jax.Array],
        count: jax.Array,
        learning_rate: jax.Array,
        fraction: jax.Array,
    ) -> tuple[Params, dict[str, jax.Array]]:
        """The update after `count` others, at its learning rate, this fraction of the peak: scalars."""
        moved: Params = {}
        after: dict[str, jax.Array] = {}
        for name, stack in self.stacks.items():
            p, g = params[name], gradients[name]
            state = self._state(stack, statistics, count)
            if self.structured:
                updates, state = jax.vmap(self._transform(stack).update)(apart(stack, g), state, apart(stack, p))
                updates = joined(stack, updates)
            else:
                updates, state = self._transform(stack).update(g, state, p)
            rate = learning_rate * self._factor(stack)
            moved[name] = p - rate * updates
            if stack.rows[0].decay and not self.config.decays_inside:
                share = (rate if self.config.decay == "decoupled" else fraction) * self.config.weight_decay
                moved[name] -= share * p
            after |= self._statistics(stack, state)
        return moved, after

    @cached_property
    def statistics(self) -> dict[str, tuple[jax.ShapeDtypeStruct, PartitionSpec]]:
        """Of each statistic shape, type and place on the mesh."""
        found = {}
        for stack in self.stacks.values():
            for kind, leaf in self._kinds(stack, self._abstract(stack)):
                dtype = self._stored(kind, leaf.dtype)
                found[f"{kind}/{stack.name}"] = jax.ShapeDtypeStruct(leaf.shape, dtype), self._place(stack, kind)
        return found

    def _transform(self, stack: Stack) -> optax.GradientTransformation:
        return transformation(self.config, stack.rows[0].decay)

    def _factor(self, stack: Stack) -> Any:
        """On the learning rate: a number, or where layers differ one for each, to be broadcast."""
        factors = [self.factors[row.name] for row in stack.rows]
        if len(set(factors)) == 1:
            return factors[0]
        return jnp.asarray(factors, self.dtype).reshape(-1, *(1 for _ in stack.rows[0].jax_shape))

    def _abstract(self, stack: Stack) -> Any:
        """optax's state before the first step, as shapes."""
        x = jax.ShapeDtypeStruct(stack.jax_shape, self.dtype)
        init = self._transform(stack).init
        return jax.eval_shape(lambda x: jax.vmap(init)(apart(stack, x)) if self.structured else init(x), x)

    def _state(self, stack: Stack, statistics: Mapping[str, jax.Array], count: jax.Array) -> Any:
        """optax's state that the statistics stand for."""

        def leaf(path: tuple[Any, ...], empty: jax.ShapeDtypeStruct) -> jax.Array:
            if path[-1] == GetAttrKey("count"):
                return jnp.broadcast_to(count, empty.shape).astype(empty.dtype)
            kind = kind_of(path[-1].name, stack.rows[0])
            if kind is None:
                return jnp.zeros(empty.shape, empty.dtype)
            return statistics[f"{kind}/{stack.name}"].astype(empty.dtype)

        return jax.tree_util.tree_map_with_path(leaf, self._abstract(stack))

    def _statistics(self, stack: Stack, state: Any) -> dict[str, jax.Array]:
        return {
            f"{kind}/{stack.name}": leaf.astype(self._stored(kind, leaf.dtype))
            for kind, leaf in self._kinds(stack, state)
        }

    def _stored(self, kind: str, dtype: Any) -> Any:
        return jnp.dtype(self.config.moment_dtype or dtype) if kind in FIRST_MOMENTS else dtype

    def _kinds(self, stack: Stack, state: Any) -> Iterator[tuple[str, Any]]:
        for path, leaf in jax.tree_util.tree_leaves_with_path(state):
            if path[-1] != GetAttrKey("count") and (kind := kind_of(path[-1].name, stack.rows[0])):
                yield kind, leaf

    def _place(self, stack: Stack, kind: str) -> PartitionSpec:
        if not self.structured:
            return sharding.of_parameter(stack)
        pieces = sharding.of_pieces(stack.rows[0])
        if kind == "second_moment_rows":
            return PartitionSpec(*pieces[:2])
        return PartitionSpec(None, pieces[2]) if kind == "second_moment_columns" else pieces


def transformation(config: Optimizer, decay: bool) -> optax.GradientTransformation:
    """Gradients to updates, before learning rate and outer weight decay, of a parameter that does decay or does not;
    config.Optimizer states the formulas. config: resolved."""
    assert config.beta2 is not None
    assert config.epsilon is not None
    beta2 = config.beta2
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)
    inside = optax.add_decayed_weights(config.weight_decay) if decay else optax.identity()
    if config.name == "adamw":
        return adam
    if config.name == "lion":
        return optax.scale_by_lion(config.beta1, config.beta2)
    if config.name == "lamb":
        return optax.chain(adam, inside, optax.scale_by_trust_ratio())
    if config.name == "sgd":
        momentum = optax.trace(config.momentum) if config.momentum else optax.identity()
        return optax.chain(inside, momentum) if config.decay == "coupled" else momentum
    # big_vision's scale_by_adafactor.
    scaled = optax.scale_by_factored_rms(
        min_dim_size_to_factor=FACTORED_FROM,
        epsilon=config.epsilon,
        # optax's own function has no cap, and is float32 whatever the parameters are.
        decay_rate_fn=lambda i, exponent: jnp.minimum(beta2, 1 - (i + 1.0) ** -exponent),
    )
    return optax.chain(scaled, optax.ema(config.momentum, debias=False)) if config.momentum else scaled


def apart(stack: Stack, x: jax.Array) -> jax.Array:
    """[matrices, outputs, inputs] that Adafactor and LAMB take parameters for; or [layers, size], whole vectors."""
    row, layers = stack.rows[0], "" if stack.layers is None else "layers "
    on_disk = rearrange(x, f"{layers}{row.jax} -> {layers}{row.torch}", **row.sizes)
    return on_disk.reshape(-1, *row.matrix_shape)


def joined(stack: Stack, pieces: jax.Array) -> jax.Array:
    """Undoes `apart`."""
    row, layers = stack.rows[0], "" if stack.layers is None else "layers "
    on_disk = pieces.reshape(*(() if stack.layers is None else (stack.layers,)), *row.shape)
    return rearrange(on_disk, f"{layers}{row.torch} -> {layers}{row.jax}", **row.sizes)


def kind_of(field: str, row: Parameter) -> str | None:
    """Our name of optax's statistic of a parameter; none where optax only keeps its place.

    optax's v_row belongs to the shorter axis of a matrix, be that the rows or the columns.
    """
    shape = row.matrix_shape
    if field in ("v", "v_row", "v_col"):
        factored = len(shape) == 2 and min(shape) >= FACTORED_FROM
        if factored == (field == "v"):
            return None
        if factored and shape[0] > shape[1]:
            field = {"v_row": "v_col", "v_col": "v_row"}[field]
    return KINDS[field]


def on_disk(stack: Stack, value: np.ndarray, *, pieces: bool = False) -> dict[str, np.ndarray]:
    """Canonical name -> array in the layout on disk, of a stack; of means over rows and columns [batch, length].

    pieces: it is an optimizer's with structure.
    """
    layers = [value] if stack.layers is None else np.split(value, stack.layers)
    found = {}
    for row, layer in zip(stack.rows, layers, strict=True):
        if pieces:
            found[row.name] = layer.reshape(row.shape) if layer.size == row.size else layer
        else:
            found[row.name] = np.ascontiguousarray(row.to_torch(layer.reshape(row.jax_shape)))
    return found


def off_disk(
    stack: Stack, values: Mapping[str, np.ndarray], shape: tuple[int, ...], *, pieces: bool = False
) -> np.ndarray:
    """Undoes `on_disk`."""
    layers = [values[row.name] if pieces else row.to_jax(values[row.name]) for row in stack.rows]
    return np.stack(layers).reshape(shape)


def squared_norms(gradients: Params, stacks: Mapping[str, Stack]) -> dict[str, jax.Array]:
    """The sums of squares of each stack's gradients [layers], or [1]."""
    # Not reshaped: axes that lie on several devices would be gathered first.
    sums = {
        name: jnp.square(g).sum(axis=tuple(range(stacks[name].layers is not None, g.ndim)))
        for name, g in gradients.items()
    }
    return {name: jnp.atleast_1d(summed) for name, summed in sums.items()}


def clip(gradients: Params, squared_norm: jax.Array, limit: float) -> Params:
    """Gradients times limit / max(norm, limit), norm over all of them."""
    norm = jnp.sqrt(squared_norm)
    return {name: g * (limit / jnp.maximum(norm, limit)) for name, g in gradients.items()}
