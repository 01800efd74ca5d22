"""Base class of the engine and the predictor in PyTorch: this process's index and its rows of a batch."""

import numpy as np
from torch import Tensor

from vit_core import ViTConfig
from vit_core.errors import InputError
from vit_core.image_batches import ImageArrays
from vit_core.naflex import PatchedImages, Patches, placed
from vit_train.engines.torch.processes import join
from vit_train.engines.torch.transfers import on_device


class Member:
    """One of the processes that share a computation."""

    name = "torch"
    primary = True

    def __init__(self) -> None:
        self.joined = join()
        self.process, self.processes, self.total = self.joined.index, self.joined.count, self.joined.total
        self.devices = self.batch_shards = self.processes
        self.device, self.hardware = self.joined.device, self.joined.hardware

    def rows(self, size: int) -> np.ndarray:
        """The rows of a batch of `size` that this process makes. Raises InputError if they cannot be divided evenly."""
        count, rest = divmod(size, self.processes)
        if rest:
            raise InputError(
                f"batch_size: {size} cannot be shared by {self.processes} processes; make it a multiple of them"
            )
        return np.arange(self.process * count, (self.process + 1) * count)

    def on_device(self, array: np.ndarray) -> Tensor:
        """A copy of an array on this process's device; the host does not wait for it."""
        return on_device(array, self.device)

    def images_on_device(self, images: ImageArrays, model: ViTConfig, dtype: str) -> Tensor | Patches:
        """Images, or patches with what the model needs of their places as `dtype`, on this process's device."""
        if not isinstance(images, PatchedImages):
            return self.on_device(images)
        return Patches(*(None if x is None else self.on_device(x) for x in placed(images, model, dtype)))
