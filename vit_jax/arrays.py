"""The parameters of a model by canonical name, for loading, saving, initializing and comparing."""

from collections.abc import Callable
from typing import TYPE_CHECKING
from zlib import crc32

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_core import parameters
from vit_core.errors import InputError
from vit_core.parameters import Initializer, Parameter, Stack
from vit_core.rotations import mixed_start

if TYPE_CHECKING:
    from vit_jax.model import ViT


def read(model: "ViT") -> dict[str, jax.Array]:
    """Canonical name -> array in the JAX layout; stacked layers are separated."""
    leaves = _leaves(model)
    arrays = {}
    for row in model.table.values():
        value = leaves[path_of(row, model.scan)][...]
        arrays[row.name] = value[row.layer] if model.scan and row.layer is not None else value
    return arrays


def write(model: "ViT", value: Callable[[Parameter], jax.Array]) -> None:
    """Sets every parameter to the result of `value` for its row, in the JAX layout; stacks layers if the model does."""
    rows: dict[str, list[Parameter]] = {}
    for row in model.table.values():
        rows.setdefault(path_of(row, model.scan), []).append(row)
    leaves = _leaves(model)
    if rows.keys() != leaves.keys():
        raise AssertionError(f"table and model disagree on {sorted(rows.keys() ^ leaves.keys())}")
    for path, group in rows.items():
        layers = [value(row) for row in group]
        stacked = model.scan and group[0].layer is not None
        leaves[path].set_value(jnp.stack(layers) if stacked else layers[0])


def write_stacks(model: "ViT", value: Callable[[Stack], jax.Array]) -> None:
    """Sets every parameter of a model that scans to what `value` gives for its stack, layers along the first axis."""
    leaves = _leaves(model)
    for stack in parameters.stacks(model.table.values()).values():
        leaves[path_of(stack.rows[0], scan=True)].set_value(value(stack))


def has_adapters(model: "ViT") -> bool:
    """Whether the model has low-rank adapters in addition to the weights (vit_jax.lora)."""
    return any(path.endswith((".lora_A", ".lora_B")) for path in _leaves(model))


def initialize(model: "ViT", key: jax.Array) -> None:
    """Draws new values of every parameter from its row's distribution, in float32.

    key: each parameter's values depend on it and on the parameter's name only.
    """
    write(model, lambda row: _draw(row.initializer, jax.random.fold_in(key, crc32(row.name.encode())), row.jax_shape))


def from_numpy(array: np.ndarray) -> jax.Array:
    """The array on the default device, in its own type: float64 is refused if JAX would convert it to float32."""
    value = jnp.asarray(array)
    if value.dtype != array.dtype:
        raise InputError(
            f"{array.dtype} parameters need jax_enable_x64 (jax.config.update), or load with dtype='float32'"
        )
    return value


def to_numpy(row: Parameter, value: jax.Array) -> np.ndarray:
    """An array of this row in the layout on disk."""
    return np.ascontiguousarray(row.to_torch(np.asarray(value)))


def _draw(init: Initializer, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    if init.kind == "constant":
        return jnp.full(shape, init.value, jnp.float32)
    if init.kind == "uniform":
        return jax.random.uniform(key, shape, jnp.float32, -init.value, init.value)
    if init.kind == "normal":
        return init.value * jax.random.normal(key, shape, jnp.float32)
    if init.kind == "rope":
        uniform_T1 = jax.random.uniform(key, (shape[1], 1), jnp.float32)
        start: jax.Array = mixed_start(init.value, 2 * shape[2], uniform_T1, jnp)
        return start
    return init.value * jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32)


def path_of(row: Parameter, scan: bool) -> str:
    """Dotted path of a row's parameter in a model; of one that scans, without the number of the layer."""
    return row.jax_name.replace(f"blocks.{row.layer}.", "blocks.") if scan else row.jax_name


def _leaves(model: "ViT") -> "dict[str, nnx.Param[jax.Array]]":
    return {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}
