"""The train step that jax.jit compiles for a run, with the sharding of every array.

Nothing here needs a device: `TrainStep.lower` is how a plan computes what a run costs on hardware that is not present.
"""

from functools import cached_property
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vit_core import masks
from vit_core.checkpoints import CheckpointConfig
from vit_core.errors import InputError
from vit_core.lora import adapter_rows, adapters, is_adapter
from vit_core.naflex import Patches
from vit_core.parameters import Stack, stacks
from vit_jax import sharding
from vit_train.config import TrainConfig
from vit_train.config.mesh import check_divides
from vit_train.data.batches import Batch
from vit_train.engines.jax.forward import Forward, Params
from vit_train.engines.jax.losses import distillation_loss, total_loss
from vit_train.engines.jax.mesh import batch_sharding, batch_shards
from vit_train.engines.jax.optimizers import OptimizerUpdate, clip, squared_norms
from vit_train.engines.jax.reduction import Gradients, reduced_in
from vit_train.step_result import StepResult
from vit_train.step_statistics import ADAPTER, BASE

State = dict[str, jax.Array]
"""The state from which a run resumes: "params/<stack>", "average/<stack>", "<statistic>/<stack>" and "skipped"."""

LAYOUTS = Batch("batch", "batch", "batch", "batch", "batch", masks={}, ids_B=None)
"""Layouts of a batch's arrays, for sharding."""


def mask_layout(site: str) -> str:
    """Layout of a mask: those of sites in the blocks have a layer axis first, and some serve the whole batch."""
    return {None: "", 0: "batch", 1: "layers batch"}[masks.batch_axis(site)]


