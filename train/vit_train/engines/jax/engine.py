"""The JAX engine: jax.jit on a flat dict of arrays, over a mesh of devices."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from math import prod
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vit_core import flops
from vit_core.arrays import convert
from vit_core.checkpoints import Checkpoint, CheckpointConfig
from vit_core.checkpoints.formats.vit.step import MANIFEST, is_orbax_step, step_config
from vit_core.image_batches import ImageArrays
from vit_core.parameters import DECODER, initial_value
from vit_core.storage import Location
from vit_train.config import TrainConfig
from vit_train.data.batches import Batch
from vit_train.engine import Predictor
from vit_train.engines.jax import mesh as meshes
from vit_train.engines.jax.forward import Params
from vit_train.engines.jax.mesh import make_mesh
from vit_train.engines.jax.on_mesh import OnMesh, gather, place
from vit_train.engines.jax.optimizers import from_disk_layout, to_disk_layout
from vit_train.engines.jax.peak import matmul_flops
from vit_train.engines.jax.saving import OrbaxSaver, restore
from vit_train.engines.jax.train_step import LAYOUTS, State, TrainStep, mask_layout
from vit_train.processes import read_together
from vit_train.step_folders import read_step
from vit_train.step_rates import step_rates
from vit_train.step_result import StepResult

_at_most = jax.jit(jnp.minimum)


class JaxEngine(OnMesh):
    """Parameters and statistics as a flat dict of stacked arrays, created and kept in the parts that the mesh defines.

    weights: to begin from; without them, new ones by the config's seed. saved: the folder of a step, to resume at
    instead; DamagedError, in every process, where one of them finds it damaged. teacher: of a run that distills.
    """

    def __init__(
        self,
        config: TrainConfig,
        weights: Checkpoint | None = None,
        saved: Location | None = None,
        teacher: Checkpoint | None = None,
    ) -> None:
        super().__init__(make_mesh(config.mesh, config.model))
        self.config, self.skippable = config, config.skippable
        self.step = TrainStep(config, self.mesh, None if teacher is None else teacher.config)
        self.taught = {} if teacher is None else self._placed(teacher)
        self.teacher_flops = 0 if teacher is None else sum(flops.forward(teacher.config.model).values())
        self.trained = self.step.names
        self.saver = OrbaxSaver()
        self.state: State = {}
        if saved is None:
            self._begin(weights)
        elif is_orbax_step(saved):
            self._resume_orbax_step(saved)
        else:
            checkpoint, step, statistics = read_together(self.joined, lambda: read_step(saved, config))
            self._begin(checkpoint)
            self.restore(step, statistics)

    @property
    def state_bytes(self) -> dict[str, tuple[int, int]]:
        """Bytes of each array of the state, in total and on one device."""
        return {
            leaf: (x.size * x.dtype.itemsize, prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize)
            for leaf, x in self.step.state.items()
        }

    @property
    def peak_flops(self) -> float:
        """FLOP/s of matrix products in the compute dtype on all devices, if each is as fast as the first one of this
        process."""
        # Devices that are made of one CPU share it.
        devices = 1 if jax.default_backend() == "cpu" else self.devices
        return devices * matmul_flops(self.config.compute_dtype or self.config.dtype)

    @property
    def skipped(self) -> int:
        """Number of updates skipped so far."""
        return int(self.state["skipped"])

    @property
    def average(self) -> Predictor | None:
        """Predicts with the moving average of the weights; None if there is none."""
        return None if self.config.ema is None else _AveragePredictor(self)

    profile_opened_by = "TensorBoard, XProf, or ui.perfetto.dev (perfetto_trace.json.gz)"

    @contextmanager
    def profiled(self, folder: Path) -> Iterator[None]:
        """Within the context what this process and its devices do is recorded; then it is written to files in the
        folder."""
        with jax.profiler.trace(str(folder), create_perfetto_trace=True):
            yield

    def train_step(self, batch: Batch, step: int, stop: bool = False) -> StepResult:
        """Makes update number `step` (from 0); returns the loss and gradient norms from before the update, still on the
        device.

        A loss or gradient that is not finite, or a loss that has exploded, leaves the state as it is; after more of
        them than `skippable`, every later update does too.
        """
        result: StepResult
        with jax.set_mesh(self.mesh):
            self.state, result = self.step.train(
                self.state,
                self._to_global(batch),
                self._stop[stop],
                np.int32(step),
                step_rates(self.config, step),
                (np.int32(self.skippable), np.asarray(self.config.loss_limit, self.config.dtype)),
                self.taught,
                batch.patch_size,
            )
        for values in result:
            values.copy_to_host_async()  # the next step's check will find them there
        return result

    def predict(self, images_BHWC: ImageArrays, averaged: bool = False) -> np.ndarray:
        """Logits [B, classes] in evaluation of uint8 images, both for this process's rows; averaged: with the moving
        average of the weights."""
        params = self.step.params(self.state, averaged)
        return self.predict_with(self.step.forward, params, images_BHWC).astype(self.config.dtype)

    def losses(self, batch: Batch) -> np.ndarray:
        """float64 [B]: the loss of each image of a masked autoencoder, in evaluation; this process's rows."""
        rows, params = self._to_global(batch), self.step.params(self.state)
        with jax.set_mesh(self.mesh):
            losses_B = self.step.forward.losses(params, rows.images_BHWC, rows.masks)
        return meshes.to_local(losses_B).astype(np.float64)

    def export(self, averaged: bool = False) -> dict[str, np.ndarray]:
        """The model's parameters, or their moving average, in the layout on disk; adapters are separate arrays. Every
        process has to call it."""
        arrays: dict[str, np.ndarray] = {}
        for name, x in self.step.params(self.state, averaged).items():
            if not name.startswith(DECODER):
                arrays |= to_disk_layout(self.step.stacks[name], gather(x))
        return {name: arrays[name] for name in self.step.forward.position_of if name in arrays}

    def statistics(self) -> dict[str, np.ndarray]:
        """The optimizer's statistics, the moving average and "skipped": "<kind>/<canonical name>" in the layout on
        disk; of a masked autoencoder also the decoder ("params/decoder..."). Every process has to call it."""
        statistics = {"skipped": np.asarray(self.skipped)}
        for leaf, x in self.state.items():
            kind, _, stack = leaf.partition("/")
            if _is_statistic(kind, stack):
                layers = to_disk_layout(self.step.stacks[stack], gather(x), by_matrix=self._is_by_matrix(kind))
                statistics |= {f"{kind}/{name}": layer for name, layer in layers.items()}
        return statistics

    def restore(self, step: int, statistics: Mapping[str, np.ndarray]) -> None:
        """Sets the state to what `statistics` of either engine returned after `step` updates."""
        for leaf, like in self.step.state.items():
            kind, _, name = leaf.partition("/")
            if kind == "skipped":
                self.state[leaf] = place(like, np.asarray(statistics.get("skipped", np.zeros(()))))
            elif _is_statistic(kind, name):
                stack = self.step.stacks[name]
                layers = {row.name: np.asarray(statistics[f"{kind}/{row.name}"]) for row in stack.rows}
                host = from_disk_layout(stack, layers, like.shape, by_matrix=self._is_by_matrix(kind))
                self.state[leaf] = place(like, host)
        self._allow_skipped()

    def save(self, folder: Location, config: CheckpointConfig) -> None:
        """Starts to write a step's folder; training may continue meanwhile."""
        # Where the run stops because of one skipped update too many, that one will be tried again.
        skipped = {"skipped": _at_most(self.state["skipped"], np.int32(self.skippable))}
        by_matrix = self.step.update.by_matrix
        leaves = self.step.saved(self.state) | skipped
        self.saver.save(folder, leaves, config.model_dump(mode="json"), by_matrix)

    def wait_until_saved(self) -> None:
        """Waits until the step that is being saved is complete. Raises InputError if it could not be written."""
        self.saver.wait_until_saved()

    def _begin(self, weights: Checkpoint | None) -> None:
        """Sets new weights or the given ones, and statistics of zero; each device gets its part of each array."""
        rows = self.config.table
        given = {} if weights is None else self.config.fitted(weights).arrays

        def value(name: str) -> np.ndarray:
            array = given[name] if name in given else initial_value(rows[name], self.config.seed)
            return convert(array, self.config.dtype)

        self.state = {}
        for leaf, like in self.step.state.items():
            kind, _, name = leaf.partition("/")
            if kind == "params":
                stack = self.step.stacks[name]
                host = from_disk_layout(stack, {row.name: value(row.name) for row in stack.rows}, like.shape)
                for copy in (leaf, f"average/{name}"):
                    if copy in self.step.state:
                        self.state[copy] = place(like, host)
            elif kind != "average":
                self.state[leaf] = place(like, np.broadcast_to(np.zeros((), like.dtype), like.shape))

    def _placed(self, teacher: Checkpoint) -> Params:
        """The teacher's parameters, each device with its part of each array."""
        assert self.step.teacher is not None
        placed = {}
        for name, like in self.step.taught.items():
            stack = self.step.teacher.stacks[name]
            arrays = {row.name: convert(teacher.arrays[row.name], like.dtype) for row in stack.rows}
            placed[name] = place(like, from_disk_layout(stack, arrays, like.shape))
        return placed

    def _resume_orbax_step(self, folder: Location) -> None:
        fields = read_together(self.joined, lambda: step_config(folder))
        saved = CheckpointConfig.parse(fields, f"{folder / MANIFEST}: metadata")
        self.config.check_network(saved.model, f"checkpoint {folder}")
        found = restore(folder, self.step.saved_state)
        self.state = {leaf: found[self.step.saved_as(leaf)] for leaf in self.step.state}
        self._allow_skipped()

    def _allow_skipped(self) -> None:
        """Allows at least the number of updates that were skipped so far; the config may have allowed more at that
        time."""
        self.skippable = max(self.config.skippable, self.skipped)

    def _is_by_matrix(self, kind: str) -> bool:
        return kind not in ("average", "params") and self.step.update.by_matrix

    def _to_global(self, batch: Batch) -> Batch:
        """The global batch, from this process's rows of it."""
        size = len(batch.weights_B)

        def put(layout: str, x: np.ndarray) -> jax.Array | np.ndarray:
            return self.to_global(x, layout, size)

        masks = {site: put(mask_layout(site), mask) for site, mask in batch.masks.items()}
        # The ids do not influence training, and the patch size is no array.
        rest = batch._replace(images_BHWC=None, masks={}, ids_B=None, patch_size=None)
        arrays: Batch = jax.tree.map(put, LAYOUTS._replace(images_BHWC=None), rest)
        return arrays._replace(images_BHWC=self.images_to_global(batch.images_BHWC, self.config.model), masks=masks)

    @cached_property
    def _stop(self) -> tuple[jax.Array, jax.Array]:
        """Whether this process wants to stop -> 0 or 1 on each of its devices."""

        def by_device(value: int) -> jax.Array:
            ours = np.full(1, value, np.int32)
            return jax.make_array_from_callback((self.mesh.size,), self.step.by_device, lambda _: ours)

        return by_device(0), by_device(1)


def _is_statistic(kind: str, name: str) -> bool:
    """Whether `statistics` returns the leaf "<kind>/<name>": all except the parameters that `export` returns."""
    return kind != "skipped" and (kind != "params" or name.startswith(DECODER))


class _AveragePredictor(OnMesh):
    """Predicts with the moving average of an engine's weights."""

    def __init__(self, engine: JaxEngine) -> None:
        super().__init__(engine.mesh)
        self.engine = engine

    def predict(self, images_BHWC: ImageArrays) -> np.ndarray:
        """Logits [B, classes] of uint8 images, both this process's rows."""
        return self.engine.predict(images_BHWC, averaged=True)
