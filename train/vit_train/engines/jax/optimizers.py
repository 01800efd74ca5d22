"""The optimizers of vit_train.config.Optimizer in JAX: optax's transformations on stacked parameters.

engines.torch.optimizers is the same in PyTorch.
"""

import math
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
from vit_train.config import FACTORED_FROM, MUON_RMS, NEWTON_SCHULZ, NEWTON_SCHULZ_STEPS, Optimizer
from vit_train.engines.jax.forward import Params

STATISTIC_NAMES = {
    "mu": "first_moment",
    "nu": "second_moment",
    "trace": "momentum",
    "ema": "momentum",
    "v": "second_moment",
    "v_row": "second_moment_rows",
    "v_col": "second_moment_columns",
}
"""optax's name of a statistic -> the name that both engines and saved steps use."""

FIRST_MOMENTS = ("first_moment", "momentum")
"""The statistics that optimizer.moment_dtype applies to."""


@dataclass(frozen=True)
class OptimizerUpdate:
    """The update of parameters and statistics by gradients: pure functions, to be traced by jax.jit.

    Statistics are "<kind>/<stack>" -> array in the parameter's layout; or, for optimizers that see parameters as
    matrices, [matrices, rows, columns], and means over rows or columns [matrices, length].
    """

    config: Optimizer
    """The resolved config."""
    stacks: Mapping[str, Stack]
    """The stacks that are trained."""
    factors: Mapping[str, float]
    """Factor on the learning rate of each parameter, by canonical name."""
    dtype: Any
    """Type of the parameters."""

    @property
    def by_matrix(self) -> bool:
        """Whether the optimizer sees parameters as matrices."""
        return self.config.by_matrix

    def update(
        self,
        params: Params,
        gradients: Params,
        statistics: Mapping[str, jax.Array],
        count: jax.Array,
        learning_rate: jax.Array,
        fraction: jax.Array,
    ) -> tuple[Params, dict[str, jax.Array]]:
        """The parameters and statistics after an update.

        count: number of updates before. learning_rate: of this step, which is `fraction` of the peak. All are scalars.
        """
        moved: Params = {}
        after: dict[str, jax.Array] = {}
        for name, stack in self.stacks.items():
            p, g = params[name], gradients[name]
            state = self._state(stack, statistics, count)
            if self.by_matrix:
                update = jax.vmap(self._transform(stack).update)
                updates, state = update(split_matrices(stack, g), state, split_matrices(stack, p))
                updates = merge_matrices(stack, updates)
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
        """Shape, type and place on the mesh of each statistic."""
        statistics = {}
        for stack in self.stacks.values():
            for kind, leaf in self._kinds(stack, self._abstract(stack)):
                dtype = self._stored(kind, leaf.dtype)
                struct = jax.ShapeDtypeStruct(leaf.shape, dtype)
                statistics[f"{kind}/{stack.name}"] = struct, self._partition(stack, kind)
        return statistics

    def _transform(self, stack: Stack) -> optax.GradientTransformation:
        return transformation(self.config, stack.rows[0])

    def _factor(self, stack: Stack) -> Any:
        """Factor of the learning rate: one number or, if layers differ, one for each layer, to be broadcast."""
        factors = [self.factors[row.name] for row in stack.rows]
        if len(set(factors)) == 1:
            return factors[0]
        return jnp.asarray(factors, self.dtype).reshape(-1, *(1 for _ in stack.rows[0].jax_shape))

    def _abstract(self, stack: Stack) -> Any:
        """optax's state before the first step, as shapes."""
        x = jax.ShapeDtypeStruct(stack.jax_shape, self.dtype)
        init = self._transform(stack).init
        return jax.eval_shape(lambda x: jax.vmap(init)(split_matrices(stack, x)) if self.by_matrix else init(x), x)

    def _state(self, stack: Stack, statistics: Mapping[str, jax.Array], count: jax.Array) -> Any:
        """optax's state with these statistics."""

        def leaf(path: tuple[Any, ...], empty: jax.ShapeDtypeStruct) -> jax.Array:
            if path[-1] == GetAttrKey("count"):
                return jnp.broadcast_to(count, empty.shape).astype(empty.dtype)
            kind = statistic_name(path[-1].name, stack.rows[0])
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
            if path[-1] != GetAttrKey("count") and (kind := statistic_name(path[-1].name, stack.rows[0])):
                yield kind, leaf

    def _partition(self, stack: Stack, kind: str) -> PartitionSpec:
        if not self.by_matrix:
            return sharding.of_parameter(stack)
        matrices = sharding.of_pieces(stack.rows[0])
        if kind == "second_moment_rows":
            return PartitionSpec(*matrices[:2])
        return PartitionSpec(None, matrices[2]) if kind == "second_moment_columns" else matrices


def transformation(config: Optimizer, row: Parameter) -> optax.GradientTransformation:
    """optax's transformation of a parameter's gradients to updates, before the learning rate and outer weight decay.

    config: resolved; its class documents the formulas.
    """
    assert config.beta2 is not None
    assert config.epsilon is not None
    beta2 = config.beta2
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)
    inside = optax.add_decayed_weights(config.weight_decay) if row.decay else optax.identity()
    if config.orthogonalizes(row):
        return muon(config)
    if config.name in ("adamw", "muon"):
        return adam
    if config.name == "lion":
        return optax.scale_by_lion(config.beta1, config.beta2)
    if config.name == "lamb":
        return optax.chain(adam, inside, optax.scale_by_trust_ratio())
    if config.name == "sgd":
        momentum = optax.trace(config.momentum) if config.momentum else optax.identity()
        return optax.chain(inside, momentum) if config.decay == "coupled" else momentum
    # As big_vision's scale_by_adafactor.
    scaled = optax.scale_by_factored_rms(
        min_dim_size_to_factor=FACTORED_FROM,
        epsilon=config.epsilon,
        # optax's own function has no upper limit, and is float32 for parameters of any type.
        decay_rate_fn=lambda i, exponent: jnp.minimum(beta2, 1 - (i + 1.0) ** -exponent),
    )
    return optax.chain(scaled, optax.ema(config.momentum, debias=False)) if config.momentum else scaled


