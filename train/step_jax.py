"""What jax.jit compiles for a run: the train step and the forward pass, with the place of every array on the mesh.

Nothing here needs a device: `Step.lower` is how a plan learns what a run will cost on hardware that is not there.
"""

from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import vit_jax
from vit_core import masks
from vit_core.errors import InputError
from vit_core.parameters import Parameter, Stack, parameters, stacks
from vit_core.preprocess import offset_and_scale
from vit_jax import arrays, sharding

from .config import TrainConfig
from .data import Batch
from .measured import Measured
from .mesh_jax import by_batch, shares
from .optimizers_jax import Params, Update, clip, squared_norms

State = dict[str, jax.Array]
"""All that a run goes on from: "params/<stack>", "average/<stack>", "<statistic>/<stack>" and "skipped"."""

LAYOUTS = Batch("batch", "batch", "batch", "batch", "batch", masks={}, ids_B=None)
"""Of a batch's arrays, as far as the mesh is concerned."""


def layout_of_masks(site: str) -> str:
    """Sites in the blocks have a layer axis first."""
    return "batch" if site == masks.POSITIONS else "layers batch"


class Step:
    """The functions of a run on a mesh; arguments and results as the parameter table's logical axes place them.

    train(state, batch, stop, step, rates) -> (state, Measured), the state donated; stop [devices] says which devices'
    processes want to end; rates are the learning rate and its fraction of the peak. logits(params, images) -> [B, C].
    """

    def __init__(self, config: TrainConfig, mesh: Mesh) -> None:
        self.config, self.mesh = config, mesh
        if config.dtype == "float64" and not jax.config.read("jax_enable_x64"):
            raise InputError("dtype: float64 needs jax_enable_x64 (jax.config.update), or set dtype float32")
        rows = parameters(config.model)
        factors = config.optimizer.factors(rows)
        self.names = tuple(factors)
        self.trained = stacks(rows[name] for name in self.names)
        self.frozen = stacks(row for name, row in rows.items() if name not in factors)
        self.stacks = self.trained | self.frozen
        self.place = {row.name: (stack.name, i) for stack in self.stacks.values() for i, row in enumerate(stack.rows)}
        self.update = Update(config.optimizer.resolved(), self.trained, factors, jnp.dtype(config.dtype))
        out = {leaf: x.sharding for leaf, x in self.state.items()}
        whole = NamedSharding(mesh, PartitionSpec())
        self.train = jax.jit(self._train, donate_argnums=0, out_shardings=(out, whole))
        self.logits = jax.jit(
            lambda params, images_BHWC: self._model(params)(self._normalise(images_BHWC)), out_shardings=by_batch(mesh)
        )

    @cached_property
    def state(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape, type and sharding of every array of the state."""
        dtype, found = jnp.dtype(self.config.dtype), {}
        for name, stack in self.stacks.items():
            found[f"params/{name}"] = jax.ShapeDtypeStruct(stack.jax_shape, dtype), sharding.of_parameter(stack)
        if self.config.ema is not None:
            found |= {f"average/{name}": found[f"params/{name}"] for name in self.trained}
        found |= self.update.statistics
        found["skipped"] = jax.ShapeDtypeStruct((), jnp.int32), PartitionSpec()
        return {
            leaf: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(self.mesh, spec))
            for leaf, (x, spec) in found.items()
        }

    def lower(self) -> jax.stages.Lowered:
        """The train step for this mesh, whose devices need not be here. InputError for a batch it cannot share."""
        self.config.check_shares(shares(self.mesh))
        whole = NamedSharding(self.mesh, PartitionSpec())
        rate = jax.ShapeDtypeStruct((), jnp.dtype(self.config.dtype), sharding=whole)
        step = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
        stop = jax.ShapeDtypeStruct((self.mesh.size,), jnp.int32, sharding=self.by_device)
        with jax.set_mesh(self.mesh):
            return self.train.lower(self.state, self.batch, stop, step, (rate, rate))

    def params(self, state: State, averaged: bool = False) -> Params:
        """The parameters in a state, or their moving average where there is one, by stack."""
        kinds = ["params", "average"] if averaged else ["params"]
        return {name: state[f"{kind}/{name}"] for kind in kinds for name in self.stacks if f"{kind}/{name}" in state}

    @property
    def by_device(self) -> NamedSharding:
        """One value on each device."""
        return NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names))

    @cached_property
    def batch(self) -> Batch:
        """Shape, type and sharding of a batch."""
        c, B = self.config, self.config.batch_size
        sites = masks.sites(c.model, B)

        def array(shape: tuple[int, ...], dtype: Any, layout: str = "batch") -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, dtype, sharding=by_batch(self.mesh, layout))

        return Batch(
            images_BHWC=array((B, *c.model.image_size, c.model.channels), np.uint8),
            targets_BC=array((B, c.model.num_classes), np.float32),
            weights_B=array((B,), np.float32),
            own_B=array((B,), np.float32),
            boxes_B4=array((B, 4), np.int32),
            masks={name: array(site.shape, np.float32, layout_of_masks(name)) for name, site in sites.items()},
            ids_B=None,
        )

    def _train(
        self, state: State, batch: Batch, stop: jax.Array, step: jax.Array, rates: tuple[jax.Array, jax.Array]
    ) -> tuple[State, Measured]:
        config, params = self.config, self.params(state)
        loss, gradients = self._gradients(params, batch)
        norms = squared_norms(gradients, self.trained)
        squares = jnp.stack([norms[self.place[name][0]][self.place[name][1]] for name in self.names])
        total = squares.sum()
        if config.optimizer.clip_norm:
            gradients = clip(gradients, total, config.optimizer.clip_norm)
        trained, after = self.update.update(params, gradients, state, step - state["skipped"], *rates)
        after |= {f"params/{name}": p for name, p in trained.items()}
        if (ema := config.ema) is not None:
            after |= {f"average/{name}": ema * state[f"average/{name}"] + (1 - ema) * p for name, p in trained.items()}
        fine = jnp.isfinite(loss) & jnp.isfinite(total) & (loss <= config.loss_limit)
        going = state["skipped"] <= config.skippable
        new = {leaf: jnp.where(fine & going, x, state[leaf]) for leaf, x in after.items()}
        return {**state, **new, "skipped": state["skipped"] + (going & ~fine)}, Measured(loss, squares, stop.sum())

    def _gradients(self, params: Params, batch: Batch) -> tuple[jax.Array, Params]:
        """The mean loss over the examples that count and its gradients, taken in `accumulation` parts."""
        dtype = jnp.dtype(self.config.dtype)
        count = jnp.maximum(batch.weights_B.sum(), 1).astype(dtype)
        trained = {name: params[name] for name in self.trained}

        def part_of(trained: Params, part: Batch) -> jax.Array:
            logits_BC = self._model(params | trained)(self._normalise(part.images_BHWC, part), part.masks)
            return total_loss(self.config, logits_BC, part).astype(dtype) / count

        if self.config.accumulation == 1:
            loss, gradients = jax.value_and_grad(part_of)(trained, batch)
        else:

            def add(summed: Any, part: Batch) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, summed, jax.value_and_grad(part_of)(trained, part)), None

            zero = jnp.zeros((), dtype), jax.tree.map(jnp.zeros_like, trained)
            loss, gradients = jax.lax.scan(add, zero, self._parts(batch))[0]
        return loss, {name: without_key_bias(self.trained[name], g) for name, g in gradients.items()}

    def _parts(self, batch: Batch) -> Batch:
        """The batch with a leading axis of parts: every so-manieth pair to each, so that no example changes device."""
        k = self.config.accumulation
        unit = 2 if self.config.augmentation.mixes else 1

        def split(x: jax.Array, layout: str = "batch") -> jax.Array:
            axis = layout.split().index("batch")
            before, (B, *after) = x.shape[:axis], x.shape[axis:]
            parts = jnp.moveaxis(x.reshape(*before, B // (k * unit), k, unit, *after), axis + 1, 0)
            return sharding.constrain(parts.reshape(k, *before, B // k, *after), f"parts {layout}")

        cut = {site: split(mask, layout_of_masks(site)) for site, mask in batch.masks.items()}
        return jax.tree.map(split, batch._replace(masks={}))._replace(masks=cut)

    def _model(self, params: Params) -> vit_jax.ViT:
        """The model, in the compute dtype."""
        config, compute = self.config, self._compute

        def layer(row: Parameter) -> jax.Array:
            name, i = self.place[row.name]
            return (params[name] if row.layer is None else params[name][i]).astype(compute)

        def stack(whole: Stack) -> jax.Array:
            if whole.name in params:
                return params[whole.name].astype(compute)
            return jnp.stack([layer(row) for row in whole.rows])  # partly frozen

        model = nnx.eval_shape(
            lambda: vit_jax.ViT(config.model, rngs=nnx.Rngs(0), scan=config.scan, remat=config.remat)
        )
        if config.scan:
            arrays.write_stacks(model, stack)
        else:
            arrays.write(model, layer)
        return model

    @property
    def _compute(self) -> Any:
        return jnp.dtype(self.config.compute_dtype or self.config.dtype)

    def _normalise(self, images_BHWC: jax.Array, mix: Batch | None = None) -> jax.Array:
        offset, scale = offset_and_scale(self.config.preprocessing)
        x_BHWC = (images_BHWC.astype(jnp.float32) - offset) * scale
        if mix is not None and self.config.augmentation.mixes:
            x_BHWC = mixed(x_BHWC.astype(jnp.promote_types(self._compute, jnp.float32)), mix)
        return sharding.constrain(x_BHWC.astype(self._compute), "batch")


def without_key_bias(stack: Stack, gradient: jax.Array) -> jax.Array:
    """The gradient, zero where a key bias's stands (vit_core.parameters.Parameter.key_bias)."""
    key = stack.rows[0].key_bias
    if key is None:
        return gradient
    return gradient.at[key].set(0) if stack.layers is None else gradient.at[:, key].set(0)


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
