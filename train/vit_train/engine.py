"""The interface between training or evaluation and a framework: three small protocols.

Each framework has a trainer (`JaxEngine`, `TorchEngine`), which implements all three, and a predictor of a checkpoint
(`JaxPredictor`, `TorchPredictor`). If several processes share an engine, every process makes every call, in the same
order.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from vit_core.checkpoints import Checkpoint, CheckpointConfig
from vit_core.image_batches import ImageArrays
from vit_core.storage import Location
from vit_train.config import Mesh, TrainConfig
from vit_train.data.batches import Batch
from vit_train.step_result import StepResult

Framework = Literal["jax", "torch"]


class BatchRows(Protocol):
    """How the processes that share an engine divide a batch."""

    @property
    def process(self) -> int:
        """Number of this process, from 0."""

    @property
    def processes(self) -> int:
        """Number of processes."""

    @property
    def batch_shards(self) -> int:
        """Number of parts that a batch is divided into, on the devices of all processes."""

    @property
    def primary(self) -> bool:
        """Whether this is the first process that makes these rows, so that it counts them."""

    def rows(self, size: int) -> np.ndarray:
        """Which rows of a batch of `size` this process makes, ascending."""

    def total(self, counts: np.ndarray) -> np.ndarray:
        """The sum of an array over all processes."""


class Predictor(BatchRows, Protocol):
    """Computes a model's outputs."""

    @property
    def name(self) -> str:
        """The framework: "jax" or "torch"."""

    def predict(self, images_BHWC: ImageArrays) -> np.ndarray:
        """Logits [B, classes] in evaluation of uint8 images, or of their patches; both are this process's rows."""


class Trainer(BatchRows, Protocol):
    """Trains a model."""

    @property
    def config(self) -> TrainConfig: ...

    @property
    def devices(self) -> int:
        """Number of devices of all processes."""

    @property
    def hardware(self) -> str:
        """Number and kind of this process's devices, as text for messages."""

    @property
    def peak_flops(self) -> float:
        """FLOP/s of matrix products in the compute dtype, on the devices of all processes; measured when asked for."""

    @property
    def teacher_flops(self) -> int:
        """FLOPs of the forward pass of one image by the teacher of a run that distills; 0 without one."""

    @property
    def trained(self) -> tuple[str, ...]:
        """Canonical names of the parameters that are trained."""

    @property
    def skipped(self) -> int:
        """Number of updates skipped so far."""

    @property
    def skippable(self) -> int:
        """Number of updates that may be skipped: the config's, or the number skipped so far if that is larger."""

    @property
    def state_bytes(self) -> Mapping[str, tuple[int, int]]:
        """Bytes of each array of the state, in total and on one device."""

    @property
    def average(self) -> Predictor | None:
        """Predicts with the moving average of the weights; None if there is none."""

    def train_step(self, batch: Batch, step: int, stop: bool = False) -> StepResult:
        """Makes update number `step` (from 0) with this process's rows; returns the loss and gradient norms, computed
        before the update.

        If a loss or gradient is not finite, or a loss has exploded, the state is not changed; after more of these than
        `skippable`, no later update changes it either.
        """

    def losses(self, batch: Batch) -> np.ndarray:
        """float64 [B]: the loss of each image of a masked autoencoder, without an update; this process's rows."""

    @property
    def profile_opened_by(self) -> str:
        """Names of the programs that open the files of `profiled`."""

    def profiled(self, folder: Path) -> AbstractContextManager[None]:
        """A context in which the work of this process and its devices is recorded; at its end, the record is written to
        files in the folder."""


class Saver(BatchRows, Protocol):
    """Saves and restores the state of training."""

    def export(self, averaged: bool = False) -> dict[str, np.ndarray]:
        """The parameters, or their moving average, in the layout on disk, at least in process 0; adapters are separate
        arrays, not merged into the weights."""

    def statistics(self) -> dict[str, np.ndarray]:
        """The optimizer's statistics and the moving average, "<kind>/<canonical name>" in the layout on disk, and
        "skipped"; of a masked autoencoder also the decoder, which no checkpoint has; at least in process 0."""

    def restore(self, step: int, statistics: Mapping[str, np.ndarray]) -> None:
        """Sets the state to what `statistics` of either engine returned before update number `step`."""

    def save(self, folder: Location, config: CheckpointConfig) -> None:
        """Starts to write a step's folder; training may continue meanwhile."""

    def wait_until_saved(self) -> None:
        """Waits until the step that is being saved is complete. Raises InputError if it could not be written."""


class Engine(Predictor, Trainer, Saver, Protocol):
    """All that a training run needs."""


class MakeEngine(Protocol):
    """An engine's class."""

    def __call__(
        self,
        config: TrainConfig,
        weights: Checkpoint | None = None,
        saved: Location | None = None,
        teacher: Checkpoint | None = None,
    ) -> Engine:
        """An engine that begins from `weights` (without: from new ones by the config's seed), or resumes at a saved
        step. teacher: of a run that distills. DamagedError, in every process, for a step that is damaged for one of
        them."""


class MakePredictor(Protocol):
    """A predictor's class."""

    def __call__(
        self,
        checkpoint: Checkpoint,
        *,
        dtype: str = "float32",
        compute_dtype: str | None = None,
        mesh: Mesh | None = None,
    ) -> Predictor:
        """A predictor by a checkpoint's weights and preprocessing.

        dtype: of the weights and the logits. compute_dtype: of the forward pass; none: dtype. mesh: how the devices of
        all processes share the work; none: each has a part of the batch.
        """
