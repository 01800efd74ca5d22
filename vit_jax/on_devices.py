"""A function of a model on the devices of this machine: uint8 images in, arrays out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vit_core.naflex import PatchedImages, Patches, placed
from vit_jax import naflex
from vit_jax.model import ViT

if TYPE_CHECKING:
    from vit_core.image_batches import ImageArrays
    from vit_core.preprocess import Preprocessing


class OnDevices:
    """Computes a function of a model and normalized images on one or several devices: each has a copy of the model and
    computes a part of each batch.

    function: from the model and images [B, H, W, C], or patches of images of any aspect, in the model's type, to values
    [B, ...]; it is compiled once for each size of a batch. devices: by default all of this process. A
    `vit_core.streaming.DeviceFunction`.
    """

    def __init__(
        self,
        model: ViT,
        preprocessing: Preprocessing,
        function: Callable[[ViT, Any], jax.Array] = ViT.__call__,
        devices: Sequence[jax.Device] | None = None,
    ) -> None:
        from vit_core.preprocess import offset_and_scale

        self.config = model.config
        self.places = list(devices or jax.local_devices())
        self.devices = len(self.places)
        mesh = Mesh(np.array(self.places), ("batch",))
        self.by_image = NamedSharding(mesh, PartitionSpec("batch"))
        graph, state = nnx.split(model)
        self.state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
        offset, scale = offset_and_scale(preprocessing)

        def values(state: Any, pixels_BHWC: jax.Array | Patches) -> jax.Array:
            model = nnx.merge(graph, state)
            dtype = model.patch_embed.proj.kernel.dtype
            if isinstance(pixels_BHWC, Patches):
                return function(model, naflex.normalized(pixels_BHWC, offset, scale, dtype))
            x_BHWC = (pixels_BHWC.astype(jnp.float32) - offset) * scale
            return function(model, x_BHWC.astype(dtype))

        self.values = jax.jit(values, out_shardings=self.by_image)

    @property
    def hardware(self) -> str:
        """Number and kind of the devices, as text for messages."""
        return f"{self.devices} x {self.places[0].device_kind}"

    def start(self, images: ImageArrays) -> Callable[[], np.ndarray]:
        """Starts to compute the values of uint8 or uint16 images, whose number is a multiple of the number of devices.
        Returns a function that waits for the values [B, ...]."""
        given: np.ndarray | Patches
        if isinstance(images, PatchedImages):
            given = placed(images, self.config, np.float64 if jax.config.read("jax_enable_x64") else np.float32)
        else:
            given = images
        values = self.values(self.state, jax.device_put(given, self.by_image))
        return lambda: np.asarray(values)