def muon(config: Optimizer) -> optax.GradientTransformation:
    """Muon of a matrix. (optax.contrib's corrects the bias of its momentum; torch's and Keller Jordan's do not. Without
    Nesterov momentum, the normalization cancels this difference.)"""
    kept = config.momentum

    def init(x: jax.Array) -> optax.TraceState:
        return optax.TraceState(trace=jnp.zeros_like(x))

    def update(g: jax.Array, state: Any, params: Any = None) -> tuple[jax.Array, optax.TraceState]:
        b = kept * state.trace + (1 - kept) * g
        direction = orthogonalized(kept * b + (1 - kept) * g if config.nesterov else b)
        return MUON_RMS * math.sqrt(max(g.shape)) * direction, optax.TraceState(trace=b)

    return optax.GradientTransformation(init, update)


def orthogonalized(x: jax.Array) -> jax.Array:
    """U f(S) V^T of a matrix whose singular value decomposition is U S V^T, with f of vit_train.config.Optimizer; zero
    for a matrix of zeros."""
    a, b, c = NEWTON_SCHULZ
    tall = x.shape[0] > x.shape[1]
    y = x.T if tall else x
    y = y / jnp.maximum(jnp.sqrt(jnp.square(y).sum()), jnp.finfo(y.dtype).tiny)
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = y @ y.T
        y = a * y + (b * square + c * square @ square) @ y
    return y.T if tall else y


def split_matrices(stack: Stack, x: jax.Array) -> jax.Array:
    """The matrices [matrices, outputs, inputs] of a stack, for optimizers that use matrices, or its vectors [layers,
    size]."""
    row, layers = stack.rows[0], "" if stack.layers is None else "layers "
    on_disk = rearrange(x, f"{layers}{row.jax} -> {layers}{row.torch}", **row.sizes)
    return on_disk.reshape(-1, *row.matrix_shape)


def merge_matrices(stack: Stack, matrices: jax.Array) -> jax.Array:
    """The stack in the JAX layout that `split_matrices` split."""
    row, layers = stack.rows[0], "" if stack.layers is None else "layers "
    on_disk = matrices.reshape(*(() if stack.layers is None else (stack.layers,)), *row.shape)
    return rearrange(on_disk, f"{layers}{row.torch} -> {layers}{row.jax}", **row.sizes)


def statistic_name(field: str, row: Parameter) -> str | None:
    """The name of optax's statistic of a parameter; None for an empty placeholder of optax.

    optax's v_row belongs to the shorter axis of a matrix, which may be the rows or the columns.
    """
    shape = row.matrix_shape
    if field in ("v", "v_row", "v_col"):
        factored = len(shape) == 2 and min(shape) >= FACTORED_FROM
        if factored == (field == "v"):
            return None
        if factored and shape[0] > shape[1]:
            field = {"v_row": "v_col", "v_col": "v_row"}[field]
    return STATISTIC_NAMES[field]


def to_disk_layout(stack: Stack, value: np.ndarray, *, by_matrix: bool = False) -> dict[str, np.ndarray]:
    """Canonical name -> array in the layout on disk, from the array of a stack; means over rows and columns become
    [matrices of the parameter, length].

    by_matrix: whether it is a statistic of an optimizer that sees parameters as matrices.
    """
    layers = [value] if stack.layers is None else np.split(value, stack.layers)
    arrays = {}
    for row, layer in zip(stack.rows, layers, strict=True):
        if by_matrix:
            arrays[row.name] = layer.reshape(row.shape) if layer.size == row.size else layer
        else:
            arrays[row.name] = np.ascontiguousarray(row.to_torch(layer.reshape(row.jax_shape)))
    return arrays


def from_disk_layout(
    stack: Stack, values: Mapping[str, np.ndarray], shape: tuple[int, ...], *, by_matrix: bool = False
) -> np.ndarray:
    """The array of a stack, of this shape, from what `to_disk_layout` returned."""
    layers = [values[row.name] if by_matrix else row.to_jax(values[row.name]) for row in stack.rows]
    return np.stack(layers).reshape(shape)


def squared_norms(gradients: Params, stacks: Mapping[str, Stack]) -> dict[str, jax.Array]:
    """Sums of squares of each stack's gradients: [layers], or [1] for a parameter outside the blocks."""
    # Not reshaped: axes that are spread over several devices would be gathered first.
    sums = {
        name: jnp.square(g).sum(axis=tuple(range(stacks[name].layers is not None, g.ndim)))
        for name, g in gradients.items()
    }
    return {name: jnp.atleast_1d(summed) for name, summed in sums.items()}


def clip(gradients: Params, squared_norm: jax.Array, limit: float) -> Params:
    """Gradients times limit / max(norm, limit), with the norm of all gradients together."""
    norm = jnp.sqrt(squared_norm)
    return {name: g * (limit / jnp.maximum(norm, limit)) for name, g in gradients.items()}
