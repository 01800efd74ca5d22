"""train.config.Optimizer in JAX: optax's transformations on flat parameters. Its twin is optimizers_torch."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange
from jax.tree_util import GetAttrKey

from vit_core.parameters import Parameter
from vit_jax import arrays

from .config import FACTORED_FROM, Optimizer

Params = dict[str, jax.Array]
"""Canonical name -> array in the JAX layout, of the parameters that are trained."""
State = Any
"""optax's, its statistics by canonical name: {name: [array, ...]}, one array for each piece of a parameter."""

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


class Update:
    """Gradients, a learning rate and a state become new parameters and a new state: pure, to be traced by jax.jit.

    Scalars are of the parameters' dtype: the learning rate of the step, and the schedule's fraction of the peak.
    """

    def __init__(self, config: Optimizer, rows: Mapping[str, Parameter]) -> None:
        self.config, self.factors = config.resolved(), config.factors(rows)
        self.rows = {name: rows[name] for name in self.factors}
        self.structured = config.name in ("adafactor", "lamb")
        self.transform = transformation(self.config, self.rows)

    def init(self, params: Params) -> State:
        """The state before the first step."""
        return self.transform.init(self._pieces(params))

    def update(
        self, params: Params, gradients: Params, state: State, learning_rate: jax.Array, fraction: jax.Array
    ) -> tuple[Params, State]:
        """One step."""
        updates, state = self.transform.update(self._pieces(gradients), state, self._pieces(params))
        updates = {name: joined(self.rows[name], u) if self.structured else u[0] for name, u in updates.items()}
        moved = {}
        for name, p in params.items():
            rate = learning_rate * self.factors[name]
            moved[name] = p - rate * updates[name]
            if self.rows[name].decay and not self.config.decays_inside:
                share = (rate if self.config.decay == "decoupled" else fraction) * self.config.weight_decay
                moved[name] -= share * p
        return moved, state

    def statistics(self, state: State) -> dict[str, np.ndarray]:
        """All that a run needs to go on, in either engine, but the number of steps: "<kind>/<canonical name>" ->
        array in the layout on disk; of the means over rows and columns [batch, length]."""
        found = {}
        for field in KINDS:
            for name, pieces in (optax.tree.get(state, field) or {}).items():
                if kind := kind_of(field, self.rows[name]):
                    found[f"{kind}/{name}"] = self._on_disk(self.rows[name], pieces)
        return found

    def restored(self, params: Params, step: int, statistics: Mapping[str, np.ndarray]) -> State:
        """The state after `step` updates that either engine's statistics were taken from."""

        def leaf(path: tuple[Any, ...], empty: jax.ShapeDtypeStruct) -> jax.Array:
            """Of the state at .field[name][piece], or at .count."""
            if path[-1] == GetAttrKey("count"):
                return jnp.full(empty.shape, step, empty.dtype)
            field, name, i = path[-3].name, path[-2].key, path[-1].idx
            kind, row = kind_of(field, self.rows[name]), self.rows[name]
            if kind is None:
                return jnp.zeros(empty.shape, empty.dtype)
            stored = statistics[f"{kind}/{name}"]
            piece = stored.reshape(-1, *empty.shape)[i] if self.structured else row.to_jax(stored)
            return jnp.array(piece, empty.dtype)  # a copy: the state may be donated, the caller's array not

        return jax.tree_util.tree_map_with_path(leaf, jax.eval_shape(self.init, params))

    def _pieces(self, tree: Params) -> dict[str, list[jax.Array]]:
        return {name: apart(self.rows[name], x) if self.structured else [x] for name, x in tree.items()}

    def _on_disk(self, row: Parameter, pieces: list[jax.Array]) -> np.ndarray:
        if not self.structured:
            return arrays.to_numpy(row, pieces[0]).copy()
        stacked = np.stack(pieces)
        return stacked.reshape(row.shape) if stacked.size == row.size else stacked


def transformation(config: Optimizer, rows: Mapping[str, Parameter]) -> optax.GradientTransformation:
    """Gradients to updates, before learning rate and outer weight decay; config.Optimizer states them."""
    assert config.beta2 is not None
    assert config.epsilon is not None
    beta2 = config.beta2
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)
    decay = optax.add_decayed_weights(config.weight_decay, {name: row.decay for name, row in rows.items()})
    if config.name == "adamw":
        return adam
    if config.name == "lion":
        return optax.scale_by_lion(config.beta1, config.beta2)
    if config.name == "lamb":
        return optax.chain(adam, decay, optax.scale_by_trust_ratio())
    if config.name == "sgd":
        momentum = optax.trace(config.momentum) if config.momentum else optax.identity()
        return optax.chain(decay, momentum) if config.decay == "coupled" else momentum
    # big_vision's scale_by_adafactor, but for the momentum, which it keeps in bfloat16.
    scaled = optax.scale_by_factored_rms(
        min_dim_size_to_factor=FACTORED_FROM,
        epsilon=config.epsilon,
        # optax's own function has no cap, and is float32 whatever the parameters are.
        decay_rate_fn=lambda i, exponent: jnp.minimum(beta2, 1 - (i + 1.0) ** -exponent),
    )
    return optax.chain(scaled, optax.ema(config.momentum, debias=False)) if config.momentum else scaled


def apart(row: Parameter, x: jax.Array) -> list[jax.Array]:
    """The matrices that Adafactor and LAMB take a parameter for, outputs by inputs; or it all as one vector."""
    on_disk = rearrange(x, f"{row.jax} -> {row.torch}", **row.sizes)
    return list(on_disk.reshape(-1, *row.matrix_shape))


def joined(row: Parameter, pieces: list[jax.Array]) -> jax.Array:
    """Undoes `apart`."""
    return rearrange(jnp.stack(pieces).reshape(row.shape), f"{row.torch} -> {row.jax}", **row.sizes)


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


def squared_norms(gradients: Params) -> Params:
    """The sum of squares of each gradient."""
    return {name: jnp.sum(jnp.square(g)) for name, g in gradients.items()}


def clip(gradients: Params, squared_norms: Params, limit: float) -> Params:
    """Gradients times limit / max(norm, limit), norm over all of them."""
    total = jnp.sqrt(sum(squared_norms.values()))
    return {name: g * (limit / jnp.maximum(total, limit)) for name, g in gradients.items()}
