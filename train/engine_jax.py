"""The JAX engine: the verbs of train.loop.Engine, by jax.jit on flat state."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import vit_jax
from vit_core.checkpoint import Checkpoint
from vit_core.parameters import Parameter, parameters
from vit_core.preprocess import offset_and_scale
from vit_jax import arrays

from .config import Optimizer, TrainConfig
from .data import Batch

Params = dict[str, jax.Array]
"""Canonical name -> array in the JAX layout."""


class JaxEngine:
    """Parameters and optimizer state as flat dicts by canonical name, merged into a module only while traced."""

    name = "jax"

    def __init__(self, config: TrainConfig, weights: Checkpoint | None = None) -> None:
        self.config, self.rows = config, parameters(config.model)
        if weights is None:
            model = vit_jax.from_seed(config.model, config.seed, dtype=config.dtype)
        else:
            model = vit_jax.load(config.fitted(weights), dtype=config.dtype)
        self.params = arrays.read(model)
        self.transform = transformation(config.optimizer, self.rows)
        self.optimizer_state = self.transform.init(self.params)
        self._step = jax.jit(self._train_step, donate_argnums=(0, 1))
        self._logits = jax.jit(lambda params, images_BHWC: self._merge(params)(self._normalise(images_BHWC)))

    def train_step(self, batch: Batch, learning_rate: float) -> jax.Array:
        """One update; gives the loss before it, still on the device."""
        lr = jnp.asarray(learning_rate, self.config.dtype)
        self.params, self.optimizer_state, loss = self._step(self.params, self.optimizer_state, batch, lr)
        return loss

    def logits(self, images_BHWC: np.ndarray) -> np.ndarray:
        """Logits [B, classes] in evaluation, from uint8 images."""
        return np.asarray(self._logits(self.params, images_BHWC))

    def export(self) -> dict[str, np.ndarray]:
        """The parameters in the layout on disk."""
        return {name: arrays.to_numpy(self.rows[name], value) for name, value in self.params.items()}

    def optimizer_arrays(self) -> dict[str, np.ndarray]:
        """The optimizer's statistics, "<kind>/<canonical name>" in the layout on disk."""
        found = {}
        for kind, field in STATISTICS.items():
            statistic = optax.tree.get(self.optimizer_state, field) or {}
            for name, value in statistic.items():
                found[f"{kind}/{name}"] = arrays.to_numpy(self.rows[name], value)
        return found

    def restore(self, step: int, statistics: Mapping[str, np.ndarray]) -> None:
        """Sets the optimizer to what optimizer_arrays gave after `step` updates (of either engine)."""
        state: Any = self.optimizer_state
        for kind, field in STATISTICS.items():
            if optax.tree.get(state, field) is not None:
                value = {
                    name: jnp.asarray(row.to_jax(statistics[f"{kind}/{name}"]))
                    for name, row in self.rows.items()
                    if f"{kind}/{name}" in statistics
                }
                state = optax.tree.set(state, **{field: value or optax.tree.get(state, field)})
        if optax.tree.get(state, "count") is not None:
            state = optax.tree.set(state, count=jnp.asarray(step, jnp.int32))
        self.optimizer_state = state

    def _train_step(self, params: Params, optimizer_state: Any, batch: Any, lr: jax.Array) -> Any:
        def loss_of(params: Params) -> jax.Array:
            logits_BC = self._merge(params)(self._normalise(batch.images_BHWC), batch.masks)
            return mean_loss(self.config, logits_BC, batch)

        loss, gradients = jax.value_and_grad(loss_of)(params)
        for name, row in self.rows.items():
            if row.key_bias is not None:
                gradients[name] = gradients[name].at[row.key_bias].set(0)
        updates, optimizer_state = self.transform.update(gradients, optimizer_state, params)
        return jax.tree.map(lambda p, u: p - lr * u, params, updates), optimizer_state, loss

    def _merge(self, params: Params) -> vit_jax.ViT:
        model = nnx.eval_shape(lambda: vit_jax.ViT(self.config.model, rngs=nnx.Rngs(0)))
        arrays.write(model, lambda row: params[row.name])
        return model

    def _normalise(self, images_BHWC: jax.Array) -> jax.Array:
        offset, scale = offset_and_scale(self.config.preprocessing)
        return ((images_BHWC.astype(jnp.float32) - offset) * scale).astype(self.config.dtype)


STATISTICS = {"momentum": "trace", "first_moment": "mu", "second_moment": "nu"}
"""Our name of an optimizer's statistic -> optax's."""


def transformation(optimizer: Optimizer, rows: Mapping[str, Parameter]) -> optax.GradientTransformation:
    """Gradients to updates, before the learning rate; Optimizer states the formulas."""
    mask = {name: row.decay for name, row in rows.items()}
    decay = optax.add_decayed_weights(optimizer.weight_decay, mask)
    clip = optax.clip_by_global_norm(optimizer.clip_norm) if optimizer.clip_norm else optax.identity()
    if optimizer.name == "adamw":
        adam = optax.scale_by_adam(optimizer.beta1, optimizer.beta2, optimizer.epsilon)
        return optax.chain(clip, adam, decay)
    momentum = optax.trace(optimizer.momentum)
    return optax.chain(clip, decay, momentum) if optimizer.decay == "coupled" else optax.chain(clip, momentum, decay)


def mean_loss(config: TrainConfig, logits_BC: jax.Array, batch: Batch) -> jax.Array:
    """The loss over the examples that count."""
    targets_BC = batch.targets_BC.astype(logits_BC.dtype)
    weights_B = batch.weights_B.astype(logits_BC.dtype)
    if config.loss == "softmax":
        losses_B = optax.softmax_cross_entropy(logits_BC, targets_BC)
    else:
        losses_B = optax.sigmoid_binary_cross_entropy(logits_BC, targets_BC).sum(axis=-1)
    return (losses_B * weights_B).sum() / weights_B.sum()
