"""The JAX engine: the verbs of train.loop.Engine, by jax.jit on flat state over a mesh of devices."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import vit_jax
from vit_core.checkpoint import Checkpoint
from vit_core.masks import POSITIONS
from vit_core.parameters import parameters
from vit_core.preprocess import offset_and_scale
from vit_jax import arrays

from .config import TrainConfig
from .data import Batch
from .measured import Measured
from .optimizers_jax import Update, clip, squared_norms

Params = dict[str, jax.Array]
"""Canonical name -> array in the JAX layout."""


class JaxEngine:
    """Parameters and statistics as flat dicts by canonical name, merged into a module only while traced.

    Every device holds the whole state; a batch is shared among them, and the compiler sums what they find.
    """

    name = "jax"

    def __init__(self, config: TrainConfig, weights: Checkpoint | None = None) -> None:
        self.config, self.rows = config, parameters(config.model)
        self.process, self.processes, self.devices = jax.process_index(), jax.process_count(), jax.device_count()
        self.mesh = jax.make_mesh((self.devices,), ("data",), axis_types=(AxisType.Auto,))
        if weights is None:
            model = vit_jax.from_seed(config.model, config.seed, dtype=config.dtype)
        else:
            model = vit_jax.load(config.fitted(weights), dtype=config.dtype)
        self.state: dict[str, Any] = {}
        self.update = Update(config.optimizer, self.rows)
        self.trained = tuple(config.optimizer.factors(self.rows))
        params = arrays.read(model)
        trained = {name: params.pop(name) for name in self.trained}
        average = jax.tree.map(jnp.copy, trained) if config.ema is not None else {}
        self._set(trained, params, self.update.init(trained), average)
        self._step = jax.jit(self._train_step, donate_argnums=0)
        self._logits = jax.jit(lambda params, images_BHWC: self._merge(params)(self._normalise(images_BHWC)))

    def train_step(self, batch: Batch, step: int) -> Measured:
        """Update number `step` (from 0); gives what was found before it, still on the device.

        From the first loss or gradient on that is not finite, the state stays as it is.
        """
        rates = np.array([self.config.learning_rate(step), self.config.schedule.fraction(step, self.config.steps)])
        with jax.set_mesh(self.mesh):
            self.state, measured = self._step(self.state, self._shared(batch), jnp.asarray(rates, self.config.dtype))
        return measured

    def logits(self, images_BHWC: np.ndarray, averaged: bool = False) -> np.ndarray:
        """Logits [B, classes] in evaluation, from uint8 images; of the moving average if asked for."""
        padding = -len(images_BHWC) % jax.local_device_count()
        padded = np.pad(images_BHWC, [(0, padding), (0, 0), (0, 0), (0, 0)])
        shared = jax.device_put(padded, NamedSharding(self.mesh, PartitionSpec("data")))
        return np.asarray(self._logits(self._params(averaged), shared), self.config.dtype)[: len(images_BHWC)]

    def export(self, averaged: bool = False) -> dict[str, np.ndarray]:
        """The parameters, or their moving average, in the layout on disk."""
        params = jax.device_get(self._params(averaged))
        return {name: arrays.to_numpy(row, params[name]) for name, row in self.rows.items()}

    def statistics(self) -> dict[str, np.ndarray]:
        """The optimizer's, and the moving average: "<kind>/<canonical name>" in the layout on disk."""
        average = jax.device_get(self.state["average"])
        averages = {f"average/{name}": arrays.to_numpy(self.rows[name], value) for name, value in average.items()}
        return self.update.statistics(self.state["optimizer"]) | averages

    def restore(self, step: int, statistics: Mapping[str, np.ndarray]) -> None:
        """Sets what `statistics` gave after `step` updates (in either engine)."""
        average = {
            name: arrays.from_numpy(self.rows[name].to_jax(statistics[f"average/{name}"]))
            for name in self.state["average"]
        }
        trained = self.state["trained"]
        self._set(trained, self.state["frozen"], self.update.restored(trained, step, statistics), average)

    def total(self, counts: np.ndarray) -> np.ndarray:
        """The sum over all processes: this one."""
        return counts

    def _set(self, trained: Params, frozen: Params, optimizer: Any, average: Params) -> None:
        state = {"trained": trained, "frozen": frozen, "optimizer": optimizer, "average": average}
        self.state = jax.device_put({**state, "healthy": jnp.asarray(True)}, NamedSharding(self.mesh, PartitionSpec()))

    def _params(self, averaged: bool) -> Params:
        trained = self.state["average"] if averaged and self.config.ema is not None else self.state["trained"]
        return {**self.state["frozen"], **trained}

    def _shared(self, batch: Batch) -> Batch:
        """The batch over the devices of all processes."""
        by_example, by_layer = PartitionSpec("data"), PartitionSpec(None, "data")
        masks = {site: by_example if site == POSITIONS else by_layer for site in batch.masks}
        # Which examples they are is the loop's to know.
        batch = batch._replace(ids_B=None)
        specs = Batch(by_example, by_example, by_example, by_example, by_example, masks, ids_B=None)
        return jax.tree.map(
            lambda spec, part: jax.make_array_from_process_local_data(NamedSharding(self.mesh, spec), part),
            specs,
            batch,
            is_leaf=lambda node: isinstance(node, PartitionSpec),
        )

    def _train_step(self, state: dict[str, Any], batch: Batch, rates: jax.Array) -> tuple[dict[str, Any], Measured]:
        loss, gradients = self._gradients(state, batch)
        for name in gradients:
            if (key := self.rows[name].key_bias) is not None:
                gradients[name] = gradients[name].at[key].set(0)
        norms = squared_norms(gradients)
        measured = Measured(loss, jnp.stack([norms[name] for name in self.trained]))
        if self.config.optimizer.clip_norm:
            gradients = clip(gradients, norms, self.config.optimizer.clip_norm)
        trained, optimizer = self.update.update(state["trained"], gradients, state["optimizer"], *rates)
        average = state["average"]
        if (ema := self.config.ema) is not None:
            average = jax.tree.map(lambda a, p: ema * a + (1 - ema) * p, average, trained)
        healthy = state["healthy"] & jnp.isfinite(loss) & jnp.isfinite(measured.squared_norms.sum())
        new = {**state, "trained": trained, "optimizer": optimizer, "average": average, "healthy": healthy}
        return jax.tree.map(
            lambda after, before: jnp.where(healthy, after, before), new, state | {"healthy": healthy}
        ), measured

    def _gradients(self, state: dict[str, Any], batch: Batch) -> tuple[jax.Array, Params]:
        """The mean loss over the examples that count and its gradients, taken in `accumulation` parts."""
        count = jnp.maximum(batch.weights_B.sum(), 1).astype(self.config.dtype)

        def part_of(trained: Params, part: Batch) -> jax.Array:
            logits_BC = self._merge({**state["frozen"], **trained})(self._normalise(part.images_BHWC, part), part.masks)
            return total_loss(self.config, logits_BC, part).astype(self.config.dtype) / count

        if self.config.accumulation == 1:
            return jax.value_and_grad(part_of)(state["trained"], batch)

        def add(summed: Any, part: Batch) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, summed, jax.value_and_grad(part_of)(state["trained"], part)), None

        zero = jnp.zeros((), self.config.dtype), jax.tree.map(jnp.zeros_like, state["trained"])
        return jax.lax.scan(add, zero, self._parts(batch))[0]

    def _parts(self, batch: Batch) -> Batch:
        """The batch with a leading axis of parts: every so-manieth pair to each, so that no example changes device."""
        k = self.config.accumulation
        unit = 2 if self.config.augmentation.mixes else 1

        def split(x: jax.Array, axis: int) -> jax.Array:
            before, (B, *after) = x.shape[:axis], x.shape[axis:]
            parts = jnp.moveaxis(x.reshape(*before, B // (k * unit), k, unit, *after), axis + 1, 0)
            return parts.reshape(k, *before, B // k, *after)

        masks = {site: split(mask, 0 if site == POSITIONS else 1) for site, mask in batch.masks.items()}
        rest = jax.tree.map(lambda x: split(x, 0), batch._replace(masks={}))
        return rest._replace(masks=masks)

    def _merge(self, params: Params) -> vit_jax.ViT:
        """The model, in the compute dtype."""
        model = nnx.eval_shape(lambda: vit_jax.ViT(self.config.model, rngs=nnx.Rngs(0)))
        arrays.write(model, lambda row: params[row.name].astype(self._compute))
        return model

    @property
    def _compute(self) -> Any:
        return jnp.dtype(self.config.compute_dtype or self.config.dtype)

    def _normalise(self, images_BHWC: jax.Array, mix: Batch | None = None) -> jax.Array:
        offset, scale = offset_and_scale(self.config.preprocessing)
        x_BHWC = (images_BHWC.astype(jnp.float32) - offset) * scale
        if mix is not None and self.config.augmentation.mixes:
            x_BHWC = mixed(x_BHWC.astype(jnp.promote_types(self._compute, jnp.float32)), mix)
        return x_BHWC.astype(self._compute)


def mixed(x_BHWC: jax.Array, batch: Batch) -> jax.Array:
    """Images mixed with the others of their pairs, by the batch's shares and boxes."""
    B, H, W, C = x_BHWC.shape
    partner_BHWC = x_BHWC.reshape(B // 2, 2, H, W, C)[:, ::-1].reshape(B, H, W, C)
    top, left, bottom, right = (side[:, None, None] for side in batch.boxes_B4.T)
    y_H1, x_1W = jnp.arange(H)[:, None], jnp.arange(W)
    inside_BHW = (y_H1 >= top) & (y_H1 < bottom) & (x_1W >= left) & (x_1W < right)
    own_BHW1 = jnp.where(inside_BHW, 0, batch.own_B[:, None, None])[..., None].astype(x_BHWC.dtype)
    return own_BHW1 * x_BHWC + (1 - own_BHW1) * partner_BHWC


def total_loss(config: TrainConfig, logits_BC: jax.Array, batch: Batch) -> jax.Array:
    """The loss summed over the examples that count, in float32 at least."""
    logits_BC = logits_BC.astype(jnp.promote_types(logits_BC.dtype, jnp.float32))
    targets_BC, weights_B = batch.targets_BC.astype(logits_BC.dtype), batch.weights_B.astype(logits_BC.dtype)
    if config.loss == "softmax":
        losses_B = optax.softmax_cross_entropy(logits_BC, targets_BC)
    else:
        losses_B = optax.sigmoid_binary_cross_entropy(logits_BC, targets_BC).sum(axis=-1)
    return (losses_B * weights_B).sum()
