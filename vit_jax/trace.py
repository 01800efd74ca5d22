"""Everything that the JAX twin computes for a batch, as NumPy arrays by canonical name, for parity tests."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_core.parameters import parameters
from vit_jax import arrays
from vit_jax.masks import Masks
from vit_jax.model import ViT


def trace(
    model: ViT, x_BHWC: np.ndarray, probe_BL: np.ndarray, masks: Masks | None = None, *, interpolate: bool = False
) -> dict[str, np.ndarray]:
    """Stages of `forward_intermediates`, the output of the call itself, and the gradient of sum(output * probe).

    x_BHWC: images [B, H, W, C] of any float type. probe_BL: weights [B, classes] of the outputs in that sum. masks:
    apply to the output and the gradients, not to the stages. interpolate: accept another resolution than the config's.
    Returns NumPy arrays by the names of the stages, "output", and "grad.<parameter>" in torch's layout.
    """
    graph, state = nnx.split(model)

    @jax.jit
    def compute(state, x_BHWC, probe_BL, masks):  # type: ignore[no-untyped-def]
        def probed(state):  # type: ignore[no-untyped-def]
            output_BL = nnx.merge(graph, state)(x_BHWC, masks, interpolate=interpolate)
            return (output_BL * probe_BL.astype(output_BL.dtype)).sum(), output_BL

        gradients, output_BL = jax.grad(probed, has_aux=True)(state)
        stages = nnx.merge(graph, state).forward_intermediates(x_BHWC, interpolate=interpolate)
        return {**stages, "output": output_BL}, arrays.read(nnx.merge(graph, gradients))

    with jax.default_matmul_precision("highest"):
        x, probe = jnp.asarray(x_BHWC), jnp.asarray(probe_BL)
        stages, gradients = jax.device_get(compute(state, x, probe, masks))
    rows = parameters(model.config)
    return stages | {f"grad.{name}": arrays.to_numpy(rows[name], value) for name, value in gradients.items()}


def predict(model: ViT, x_BHWC: np.ndarray, *, interpolate: bool = False) -> np.ndarray:
    """The outputs [B, classes] (without a head: [B, features]) for images [B, H, W, C] of any float type, without
    dropout. interpolate: accept another resolution than the config's. Raises InputError for images that do not fit."""
    graph, state = nnx.split(model)

    @jax.jit
    def compute(state, x_BHWC):  # type: ignore[no-untyped-def]
        return nnx.merge(graph, state)(x_BHWC, interpolate=interpolate)

    with jax.default_matmul_precision("highest"):
        return np.asarray(compute(state, jnp.asarray(x_BHWC)))


def attention_weights(model: ViT, x_BHWC: np.ndarray, *, interpolate: bool = False) -> list[np.ndarray]:
    """The attention weights [B, heads, N, M] of each layer, from each of N tokens to each of M, for images [B, H, W, C]
    of any float type, without dropout. Raises InputError for images that do not fit.

    interpolate: accept another resolution than the config's, as the model does.
    """
    graph, state = nnx.split(model)

    @jax.jit
    def compute(state, x_BHWC):  # type: ignore[no-untyped-def]
        stages = nnx.merge(graph, state).forward_intermediates(x_BHWC, interpolate=interpolate)
        return [stages[f"blocks.{i}.attn"] for i in range(model.config.depth)]

    with jax.default_matmul_precision("highest"):
        return [np.asarray(weights) for weights in compute(state, jnp.asarray(x_BHWC))]