class TrainStep:
    """The train step of a run on a mesh; arguments and results are placed by the parameter table's logical axes.

    train(state, batch, stop, step, rates, limits, taught, patch_size) -> (state, StepResult), jitted, the state
    donated. stop [devices]: 1 on the devices of processes that want to stop. rates: see `vit_train.step_rates`. limits:
    the number of updates that may be skipped, and the loss above which an update is skipped. taught: the teacher's
    parameters, of a run that has one (its config is `teacher`). patch_size: where the run draws it; there is a program
    for each.
    """

    def __init__(self, config: TrainConfig, mesh: Mesh, teacher: CheckpointConfig | None = None) -> None:
        self.config = config = for_platform(config, mesh.devices.flat[0].platform)
        self.mesh = mesh
        if config.dtype == "float64" and not jax.config.read("jax_enable_x64"):
            raise InputError("dtype: float64 needs jax_enable_x64 (jax.config.update), or set dtype float32")
        if config.masked is not None:
            check_divides(mesh.shape, config.masked.decoder(config.model), "mae.decoder_")
        if teacher is not None:
            check_divides(mesh.shape, teacher.model, "the teacher's ")
        rows, factors = config.table, config.factors()
        self.names = tuple(factors)
        self.trained = stacks(rows[name] for name in self.names)
        self.frozen = stacks(row for name, row in rows.items() if name not in factors)
        self.stacks = self.trained | self.frozen
        self.forward = Forward.of_run(config, self.stacks, mesh)
        self.teacher = None if teacher is None else Forward.of_teacher(config, teacher, mesh)
        self.update = OptimizerUpdate(config.optimizer.resolved(), self.trained, factors, jnp.dtype(config.dtype))
        out = {leaf: x.sharding for leaf, x in self.state.items()}
        self.train = jax.jit(self._train, donate_argnums=0, static_argnums=7, out_shardings=(out, self._replicated))

    @cached_property
    def state(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape, type and sharding of every array of the state."""
        dtype, leaves = jnp.dtype(self.config.dtype), {}
        for name, stack in self.stacks.items():
            leaves[f"params/{name}"] = jax.ShapeDtypeStruct(stack.jax_shape, dtype), sharding.of_parameter(stack)
        if self.config.ema is not None:
            leaves |= {f"average/{name}": leaves[f"params/{name}"] for name in self.trained}
        leaves |= self.update.statistics
        leaves["skipped"] = jax.ShapeDtypeStruct((), jnp.int32), PartitionSpec()
        return {
            leaf: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(self.mesh, spec))
            for leaf, (x, spec) in leaves.items()
        }

    def lower(self) -> jax.stages.Lowered:
        """The train step lowered for this mesh, whose devices need not be present; if there are several sequence
        lengths, for the longest. Raises InputError for a batch that the mesh cannot share."""
        self.config.check_batch_shards(batch_shards(self.mesh))
        rate = jax.ShapeDtypeStruct((), jnp.dtype(self.config.dtype), sharding=self._replicated)
        count = jax.ShapeDtypeStruct((), jnp.int32, sharding=self._replicated)
        stop = jax.ShapeDtypeStruct((self.mesh.size,), jnp.int32, sharding=self.by_device)
        with jax.set_mesh(self.mesh):
            drawn = self.config.longest.patch_size if self.config.patch_sizes else None
            limits, rates = (count, rate), jax.ShapeDtypeStruct((4,), rate.dtype, sharding=self._replicated)
            return self.train.lower(self.state, self.batch, stop, count, rates, limits, self.taught, drawn)

    @cached_property
    def taught(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape, type and sharding of every array of the teacher's; empty where there is none."""
        if self.teacher is None:
            return {}
        dtype, specs = self.teacher.compute_dtype, sharding.of_parameter
        return {
            name: jax.ShapeDtypeStruct(stack.jax_shape, dtype, sharding=NamedSharding(self.mesh, specs(stack)))
            for name, stack in self.teacher.stacks.items()
        }

    def params(self, state: State, averaged: bool = False) -> Params:
        """The parameters in a state by stack; or their moving average, with the parameters that have none."""
        kinds = ["params", "average"] if averaged else ["params"]
        return {name: state[f"{kind}/{name}"] for kind in kinds for name in self.stacks if f"{kind}/{name}" in state}

    def saved_as(self, leaf: str) -> str:
        """The name of a leaf of the state in a saved step, where "params/..." is the network that others open: with the
        adapters as a part of its weights, which stand there a second time, without them."""
        kind, _, name = leaf.partition("/")
        if kind != "params":
            return leaf
        first = self.stacks[name].rows[0].name
        if is_adapter(first):
            return f"{ADAPTER}/{name}"
        return f"{BASE}/{name}" if first in adapters(self.config.model, self.config.lora) else leaf

    @property
    def saved_state(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape, type and sharding of every array of a saved step."""
        saved = {self.saved_as(leaf): x for leaf, x in self.state.items()}
        return saved | {leaf: self.state[leaf] for leaf in self._adapted}

    def saved(self, state: State) -> State:
        """The arrays that a step is saved as."""
        if not self._adapted:
            return state
        with jax.set_mesh(self.mesh):
            merged = self._merge(self.params(state))
        return {self.saved_as(leaf): x for leaf, x in state.items()} | merged

    @property
    def _adapted(self) -> list[str]:
        """The leaves of the weights that have adapters."""
        return [leaf for leaf in self.state if self.saved_as(leaf).startswith(f"{BASE}/")]

    @cached_property
    def _merge(self) -> Any:
        """Jitted: parameters -> the leaves of `_adapted`, with the adapters as a part of them."""
        model, lora = self.config.model, self.config.lora
        pairs, rows = adapters(model, lora), adapter_rows(model, lora)

        def matrices(params: Params, names: list[str]) -> jax.Array:
            """[layers, ...]"""
            return self.forward.stack(params, Stack(tuple(rows[name] for name in names)))

        def merge(params: Params) -> State:
            found = {}
            for leaf in self._adapted:
                name = leaf.partition("/")[2]
                own = [pairs[row.name] for row in self.stacks[name].rows]
                down, up = matrices(params, [pair.down for pair in own]), matrices(params, [pair.up for pair in own])
                down, up = down.reshape(len(own), -1, lora.rank), up.reshape(len(own), lora.rank, -1)
                product = jnp.matmul(down, up, precision="highest").reshape(params[name].shape)
                found[leaf] = params[name] + lora.scale * product
            return found

        return jax.jit(merge, out_shardings={leaf: self.state[leaf].sharding for leaf in self._adapted})

    @property
    def by_device(self) -> NamedSharding:
        """Sharding of an array with one value on each device."""
        return NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names))

    @property
    def _replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    @cached_property
    def batch(self) -> Batch:
        """Shape, type and sharding of every array of a batch, the longest where there are several."""
        model, B, made = self.config.longest, self.config.batch_size, self.config.preprocessing
        sites = masks.sites(model, B)

        def array(shape: tuple[int, ...], dtype: Any, layout: str = "batch") -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(self.mesh, layout))

        drawn = {name: array(site.shape, np.float32, mask_layout(name)) for name, site in sites.items()}
        if self.config.masked is not None:
            drawn[masks.PATCH_ORDER] = array((B, prod(model.grid)), np.int32, mask_layout(masks.PATCH_ORDER))
        images: Any = array((B, *model.image_size, model.channels), made.pixel_type)
        if made.max_patches is not None:
            (h, w), N, dtype = self.config.model.grid, prod(model.grid), np.dtype(self.config.dtype)
            pixels, rotary = prod(model.patch_size) * model.channels, model.rope is not None
            images = Patches(
                array((B, N, pixels), made.pixel_type),
                array((B, N, h), dtype),
                array((B, N, w), dtype),
                array((B, N, 2), dtype) if rotary else None,
                array((B, N), np.bool_),
            )
        return Batch(
            images_BHWC=images,
            targets_BC=array((B, model.num_classes), np.float32),
            weights_B=array((B,), np.float32),
            own_share_B=array((B,), np.float32),
            boxes_B4=array((B, 4), np.int32),
            masks=drawn,
            ids_B=None,
        )

    def _train(
        self,
        state: State,
        batch: Batch,
        stop: jax.Array,
        step: jax.Array,
        rates: jax.Array,
        limits: tuple[jax.Array, jax.Array],
        taught: Params,
        patch_size: tuple[int, int] | None,
    ) -> tuple[State, StepResult]:
        config, params = self.config, self.params(state)
        learning_rate, fraction, kept, added = rates
        loss, gradients = self._gradients(params, batch, taught, patch_size)
        norms, position_of = squared_norms(gradients, self.trained), self.forward.position_of
        squares = jnp.stack([norms[stack][i] for stack, i in (position_of[name] for name in self.names)])
        total = squares.sum()
        if config.optimizer.clip_norm:
            gradients = clip(gradients, total, config.optimizer.clip_norm)
        count = step - state["skipped"]
        trained, after = self.update.update(params, gradients, state, count, learning_rate, fraction)
        after |= {f"params/{name}": p for name, p in trained.items()}
        if config.ema is not None:
            after |= {f"average/{name}": kept * state[f"average/{name}"] + added * p for name, p in trained.items()}
        skippable, loss_limit = limits
        valid = jnp.isfinite(loss) & jnp.isfinite(total) & (loss <= loss_limit)
        training = state["skipped"] <= skippable
        new = {leaf: jnp.where(valid & training, x, state[leaf]) for leaf, x in after.items()}
        skipped = state["skipped"] + (training & ~valid)
        return {**state, **new, "skipped": skipped}, StepResult(loss, squares, stop.sum())

    def _gradients(
        self, params: Params, batch: Batch, taught: Params, patch_size: tuple[int, int] | None
    ) -> tuple[jax.Array, Params]:
        """The mean loss over the examples that count, and its gradients, computed in `accumulation` parts."""
        dtype = jnp.dtype(self.config.dtype)
        count = jnp.maximum((batch.weights_B != 0).sum(), 1).astype(dtype)
        trained = {name: params[name] for name in self.trained}

        def loss_of(trained: Params, part: Batch) -> jax.Array:
            images_BHWC, model = self.forward.normalize(part.images_BHWC, part), self.forward.model(params | trained)
            if self.teacher is None:
                loss = total_loss(self.config, model(images_BHWC, part.masks, patch_size=patch_size), part)
            else:
                assert not isinstance(images_BHWC, Patches), "refused by the config"
                heads = model.forward_heads(model.forward_features(images_BHWC, part.masks, patch_size=patch_size))
                loss = distillation_loss(self.config, heads, self.teacher.inputs_and_logits(taught, part), part)
            return loss.astype(dtype) / count

        compute: Gradients = jax.value_and_grad(loss_of)
        if self.config.reduce_dtype:
            compute = reduced_in(self.config.reduce_dtype, self.mesh, mask_layout, compute)
        if self.config.accumulation == 1:
            loss, gradients = compute(trained, batch)
        else:

            def add(summed: Any, part: Batch) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, summed, compute(trained, part)), None

            zero = jnp.zeros((), dtype), jax.tree.map(jnp.zeros_like, trained)
            loss, gradients = jax.lax.scan(add, zero, self._split_batch(batch))[0]
        return loss, {name: without_key_bias(self.trained[name], g) for name, g in gradients.items()}

    def _split_batch(self, batch: Batch) -> Batch:
        """The batch with a leading axis of k parts: every k-th pair goes to each, so that no example changes device."""
        k = self.config.accumulation
        unit = 2 if self.config.augmentation.mixes else 1

        def split(x: jax.Array, layout: str = "batch") -> jax.Array:
            if not layout:
                return jnp.broadcast_to(x, (k, *x.shape))
            axis = layout.split().index("batch")
            before, (B, *after) = x.shape[:axis], x.shape[axis:]
            parts = jnp.moveaxis(x.reshape(*before, B // (k * unit), k, unit, *after), axis + 1, 0)
            return sharding.constrain(parts.reshape(k, *before, B // k, *after), f"parts {layout}")

        split_masks = {site: split(mask, mask_layout(site)) for site, mask in batch.masks.items()}
        parts: Batch = jax.tree.map(split, batch._replace(masks={}))
        return parts._replace(masks=split_masks)


def for_platform(config: TrainConfig, platform: str) -> TrainConfig:
    """The config with the defaults of scan and attention for a kind of devices ("cpu", "gpu" or "tpu"). On GPUs,
    scanned layers take more time, because the values for the backward pass are copied into stacks and out of them, and
    XLA's own attention stores its weights."""
    on_gpus, low = platform == "gpu", config.compute_dtype == "bfloat16"
    fuses = on_gpus and low and not config.model.attention_dropout
    return config.replace(
        scan=not on_gpus if config.scan is None else config.scan,
        attention=config.attention or ("fused" if fuses else "plain"),
    )


def without_key_bias(stack: Stack, gradient: jax.Array) -> jax.Array:
    """The gradient with zeros for the bias of the keys (vit_core.parameters.Parameter.key_bias)."""
    key = stack.rows[0].key_bias
    if key is None:
        return gradient
    return gradient.at[key].set(0) if stack.layers is None else gradient.at[:, key].set(0)
