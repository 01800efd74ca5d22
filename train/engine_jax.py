"""The JAX engine: the verbs of train.run.Engine, by jax.jit on flat state over a mesh of devices."""

from collections.abc import Mapping
from math import prod
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from vit_core.arrays import convert
from vit_core.checkpoint import Checkpoint, CheckpointConfig, open_checkpoint
from vit_core.formats import orbax
from vit_core.parameters import Parameter, draw

from . import mesh_jax, processes_jax, steps, steps_orbax
from .config import TrainConfig
from .data import Batch
from .measured import Measured
from .optimizers_jax import off_disk, on_disk
from .step_jax import LAYOUTS, State, Step, layout_of_masks


class JaxEngine:
    """Parameters and statistics as a flat dict of stacked arrays, each made and kept as the mesh shares it out.

    weights: to begin from; without, new ones by the config's seed. saved: a step's folder, to go on from instead.
    """

    name = "jax"

    def __init__(self, config: TrainConfig, weights: Checkpoint | None = None, saved: Path | None = None) -> None:
        self.config = config
        joined = processes_jax.here()
        self.process, self.processes, self.total = joined.index, joined.count, joined.total
        self.mesh = mesh_jax.make_mesh(config)
        self.devices = self.mesh.size
        local = jax.local_devices()
        self.hardware = f"{len(local)} x {local[0].device_kind}"
        self.primary = mesh_jax.primary(self.mesh)
        """Whether no process before this one makes the same rows."""
        self.step = Step(config, self.mesh)
        self.trained = self.step.names
        self.saver = steps_orbax.Saver()
        self.state: State
        if saved is not None and orbax.is_step(saved):
            config.fitted(open_checkpoint(saved))
            self.state = steps_orbax.restore(saved, self.step.state)
            self._allow(self.skipped)
        elif saved is not None:
            weights, step, statistics = steps.read(saved)
            self._begin(weights)
            self.restore(step, statistics)
        else:
            self._begin(weights)

    @property
    def shares(self) -> int:
        """Parts that a batch is cut in."""
        return mesh_jax.shares(self.mesh)

    @property
    def held(self) -> dict[str, tuple[int, int]]:
        """Bytes of each array of the state, in all and on one device."""
        return {
            leaf: (x.size * x.dtype.itemsize, prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize)
            for leaf, x in self.step.state.items()
        }

    @property
    def skipped(self) -> int:
        """Updates left out so far."""
        return int(self.state["skipped"])

    def rows(self, size: int) -> np.ndarray:
        """Which rows of a batch of `size` this process makes."""
        return mesh_jax.rows(self.mesh, size)

    def train_step(self, batch: Batch, step: int, stop: bool = False) -> Measured:
        """Update number `step` (from 0); gives what was found before it, still on the device.

        A loss or gradient that is not finite, or a loss that has exploded, leaves the state as it is; after more of
        them than the config allows it stays so.
        """
        rates = self.config.learning_rate(step), self.config.schedule.fraction(step, self.config.steps)
        dtype = self.config.dtype
        with jax.set_mesh(self.mesh):
            self.state, measured = self.step.train(
                self.state,
                self._shared(batch),
                self._flag(stop),
                np.int32(step),
                (np.asarray(rates[0], dtype), np.asarray(rates[1], dtype)),
            )
        return measured

    def logits(self, images_BHWC: np.ndarray, averaged: bool = False) -> np.ndarray:
        """Logits [B, classes] in evaluation, from uint8 images, both this process's rows; of the moving average if
        asked for."""
        shared = mesh_jax.from_rows(self.mesh, images_BHWC, "batch", self._size(images_BHWC))
        with jax.set_mesh(self.mesh):
            logits_BC = self.step.logits(self.step.params(self.state, averaged), shared)
        return mesh_jax.to_rows(logits_BC).astype(self.config.dtype)

    def export(self, averaged: bool = False) -> dict[str, np.ndarray]:
        """The parameters, or their moving average, in the layout on disk; every process has to call it."""
        params = self.step.params(self.state, averaged)
        apart: dict[str, np.ndarray] = {}
        for name, x in params.items():
            apart |= on_disk(self.step.stacks[name], _whole(x))
        return {name: apart[name] for name in self.step.place}

    def statistics(self) -> dict[str, np.ndarray]:
        """The optimizer's, the moving average and "skipped": "<kind>/<canonical name>" in the layout on disk; every
        process has to call it."""
        found = {"skipped": np.asarray(self.skipped)}
        for leaf, x in self.state.items():
            kind, _, stack = leaf.partition("/")
            if kind not in ("params", "skipped"):
                pieces = kind != "average" and self.step.update.structured
                apart = on_disk(self.step.stacks[stack], _whole(x), pieces=pieces)
                found |= {f"{kind}/{name}": layer for name, layer in apart.items()}
        return found

    def restore(self, step: int, statistics: Mapping[str, np.ndarray]) -> None:
        """Sets what `statistics` gave after `step` updates (in either engine)."""
        for leaf in self.state:
            kind, _, name = leaf.partition("/")
            if kind == "skipped":
                self._put(leaf, np.asarray(statistics.get("skipped", np.zeros(()))))
                self._allow(self.skipped)
            elif kind != "params":
                stack, pieces = self.step.stacks[name], kind != "average" and self.step.update.structured
                layers = {row.name: np.asarray(statistics[f"{kind}/{row.name}"]) for row in stack.rows}
                self._put(leaf, off_disk(stack, layers, self.step.state[leaf].shape, pieces=pieces))

    def save(self, folder: Path, config: CheckpointConfig) -> None:
        """Begins to write a step's folder; training may go on meanwhile."""
        # One update too many was left out where the run stops for it: it will be tried again.
        limited = jax.jit(lambda n: jnp.minimum(n, self.config.skippable))
        skipped = {"skipped": limited(self.state["skipped"])}
        structured = self.step.update.structured
        self.saver.save(folder, self.state | skipped, config.model_dump(mode="json"), structured)

    def saved(self) -> None:
        """Waits until what was begun is written. InputError where it could not be."""
        self.saver.wait()

    def _begin(self, weights: Checkpoint | None) -> None:
        """New weights or given ones, statistics of zero; each device gets its part of each array."""
        self.state = {}
        arrays = None if weights is None else self.config.fitted(weights).arrays

        def value(row: Parameter) -> np.ndarray:
            return convert(draw(row, self.config.seed) if arrays is None else arrays[row.name], self.config.dtype)

        for leaf, x in self.step.state.items():
            kind, _, name = leaf.partition("/")
            if kind == "params":
                layers = {row.name: value(row) for row in self.step.stacks[name].rows}
                host = off_disk(self.step.stacks[name], layers, x.shape, pieces=False)
                for of in (leaf, f"average/{name}"):
                    if of in self.step.state:
                        self._put(of, host)
            elif kind != "average":
                self._put(leaf, np.broadcast_to(np.zeros((), x.dtype), x.shape))

    def _allow(self, skipped: int) -> None:
        """So many updates at least may be left out: they have been, when more were allowed."""
        self.config = self.step.config = self.config.replace(skippable=max(self.config.skippable, skipped))

    def _put(self, leaf: str, host: np.ndarray) -> None:
        """Copies: the state is donated, the caller's array is not."""
        like = self.step.state[leaf]
        self.state[leaf] = jax.make_array_from_callback(
            like.shape, like.sharding, lambda index: np.array(host[index], like.dtype)
        )

    def _shared(self, batch: Batch) -> Batch:
        """This process's rows, as part of the global batch."""

        def put(layout: str, x: np.ndarray) -> jax.Array:
            return mesh_jax.from_rows(self.mesh, x, layout, self._size(batch.images_BHWC))

        masks = {site: put(layout_of_masks(site), mask) for site, mask in batch.masks.items()}
        # Which examples they are is the loop's to know.
        arrays = jax.tree.map(put, LAYOUTS, batch._replace(masks={}, ids_B=None))
        return arrays._replace(masks=masks)

    def _size(self, own: np.ndarray) -> int:
        """Of the batch of which these are this process's rows."""
        return len(own) * self.shares // len(self.rows(self.shares))

    def _flag(self, stop: bool) -> jax.Array:
        ours = np.full(1, stop, np.int32)
        return jax.make_array_from_callback((self.mesh.size,), self.step.by_device, lambda _: ours)


def _whole(x: jax.Array) -> np.ndarray:
    """On every host."""
    return np.asarray(x if x.is_fully_addressable else multihost_utils.process_allgather(x, tiled=True))
